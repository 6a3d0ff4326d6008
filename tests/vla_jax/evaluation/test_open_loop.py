import json

import jax
import numpy as np
import pytest

from tests.vla_jax.evaluation.workspace import make_workspace, policy_config, save_run
from vla_jax.contracts.specs import LAB_ACTIONS
from vla_jax.dataset.feature_ages import AgedFeatures
from vla_jax.errors import UserError
from vla_jax.evaluation import open_loop
from vla_jax.evaluation.baselines import baseline_predictions
from vla_jax.evaluation.errors_by_age import errors_by_age
from vla_jax.evaluation.judgement import error_factor, judge
from vla_jax.evaluation.metrics import action_metrics
from vla_jax.evaluation.open_loop import Evaluation, evaluate
from vla_jax.evaluation.prediction import Predictions, predict_split
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.reporting import evaluation_report
from vla_jax.reporting.evaluation_report import episode_traces, write_evaluation


@pytest.fixture(scope="module")
def policy(regression_run):
    return InsertionPolicy.from_checkpoint(regression_run)


@pytest.fixture(scope="module")
def diffusion(workspace):
    run = save_run(workspace, workspace.root / "diffusion", policy_config(workspace, "diffusion", "none"))
    return InsertionPolicy.from_checkpoint(run)


@pytest.fixture(scope="module")
def judged(policy, workspace):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_loop, "measure_latency", lambda policy: LATENCY)
        return evaluate(policy, workspace.dataset, workspace.features, "all", batch_size=16)


LATENCY = {"p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 3.0, "mean_ms": 1.1, "compile_ms": 9.0, "calls": 5,
           "batch_size": 1}  # fmt: skip


def perfect_predictions(dataset, split="all"):
    ticks = dataset.sample_ticks(split)
    target = dataset.actions(ticks)
    return Predictions(
        tick=ticks,
        episode=dataset.ticks.episode[ticks],
        predicted=target.copy(),
        target=target,
        previous_action=dataset.previous_action(ticks),
        has_sensor=dataset.has_sensor(ticks),
    )


def test_every_sample_is_predicted_once_whatever_the_batch_size(policy, workspace):
    dataset, features = workspace.dataset, workspace.features
    ticks = dataset.sample_ticks("all")
    assert len(ticks) % 16
    large = predict_split(policy, dataset, features, "all", batch_size=16)
    small = predict_split(policy, dataset, features, "all", batch_size=3)
    np.testing.assert_array_equal(large.tick, ticks)
    np.testing.assert_array_equal(large.target, dataset.actions(ticks))
    np.testing.assert_array_equal(large.has_sensor, dataset.has_sensor(ticks))
    np.testing.assert_array_equal(large.episode, dataset.ticks.episode[ticks])
    np.testing.assert_allclose(small.predicted, large.predicted, atol=1e-5)
    for name in ("tick", "episode", "target", "previous_action", "has_sensor"):
        np.testing.assert_array_equal(getattr(small, name), getattr(large, name))


def test_noise_of_a_sample_depends_on_seed_and_tick_alone(diffusion, workspace):
    dataset, features = workspace.dataset, workspace.features
    everything = predict_split(diffusion, dataset, features, "all", batch_size=16)
    held_out = predict_split(diffusion, dataset, features, "val", batch_size=16)
    rows = np.searchsorted(everything.tick, held_out.tick)
    assert rows[0] % 16  # the same samples stand elsewhere in their batches
    np.testing.assert_allclose(held_out.predicted, everything.predicted[rows], atol=1e-5)
    other = predict_split(diffusion, dataset, features, "val", batch_size=16, seed=1)
    assert np.abs(other.predicted - held_out.predicted).max() > 1e-3


class NotingPolicy:
    """Notes its keys."""

    state_window = None

    def __init__(self):
        self.keys = []

    def infer(self, observation, key):
        self.keys.append(np.asarray(jax.random.key_data(key)))
        return np.zeros((len(key), 8, 7), np.float32)


def test_every_sample_has_a_key_of_its_own_by_seed_and_tick(workspace):
    policy = NotingPolicy()
    predictions = predict_split(policy, workspace.dataset, workspace.features, "val", batch_size=16, seed=5)
    noted = np.concatenate(policy.keys)[: len(predictions.tick)]
    assert len(np.unique(noted, axis=0)) == len(noted)
    for tick, key in zip(predictions.tick[:3].tolist(), noted, strict=False):
        np.testing.assert_array_equal(key, jax.random.key_data(jax.random.fold_in(jax.random.key(5), tick)))


def test_the_policy_never_sees_the_future(policy, workspace, monkeypatch):
    """What enters `infer` is the same whatever actions follow the tick."""
    dataset, features = workspace.dataset, workspace.features
    seen = predict_split(policy, dataset, features, "val", batch_size=16)
    actions = dataset.actions
    monkeypatch.setattr(dataset, "actions", lambda ticks: actions(ticks) + 100)
    unseen = predict_split(policy, dataset, features, "val", batch_size=16)
    np.testing.assert_array_equal(unseen.predicted, seen.predicted)
    np.testing.assert_array_equal(unseen.target, seen.target + 100)


class AnchoredPolicy:
    """Returns its anchor."""

    state_window = None

    def infer(self, observation, key):
        return observation.previous_chunk


def test_the_anchor_is_past(workspace):
    dataset = workspace.dataset
    predictions = predict_split(AnchoredPolicy(), dataset, workspace.features, "all", batch_size=16)
    is_first = np.isin(predictions.tick, [entry.tick_start for entry in dataset.episodes])
    at_rest = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    before = np.where(is_first[:, None], at_rest, dataset.ticks.delta[np.maximum(predictions.tick - 1, 0)])
    np.testing.assert_array_equal(predictions.predicted, np.repeat(before[:, None], 8, axis=1))


def test_the_previous_action_s_error_is_none_of_the_gripper_s(workspace, judged):
    """The gripper is closed throughout, at an episode's first tick too."""
    previous = judged.metrics["baselines"]["previous"]
    assert previous["mse_per_dim"][6] == 0
    assert previous["first_motion_mse"] * 6 / 7 == pytest.approx(previous["first_action_mse"])
    assert judged.metrics["factors"]["previous"]["first_motion_mse"] == pytest.approx(
        previous["first_motion_mse"] / judged.metrics["first_motion_mse"]
    )


def test_judgement_of_perfect_predictions(workspace):
    predictions = perfect_predictions(workspace.dataset)
    metrics, drifts = judge(predictions, workspace.dataset)
    assert metrics["overall_mse"] == 0
    assert metrics["r2_per_dim"][:6] == [1.0] * 6
    assert metrics["drift"]["worst_mm"] == pytest.approx(0, abs=1e-4)
    assert [drift.episode for drift in drifts] == [0, 1, 2, 3, 4]
    assert metrics["factors"]["zero"]["overall_mse"] is None
    assert metrics["subsets"]["with_sensor"]["samples"] + metrics["subsets"]["without_sensor"][
        "samples"
    ] == len(predictions.tick)
    assert metrics["subsets"]["without_sensor"]["samples"] > 0
    json.dumps(metrics, allow_nan=False)


def test_judgement_of_baselines_and_segments(workspace, judged):
    dataset, metrics, predictions = workspace.dataset, judged.metrics, judged.predictions
    baselines = baseline_predictions(dataset.statistics["actions"].mean, predictions.previous_action, 8)
    assert set(metrics["baselines"]) == {"zero", "mean", "previous"}
    for name, predicted in baselines.items():
        expected = action_metrics(predicted, predictions.target, LAB_ACTIONS)
        for key in ("overall_mse", "overall_mae", "motion_mse", "mse_per_dim"):
            assert metrics["baselines"][name][key] == expected[key]
        factor = metrics["factors"][name]["overall_mse"]
        assert factor == pytest.approx(expected["overall_mse"] / metrics["overall_mse"])
    assert list(metrics["segments"]) == ["align", "near_target"]
    mask = dataset.segment_mask("near_target", predictions.tick)
    assert 0 < mask.sum() < len(mask)
    expected = action_metrics(predictions.predicted[mask], predictions.target[mask], LAB_ACTIONS)
    assert metrics["segments"]["near_target"]["all"] == expected
    with_sensor = mask & predictions.has_sensor
    expected = action_metrics(baselines["zero"][with_sensor], predictions.target[with_sensor], LAB_ACTIONS)
    assert metrics["baselines"]["zero"]["segments"]["near_target"]["with_sensor"] == expected
    drift = [entry["episode"] for entry in metrics["drift"]["episodes"]]
    assert drift == [entry.name for entry in dataset.episodes]


def test_factor():
    assert error_factor(6.0, 2.0) == 3.0
    assert error_factor(6.0, 0.0) is None
    assert error_factor(None, 2.0) is None


def test_traces_are_of_the_best_the_middle_and_the_worst_episode(workspace):
    predictions = perfect_predictions(workspace.dataset)
    for episode, error in enumerate((0.3, 0.1, 0.5, 0.2, 0.4)):
        predictions.predicted[predictions.episode == episode, :, 2] += error
    traces = episode_traces(predictions, workspace.dataset)
    names = [workspace.dataset.episodes[episode].name for episode in (1, 0, 2)]
    assert [trace.title.splitlines()[0] for trace in traces] == names
    np.testing.assert_allclose(traces[2].predicted[:, 2] - traces[2].recorded[:, 2], 0.5, atol=1e-6)
    assert traces[0].time[0] == 0
    assert [name for name, _, _ in traces[0].segments] == ["align", "near_target"]


def test_files_of_a_report(judged, workspace, tmp_path):
    report = write_evaluation(judged, workspace.dataset, tmp_path / "new" / "report")
    out = tmp_path / "new" / "report"
    assert report == out / "report.html"
    files = {path.name for path in out.iterdir()}
    assert files == {"figures", "metrics.json", "predictions.npz", "report.html"}
    assert json.loads((out / "metrics.json").read_text()) == judged.metrics
    with np.load(out / "predictions.npz") as arrays:
        assert sorted(arrays) == ["episode", "predicted", "target", "tick"]
        np.testing.assert_array_equal(arrays["predicted"], judged.predictions.predicted)
        np.testing.assert_array_equal(arrays["tick"], judged.predictions.tick)


def test_recordings_without_sensor_or_segments_have_a_report(tmp_path):
    bare = make_workspace(tmp_path, has_sensor=False, metadata={}, views=("View1",))
    metrics, drifts = judge(perfect_predictions(bare.dataset), bare.dataset)
    described = {"model_type": "regression", "fusion": "none", "step": 0}
    metrics |= {"latency": {**LATENCY, "device": "cpu"}, "policy": described, "features": {}, "versions": {}}
    metrics["data"] = {"split": "all", "samples": metrics["samples"], "episodes": 5}
    assert metrics["segments"] == {}
    assert metrics["subsets"]["with_sensor"]["overall_mse"] is None
    write_evaluation(
        Evaluation(metrics, perfect_predictions(bare.dataset), drifts), bare.dataset, tmp_path / "out"
    )
    json.loads((tmp_path / "out" / "metrics.json").read_text())


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failed_write_leaves_the_old_report(judged, workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_report, "report_figures", lambda *args: [])
    write_evaluation(judged, workspace.dataset, tmp_path)
    before = files_in(tmp_path)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation_report.np, "savez_compressed", fail)
    with pytest.raises(UserError, match="No space left"):
        write_evaluation(judged, workspace.dataset, tmp_path)
    assert files_in(tmp_path) == before


def test_an_empty_split_is_a_users_mistake(policy, workspace, monkeypatch):
    monkeypatch.setattr(workspace.dataset, "sample_ticks", lambda split: np.zeros(0, np.int64))
    with pytest.raises(UserError, match="no samples in split 'val'"):
        evaluate(policy, workspace.dataset, workspace.features, "val", batch_size=4)


class BySight:
    """Predicts the features that it sees; told or not how old they are."""

    state_window = None

    def __init__(self):
        self.ages = []

    def infer(self, observation, key):
        self.ages.append(np.asarray(observation.feature_age))
        shown = np.asarray(observation.vl, np.float32)[:, 0, :1]
        return np.repeat(shown[:, None], 8, axis=1) * np.ones(7, np.float32)


def test_errors_by_age_are_of_the_same_samples_with_older_pictures(workspace):
    dataset, features, policy = workspace.dataset, workspace.features, BySight()
    found = errors_by_age(policy, dataset, features, "all", batch_size=16, ages_s=(0.0, 0.6, 1.2))
    assert [entry["age_s"] for entry in found] == [0.0, 0.6, 1.2]
    (samples,) = {entry["samples"] for entry in found}
    ticks = features.sample_ticks("all")
    assert 0 < samples < len(ticks)
    seen = np.concatenate(policy.ages).reshape(3, -1)[:, :samples]
    for entry, ages in zip(found, seen, strict=True):
        assert entry["feature_age_s"] == pytest.approx(ages.mean(), abs=1e-6)
        assert abs(entry["feature_age_s"] - max(entry["age_s"], 0.15)) < 0.15
    # By hand, of the oldest: the samples with history, each with the record of that age.
    aged = AgedFeatures(dataset, features, (1.2,))
    first = dataset.record_time[features.records][
        np.searchsorted(dataset.array("instant_episode")[features.records], dataset.ticks.episode[ticks])
    ]
    kept = ticks[dataset.ticks.time[ticks] - first >= 1.2]
    vl, _ = features.gather(aged.records(kept, kept))
    error = vl[:, :1, :1].astype(np.float64) - dataset.actions(kept)
    assert found[2]["overall_mse"] == pytest.approx(np.square(error).mean(), rel=1e-5)


def test_ages_that_few_samples_have_a_history_for_are_left_out(workspace):
    options = {"batch_size": 16, "ages_s": (0.0, 0.6, 2.5)}
    found = errors_by_age(BySight(), workspace.dataset, workspace.features, "all", **options)
    assert [entry["age_s"] for entry in found] == [0.0, 0.6]
    # One age alone compares nothing.
    assert (
        errors_by_age(BySight(), workspace.dataset, workspace.features, "all", batch_size=4, ages_s=(2.5,))
        == []
    )


def test_many_samples_are_thinned_evenly(workspace, monkeypatch):
    monkeypatch.setattr("vla_jax.evaluation.errors_by_age.MAX_SAMPLES", 10)
    found = errors_by_age(BySight(), workspace.dataset, workspace.features, "all", batch_size=4)
    assert {entry["samples"] for entry in found} == {10}


def test_an_evaluation_has_errors_by_age_and_its_report_shows_them(judged, workspace, tmp_path):
    by_age = judged.metrics["by_feature_age"]
    assert [entry["age_s"] for entry in by_age] == [0.0, 0.4, 0.8, 1.2]
    report = write_evaluation(judged, workspace.dataset, tmp_path).read_text()
    assert "The policy is not told how old they are." in report
    assert "Error by the age of the features" in report
