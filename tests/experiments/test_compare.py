"""Runs side by side, from the files that a training writes, whole, growing or damaged."""

import json
import re

import pytest

from experiments.compare import Arguments, main
from tests.commands import error_line, run_command
from vla_jax.errors import UserError
from vla_jax.reporting.comparison_page import compare, comparison_html, differences, run_names
from vla_jax.training.history import read_history


def write_run(run, losses, errors, *, batch_size=8, rate=80.0, lr=1e-3, tail=""):
    """A run directory with a log line every second step and a validation at each step in `errors`."""
    run.mkdir(parents=True)
    config = {"batch_size": batch_size, "steps": 20, "optimizer": {"lr": lr}, "policy": {"horizon": 8}}
    (run / "config.json").write_text(json.dumps(config))
    lines = []
    for index, loss in enumerate(losses, 1):
        step = 2 * index
        lines.append(
            {
                "step": step,
                "train/loss": loss,
                "time/samples_per_second": rate,
                "time/data_wait_share": 0.02,
            }
        )
        if step in errors:
            lines.append({"step": step, "validation/action_mse": errors[step]})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return run


def test_a_row_says_what_was_reached_when_and_how_fast(tmp_path):
    run = write_run(tmp_path / "run", [3.0, 1.0, 2.0, None], {4: 0.5, 6: 0.1, 8: 0.2})
    (row,) = compare([read_history(run)], limit=0.25)
    assert (row.steps, row.planned_steps) == (8, 20)
    assert (row.last_loss, row.best_loss) == (None, 1.0)
    assert (row.last_error, row.best_error, row.best_step, row.reached) == (0.2, 0.1, 6, 6)
    assert row.steps_per_second == pytest.approx(10.0)
    assert row.seconds == pytest.approx(0.8)
    assert row.waiting == pytest.approx(0.02)
    assert compare([read_history(run)], limit=0.01)[0].reached is None


def test_only_settings_that_differ_are_listed(tmp_path):
    runs = [write_run(tmp_path / name, [1.0], {}, lr=lr) for name, lr in (("a", 1e-3), ("b", 1e-4))]
    histories = [read_history(run) for run in runs]
    assert differences(histories) == {"optimizer.lr": [1e-3, 1e-4]}
    assert differences([histories[0], histories[0]]) == {}


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / group / "run", [1.0], {}) for group in ("a", "b")]
    assert run_names([read_history(run) for run in runs]) == ["a/run", "b/run"]
    assert run_names([read_history(runs[0])] * 2) == ["run", "run"]


def test_the_page_needs_nothing_else_and_escapes_names(tmp_path):
    runs = [write_run(tmp_path / name, [2.0, 1.0], {4: 0.5}) for name in ("<b>", "c")]
    histories = [read_history(run) for run in runs]
    html = comparison_html(histories, compare(histories, 0.6), 0.6)
    assert "&lt;b&gt;" in html
    assert "<b>c" not in html
    assert html.count("<svg") == 2  # Training loss, held-out error.
    assert html.count("<figcaption></figcaption>") == 0
    assert not re.search(r'(src|href)="(?!data:|#)', html)


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_said(tmp_path):
    growing = write_run(tmp_path / "growing", [2.0, 1.0], {}, tail='{"step": 6, "train/lo')
    assert read_history(growing).steps == 4
    damaged = write_run(tmp_path / "damaged", [2.0], {}, tail='{"step": 4, "train/lo\n{"step": 6}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged at line 2 .*take that line out"):
        read_history(damaged)
    no_step = write_run(tmp_path / "no_step", [2.0], {}, tail='{"train/loss": 1}\n[1]\n')
    with pytest.raises(UserError, match="line 2"):
        read_history(no_step)
    binary = write_run(tmp_path / "binary", [2.0], {})
    (binary / "metrics.jsonl").write_bytes(b"\xff\xfe\x00\n" * 3)
    with pytest.raises(UserError, match="line 1"):
        read_history(binary)


def test_the_command_writes_page_and_numbers(tmp_path):
    runs = [
        write_run(tmp_path / "one", [3.0, 1.0], {4: 0.5}),
        write_run(tmp_path / "two", [3.0, 2.0], {4: 0.7}, lr=1e-4, rate=40.0),
    ]
    shown = run_command("compare", *runs, "--reach", 0.6, "--out", tmp_path / "report").stdout
    assert "optimizer.lr" in shown
    assert "policy.horizon" not in shown
    written = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert [run["reached"] for run in written["runs"]] == [4, None]
    assert written["runs"][1]["curves"]["train/loss"] == {"step": [2, 4], "value": [3.0, 2.0]}
    assert "<svg" in (tmp_path / "report" / "comparison.html").read_text()
    figures = {path.name for path in (tmp_path / "report" / "comparison_figures").iterdir()}
    names = ("train_loss", "validation_action_mse")
    assert figures == {f"{name}.{kind}" for name in names for kind in ("svg", "pdf")}
    main(Arguments((runs[0],), out=tmp_path / "page.html"))
    assert (tmp_path / "page.html").is_file()
    assert "no such directory" in error_line(run_command("compare", tmp_path / "nowhere", status=2))


def test_a_damaged_checkpoint_does_not_keep_the_curves_from_being_compared(tmp_path, caplog):
    run = write_run(tmp_path / "run", [2.0, 1.0], {})
    (run / "checkpoints" / "4" / "metadata").mkdir(parents=True)
    (run / "checkpoints" / "4" / "metadata" / "data.json").write_text("{")
    assert read_history(run).curves["train/loss"].last() == 1.0
    assert "not a readable" in caplog.text


def test_runs_that_cannot_be_read_and_places_that_cannot_be_written_are_said(tmp_path):
    run = write_run(tmp_path / "run", [1.0], {})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"holds no metrics.jsonl"):
        main(Arguments((tmp_path / "empty",)))
    with pytest.raises(UserError, match="cannot write the report"):
        main(Arguments((run,), out=tmp_path / "file" / "report"))
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        main(Arguments((run,)))
