"""`python -m experiments.evaluate RUN DATA --cache CACHE --out REPORT`: judges a policy on recorded episodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from experiments import cli
from experiments.console import make_console, print_table
from experiments.data import open_dataset
from vla_jax.errors import UserError
from vla_jax.reporting.evaluation_page import factor, r2_cell
from vla_jax.reporting.page import number

DESCRIPTION = """Restores a policy and judges it on the episodes of the packed data set DATA, beside three baselines:
the arm stands still (zero), the mean action of the training episodes (mean), the last action again (previous).

Writes REPORT/metrics.json, REPORT/report.html and REPORT/predictions.npz. Errors are in the actions' own
units, mm and degrees of the lab's arm."""

# First actions are what `previous` is good at; with the gripper in them the figure would say little.
METRICS = ("motion_mse", "first_motion_mse", "overall_mse", "overall_mae")


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Training output directory, or one checkpoint in it."""
    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Packed data set, written by `python -m experiments.prepare`."""
    cache: Path
    """Feature cache, written by `python -m experiments.export`."""
    out: Path
    """Directory to write the report to."""
    split: Literal["val", "train", "all"] = "val"
    """Which episodes to judge on; val are those held out from training."""
    checkpoint: Literal["latest", "best"] = "latest"
    """Which checkpoint of a training output directory to judge; best by its validation error."""
    sampler: str | None = None
    """How a diffusion policy denoises (ddim or ddpm); the checkpoint's own by default."""
    steps: int | None = None
    """Denoising steps of a diffusion or flow policy; the checkpoint's own by default."""
    batch_size: int = 64
    """Samples per call of the network; changes speed and memory, not the predictions."""
    seed: int = 0
    """Seed of the noise of policies that draw any."""
    allow_missing: bool = False
    """Judge on the samples whose features the cache has, and say how many that leaves."""


def main(arguments: Arguments) -> None:
    """Judges one policy, prints a summary and says where the report is."""
    from vla_jax.evaluation.compatibility import check_compatible, open_matching_features
    from vla_jax.evaluation.open_loop import evaluate
    from vla_jax.policy.insertion_policy import InsertionPolicy
    from vla_jax.reporting.evaluation_report import make_report_directory, write_evaluation

    if arguments.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {arguments.batch_size}")
    if not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed must be from 0 to below 2^63, not {arguments.seed}")
    dataset = open_dataset(arguments.data)
    policy = InsertionPolicy.from_checkpoint(
        arguments.run, checkpoint=arguments.checkpoint, sampler=arguments.sampler, steps=arguments.steps
    )
    features = open_matching_features(policy, dataset, arguments.cache, allow_missing=arguments.allow_missing)
    check_compatible(policy, dataset, features)
    if features.num_missing:
        make_console(stderr=True).print(features.missing_note())
    make_report_directory(arguments.out)
    evaluation = evaluate(
        policy, dataset, features, arguments.split, batch_size=arguments.batch_size, seed=arguments.seed
    )
    report = write_evaluation(evaluation, dataset, arguments.out)
    console = make_console()
    print_table(console, summary_table(evaluation.metrics), ("overall_mae", "overall_mse"))
    if evaluation.metrics["segments"]:
        table = segment_table(evaluation.metrics)
        print_table(console, table, [str(column.header) for column in reversed(table.columns[2:])])
    console.print(f"report: {report}", soft_wrap=True)


def summary_table(metrics: Mapping[str, Any]) -> Table:
    """Returns policy and baselines by the main metrics, each baseline with its factor over the policy."""
    data = metrics["data"]
    table = Table(title=f"{data['samples']} samples of {data['episodes']} episodes, split {data['split']}")
    table.add_column("")
    for name in METRICS:
        table.add_column(name, justify="right")
    table.add_row("policy", *(number(metrics[name]) for name in METRICS))
    for baseline, values in metrics["baselines"].items():
        factors = metrics["factors"][baseline]
        table.add_row(
            baseline, *(f"{number(values[name])} ({factor(factors[name]).text})" for name in METRICS)
        )
    table.caption = "in brackets: the baseline's error over the policy's"
    return table


def segment_table(metrics: Mapping[str, Any]) -> Table:
    """Returns the named segments: R² of the first three dimensions, and the last one's error, also with a sensor."""
    table = Table(title="segments", caption="over the whole horizon")
    table.add_column("")
    dims = metrics["action_names"][:3]
    last = len(dims) - 1
    for name in (
        "samples",
        "motion_mse",
        *(f"R² {dim}" for dim in dims),
        f"{dims[last]} mse",
        f"{dims[last]} mse, with sensor",
    ):
        table.add_column(name, justify="right")
    for name, parts in metrics["segments"].items():
        every = parts["all"]
        table.add_row(
            name,
            number(every["samples"]),
            number(every["motion_mse"]),
            *(r2_cell(value).text for value in every["r2_per_dim"][:3]),
            number(every["mse_per_dim"][last]),
            number(parts["with_sensor"]["mse_per_dim"][last]),
        )
    return table


COMMAND = cli.Command("evaluate", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
