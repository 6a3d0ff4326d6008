"""What the comparison of policies with late features chooses and shows; the training and the roll-outs are commands."""

import json
from pathlib import Path

from experiments.benchmarks import late_features
from experiments.benchmarks.late_features import Contender, choose, joined_options, results_table, roll_out


def result(head, variant, steps, features, rate):
    contender = Contender(head, variant, steps)
    return {
        "contender": contender.name,
        **vars(contender),
        "delays": {"features": features, "actions": "0"},
        "success": {"rate": rate, "low": rate - 0.1, "high": rate + 0.1},
        "chunk_jump": {"median": 0.0123},
        "jerk": {"median": None},
    }


RESULTS = [
    result("flow", "plain", 1, "0", 0.9),
    result("flow", "age", 1, "0", 0.5),
    result("flow", "age", 1, "800ms", 0.7),
    result("flow", "age-state", 10, "0", 0.65),
    result("regression", "age", None, "0", 0.5),
]


def test_the_best_are_chosen_by_their_mean_over_the_delays_and_plain_ones_go_along():
    best = choose(RESULTS, 2)
    assert best == [Contender("flow", "age-state", 10), Contender("flow", "age", 1)]
    assert [contender.plain for contender in best] == [
        Contender("flow", "plain", 10), Contender("flow", "plain", 1)
    ]  # fmt: skip
    assert sorted([*best, Contender("regression", "age")]) == [
        best[1],
        best[0],
        Contender("regression", "age"),
    ]


def test_fields_of_the_head_from_several_groups_follow_one_option():
    options = joined_options(("--a", "1", "--head", "noise_draws=2"), ("--b",), ("--head", "prefix_max=3"))
    assert options == ["--a", "1", "--b", "--head", "noise_draws=2", "prefix_max=3"]


def test_every_policy_is_a_row_and_every_delay_a_column():
    table = results_table(RESULTS, "title")
    assert [column.header for column in table.columns] == [
        "policy", "features 0, actions 0", "features 800ms, actions 0"
    ]  # fmt: skip
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows[1] == ("flow-age, 1 step", "50% (40%–60%)\n0.012, –", "70% (60%–80%)\n0.012, –")
    assert rows[3][0] == "regression-age"


def test_reports_that_are_there_are_read_and_the_others_are_asked_for(tmp_path, monkeypatch):
    asked = []

    def run_command(name, *words):
        asked.append(words)
        report = Path(words[words.index("--out") + 1])
        report.mkdir(parents=True)
        runs = [{"name": Path(word).name, "success": {}} for word in words if "/runs/" in str(word)]
        (report / "rollout.json").write_text(json.dumps({"runs": runs}))

    monkeypatch.setattr(late_features, "run_command", run_command)
    contenders = [Contender("flow", "age", 1), Contender("flow", "age", 10), Contender("regression", "age")]
    for _ in range(2):
        found = list(roll_out(tmp_path / "out", tmp_path, contenders, (("800ms", "2"),), 40, 7))
        assert len(asked) == 3
    assert [(one["name"], one["steps"]) for one in found] == [
        ("regression-age", None),
        ("flow-age", 1),
        ("flow-age", 10),
    ]
    assert [words[-2:] for words in asked[1:]] == [("--sampling-steps", 1), ("--sampling-steps", 10)]
