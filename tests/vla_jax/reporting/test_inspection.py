"""Looking at a data set: what is said of it is what was recorded."""

import json

import numpy as np
import pytest

from tests.vla_jax.recordings.recorded_episodes import (
    START,
    sensor_rows,
    write_data_set,
    write_windows_episode,
)
from tests.vla_jax.recordings.test_legacy import write_legacy_episode
from tests.vla_jax.reporting.test_evaluation_page import WellFormed
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.preparation import prepare
from vla_jax.errors import UserError
from vla_jax.reporting.inspection import (
    camera_figure,
    choose_episodes,
    choose_samples,
    distributions,
    inspect_dataset,
    inspection_html,
    look_at,
    picture_ages,
    prompts_of,
    sensor_ages,
    summarise_sources,
    time_offsets,
    timeline,
)
from vla_jax.reporting.inspection.samples import row_times


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("inspected")
    write_data_set(root / "lab", 4, image_hz=4.0)
    write_windows_episode(root / "other" / "t" / "blind", seed=8, views=("View2",), has_sensor=False)
    write_legacy_episode(root / "old" / "t" / "e")
    options = PrepareOptions(weights={"Task_0": 2.0}, prompts={"other": "look"}, vlm_reuse_count=3)
    sources = [str(root / name) for name in ("lab", "other", "old")]
    return prepare(sources, root / "data", options).dataset


def test_sources_are_counted_and_their_rates_measured(dataset):
    summaries = {summary.source.rsplit("/")[-1]: summary for summary in summarise_sources(dataset)}
    lab, other, old = summaries["lab"], summaries["other"], summaries["old"]
    assert (len(lab.episodes), lab.format, lab.weight, lab.prompts) == (4, "windows", (1, 2), ("insert",))
    assert lab.camera_hz == pytest.approx({"View1": 4, "View2": 4}, rel=1e-4)
    assert (lab.sensor_hz, lab.pose_hz) == (pytest.approx(650, rel=1e-3), pytest.approx(100))
    assert lab.hours == pytest.approx(80 / 10 / 3600)
    assert lab.missing == {view: 4 for view in dataset.meta.views if view not in ("View1", "View2")}
    assert (other.sensor_hz, other.prompts, other.missing["sensor"]) == (None, ("look",), 1)
    assert "View2" not in other.missing
    assert (old.format, old.pose_hz) == ("legacy", None)
    assert sum(s.samples for s in summaries.values()) == len(dataset.sample_ticks("all"))


def test_ages_are_those_of_the_files(dataset):
    ticks = dataset.sample_ticks("all")
    ticks = ticks[dataset.ticks.episode[ticks] == 1]
    for which, instants in (("newest", dataset.ticks.instant), ("used", dataset.ticks.record)):
        ages = picture_ages(dataset, ticks, which)
        for tick, row in zip(ticks, ages, strict=True):
            images = dataset.records[int(instants[tick])].images
            taken = {image.view: float(image.path.stem) for image in images}
            for view, age in zip(dataset.meta.views, row, strict=True):
                expected = dataset.ticks.time[tick] - taken[view] if view in taken else np.nan
                assert age == pytest.approx(expected, abs=1e-6, nan_ok=True)
    newest = dataset.sensor_windows(ticks, 1)[:, 0, 0].astype(float) * 64
    expected = dataset.ticks.time[ticks] - START - (newest + 1) / 650
    expected[~dataset.has_sensor(ticks)] = np.nan
    np.testing.assert_allclose(sensor_ages(dataset, ticks), expected, atol=1e-5)


def test_offsets_stay_within_a_period_by_time_and_not_by_index(dataset, tmp_path):
    offsets = {offset.what: offset for offset in time_offsets(dataset, dataset.sample_ticks("all"))}
    assert not any(offset.later for offset in offsets.values())
    newest = offsets["newest picture, View1"]
    assert newest.period_ms == pytest.approx(250, rel=1e-3)
    assert 0 <= newest.median_ms <= newest.period_ms
    assert offsets["picture of the features, View1"].max_ms == pytest.approx(newest.max_ms + 200, abs=100)
    assert offsets["newest sensor row"].median_ms <= offsets["newest sensor row"].period_ms
    source = dataset.episodes[0].source
    options = PrepareOptions(episode=EpisodeOptions(alignment="index"))
    paired = prepare([source], tmp_path / "d", options).dataset
    by_index = {offset.what: offset for offset in time_offsets(paired, paired.sample_ticks("all"))}
    assert by_index["newest picture, View1"].later > 0.2


def test_a_sample_shows_what_training_is_fed(dataset):
    episode = choose_episodes(dataset, ["episode_002"])[0]
    entry = dataset.episodes[episode]
    sample = look_at(dataset, entry.tick_start + 7)
    np.testing.assert_array_equal(
        sample.window, dataset.sensor_windows(np.array([sample.tick]))[0].astype(np.float32)
    )
    np.testing.assert_array_equal(sample.actions, dataset.actions(np.array([sample.tick]))[0])
    assert (sample.reuse_step, sample.shared_by, sample.prompt) == (1, 3, "insert")
    assert sample.record == dataset.ticks.record[entry.tick_start + 6]
    assert set(sample.pictures) == {"View1", "View2"}
    assert sample.ages_ms["View1"] == pytest.approx(700 - 500, abs=0.1)
    assert look_at(dataset, entry.tick_start).reuse_step == 0
    blind = choose_episodes(dataset, ["blind"])[0]
    assert look_at(dataset, choose_samples(dataset, blind, 3)[1]).window is None


def test_episodes_are_chosen_by_name_or_one_of_each_source(dataset):
    assert [dataset.episodes[i].source.rsplit("/")[-1] for i in choose_episodes(dataset, [])] == [
        "lab",
        "old",
        "other",
    ]
    assert choose_episodes(dataset, ["Task_1/episode_003"]) == choose_episodes(dataset, ["episode_003"])
    with pytest.raises(UserError, match=r"no episode is named nobody; there are episode_000, "):
        choose_episodes(dataset, ["nobody"])


def test_episodes_that_share_a_name_need_more_of_their_path(tmp_path):
    for task in ("a", "b"):
        write_windows_episode(tmp_path / "s" / task / "e", seconds=0.6)
    packed = prepare([str(tmp_path / "s")], tmp_path / "d", PrepareOptions()).dataset
    with pytest.raises(UserError, match="2 episodes are named e; give more of the path"):
        choose_episodes(packed, ["e"])
    assert choose_episodes(packed, ["b/e"]) == [1]


def test_samples_are_spread_over_the_episode(dataset):
    ticks = choose_samples(dataset, 0, 3)
    first, last = dataset.episodes[0].tick_start, dataset.episodes[0].tick_stop - 1
    assert (ticks[0], ticks[-1], len(ticks)) == (first, last, 3)
    assert len(choose_samples(dataset, 0, 1000)) == last - first + 1


def test_a_timeline_places_sensor_rows_in_time_and_leaves_gaps_empty(tmp_path):
    folder = write_windows_episode(tmp_path / "s" / "t" / "e", seconds=4.0)
    stream, ends = sensor_rows(2600), np.arange(1, 41) * 65
    kept = np.r_[0:10, 25:40]
    np.savez(
        folder / "sensor_data.npz",
        data=stream.reshape(40, 65, 1026)[kept],
        timestamps=START + ends[kept] / 650,
    )
    packed = prepare([str(tmp_path / "s")], tmp_path / "d", PrepareOptions()).dataset
    rows = stream.reshape(40, 65, 1026)[kept].reshape(-1, 1026)
    expected = (rows[:, 0].astype(float) * 64 + 1) / 650
    times = row_times(packed, 0) - START
    # Ticks see neither the last rows before the gap nor those after the last tick.
    assert np.isfinite(times).mean() > 0.9
    np.testing.assert_allclose(times[np.isfinite(times)], expected[np.isfinite(times)], atol=0.002)
    line = timeline(packed, 0)
    np.testing.assert_array_equal(line.force, rows[:, 0].astype(np.float32))
    empty = np.isnan(line.ascan).all(axis=1)
    in_gap = (line.column_time > 1.06) & (line.column_time < 2.49)
    assert empty[in_gap].all()
    assert not empty[line.column_time < 1.0].any()
    assert line.refresh.tolist() == [k % 3 == 0 for k in range(len(line.time))]
    # A column is a stored row.
    column = np.flatnonzero(~empty)[5]
    assert (line.ascan[column] == rows[:, 1:].astype(np.float32)).all(axis=1).any()


def test_a_slow_sensor_fills_its_picture(dataset):
    old = next(i for i, entry in enumerate(dataset.episodes) if entry.format == "legacy")
    line = timeline(dataset, old)
    assert dataset.episodes[old].sensor_hz == 10
    assert len(line.column_time) == len(line.row_time) > 10
    assert np.isfinite(line.ascan).all()


def test_episodes_of_all_kinds_are_drawn_on_one_page(dataset):
    page = inspection_html(inspect_dataset(dataset))
    parser = WellFormed()
    parser.feed(page)
    assert not parser.open
    text = " ".join(parser.text)
    for index in choose_episodes(dataset, []):
        assert f"Episode {dataset.episodes[index].name}: over time" in text


def test_normalised_training_actions_have_unit_spread(dataset):
    found = {entry.name: entry for entry in distributions(dataset)}
    assert set(found) == {"dx", "dy", "dz", "da", "db", "dr", "gripper", "force", "A-scan"}
    for name in ("dx", "dr"):
        assert found[name].after.std() == pytest.approx(1, rel=1e-3)
    assert found["A-scan"].before.mean() == pytest.approx(50, abs=1)
    assert found["A-scan"].after.std() == pytest.approx(1, abs=0.05)


def write_tokenizer(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*alphabet, "in", "ins"])}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[("i", "n"), ("in", "s")]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.save(str(folder / "tokenizer.json"))


def test_prompts_are_shown_as_tokens_where_a_tokenizer_is_given(dataset, tmp_path):
    assert {prompt.tokens for prompt in prompts_of(dataset)} == {None}
    write_tokenizer(tmp_path)
    found = {prompt.text: prompt for prompt in prompts_of(dataset, tmp_path)}
    assert found["insert"].tokens == ("ins", "e", "r", "t")
    assert found["insert"].episodes == 4
    assert len(found["insert"].ids) == 4
    with pytest.raises(UserError, match="no such tokenizer"):
        prompts_of(dataset, tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(UserError, match="is no tokenizer"):
        prompts_of(dataset, tmp_path)


def test_the_page_needs_nothing_else_and_escapes_what_was_recorded(tmp_path):
    write_windows_episode(tmp_path / "s" / "t" / "e", instruction="<script>alert(1)</script>")
    packed = prepare([str(tmp_path / "s")], tmp_path / "d", PrepareOptions()).dataset
    page = inspection_html(inspect_dataset(packed))
    parser = WellFormed()
    parser.feed(page)
    assert not parser.open
    assert "<script>" not in page
    text = " ".join(parser.text)
    for expected in (
        "<script>alert(1)",
        "newest sensor row",
        "Before and after normalisation",
        "--tokenizer",
    ):
        assert expected in text
    links = [value for _, name, value in parser.attributes if name in ("src", "href")]
    assert links == []
    assert page.count("<svg") == 3
    inside = [value for _, name, value in parser.attributes if name == "xlink:href"]
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in inside)


def test_pictures_that_are_gone_leave_their_places_empty(dataset, tmp_path):
    write_windows_episode(tmp_path / "s" / "t" / "e", seconds=0.6)
    packed = prepare([str(tmp_path / "s")], tmp_path / "d", PrepareOptions()).dataset
    samples = [look_at(packed, tick) for tick in choose_samples(packed, 0, 2)]
    there = camera_figure(samples, packed.meta.views)
    (tmp_path / "s").rename(tmp_path / "elsewhere")
    packed = type(packed).open(tmp_path / "d")
    samples = [look_at(packed, tick) for tick in choose_samples(packed, 0, 2)]
    gone = camera_figure(samples, packed.meta.views)
    assert gone.figure.get_size_inches().tolist() == there.figure.get_size_inches().tolist()
    # At the first tick the second view has no picture yet.
    assert (there.svg().count("<image"), gone.svg().count("<image")) == (3, 0)
    assert gone.svg().count("file not found") == 3


def test_a_set_without_sensor_pictures_or_motion_is_shown_too(tmp_path):
    write_windows_episode(tmp_path / "s/t/poses", views=(), has_sensor=False)
    write_windows_episode(tmp_path / "s/t/still", metadata={"robot_states_count": 0})
    (tmp_path / "s/t/still/robot_states.csv").unlink()
    packed = prepare([str(tmp_path / "s")], tmp_path / "d", PrepareOptions()).dataset
    inspection = inspect_dataset(packed, ["poses", "still"])
    assert inspection.offsets == []
    assert inspection.distributions == []
    assert inspection.sources[0].missing == {"images": 1, "sensor": 1, "poses": 1}
    assert [view.episode for view in inspection.episodes] == [0]
    WellFormed().feed(inspection_html(inspection))


def test_a_set_without_any_picture_is_shown_too(tmp_path):
    write_windows_episode(tmp_path / "s/t/e", views=())
    packed = prepare([str(tmp_path / "s")], tmp_path / "d", PrepareOptions()).dataset
    inspection = inspect_dataset(packed)
    WellFormed().feed(inspection_html(inspection))
    assert inspection.episodes[0].samples == ()
