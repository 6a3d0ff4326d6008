"""`python -m experiments.benchmarks.late_features WORK`: what helps policies whose features are late."""

import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from experiments import cli
from experiments.benchmarks.frame import require_positive
from experiments.console import make_console, print_table
from experiments.demo import run_command
from vla_jax.optional_torch import require
from vla_jax.storage.replacing import replace_text

DESCRIPTION = """Trains every head as it is and with each of what is made for late features, on phantom episodes half of
which breathe, and lets all of them insert the needle in the same breathing scenarios, with features and actions ever
later. The best of them then act in scenarios of another seed, beside the same head as it was.

Run again, it continues where it stopped. Writes WORK/late_features.json."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "age": ("--feature-age", "0", "1.9"),
    "age-state": ("--feature-age", "0", "1.9", "--state-window", "8"),
    "age-prefix": ("--feature-age", "0", "1.9", "--head", "prefix_max=3"),
}
"""Options of `experiments.train` beside the head's. Features come up to 1.5 s late here, and the next 0.3 s later."""
HEADS: dict[str, tuple[str, ...]] = {
    "regression": ("--model-type", "regression"),
    # Half batches and half of the noises: what `demo` trains its diffusion policy with.
    "diffusion": ("--model-type", "diffusion", "--batch-size", "32", "--head", "noise_draws=2"),
    "flow": ("--model-type", "flow", "--batch-size", "32", "--head", "noise_draws=2"),
}
FLOW_STEPS = (1, 10)

Delays = tuple[str, str]
"""Latency of the features, and of the actions, as `experiments.rollout` takes them."""
SCREEN: tuple[Delays, ...] = (("0", "0"), ("800ms", "0"), ("800ms", "2"))
FINAL: tuple[Delays, ...] = (("0", "0"), ("400ms", "1"), ("800ms", "2"), ("1500ms", "3"))


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    work: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WORK")]
    """Directory for everything it writes (about 8 GB)."""
    episodes: int = 240
    """Simulated episodes to train on, half of them with tissue that moves."""
    steps: int = 2000
    """Optimizer updates of each policy."""
    screened: int = 40
    """Scenarios for every policy."""
    finals: int = 100
    """Scenarios for the best."""
    best: int = 3
    """How many policies go on to those, beside the plain ones of their heads."""
    seed: int = 40
    """Of the first scenarios; the finals have the next."""


@dataclass(frozen=True, order=True)
class Contender:
    """A trained policy and the number of steps in which it samples (None: it does not, or as it was trained)."""

    head: str
    variant: str
    steps: int | None = None

    @property
    def run(self) -> str:
        """Name of its run."""
        return f"{self.head}-{self.variant}"

    @property
    def name(self) -> str:
        """What the table calls it."""
        return self.run if self.steps is None else f"{self.run}, {self.steps} step{'s' * (self.steps > 1)}"

    @property
    def plain(self) -> "Contender":
        """The same without anything made for late features."""
        return Contender(self.head, "plain", self.steps)


CONTENDERS = [
    Contender(head, variant, steps)
    for head in HEADS
    for steps in (FLOW_STEPS if head == "flow" else (None,))
    for variant in VARIANTS
]


def main(arguments: Arguments) -> None:
    """Trains, screens, and judges the best."""
    require("benchmarks.late_features", "torch", "transformers", "tokenizers")
    require_positive(arguments, "episodes", "steps", "screened", "finals", "best")
    work = arguments.work
    train_all(work, arguments.episodes, arguments.steps)
    console = make_console()
    screen = list(roll_out(work / "screen", work, CONTENDERS, SCREEN, arguments.screened, arguments.seed))
    print_table(console, results_table(screen, f"{arguments.screened} breathing scenarios each"))
    best = choose(screen, arguments.best)
    finalists = sorted({*best, *(contender.plain for contender in best)})
    final = list(roll_out(work / "final", work, finalists, FINAL, arguments.finals, arguments.seed + 1))
    print_table(console, results_table(final, f"{arguments.finals} breathing scenarios of another seed"))
    content = {
        "options": {
            "variants": VARIANTS,
            "heads": HEADS,
            "episodes": arguments.episodes,
            "steps": arguments.steps,
        },
        "screen": screen,
        "final": final,
    }
    replace_text(work / "late_features.json", json.dumps(content, indent=2) + "\n")


def train_all(work: Path, num_episodes: int, steps: int) -> None:
    """Simulates, packs, exports and trains, or goes on where that stopped."""
    episodes, data, cache, backbone = (work / name for name in ("episodes", "data", "cache", "backbone"))
    run_command("phantom", episodes, "--episodes", num_episodes, "--breathing-fraction", 0.5)
    run_command("prepare", episodes, "--out", data)
    if not (backbone / "config.json").is_file():
        run_command("tiny_backbone", backbone)
    run_command("export", data, "--backbone", backbone, "--cache", cache)
    for variant, head in itertools.product(VARIANTS, HEADS):
        run_command(
            "train",
            data,
            *(
                "--cache",
                cache,
                "--out",
                work / "runs" / f"{head}-{variant}",
                "--recipe",
                "small",
                "--resume",
            ),
            *("--steps", steps, "--validate-every", steps, "--state-enabled"),
            *joined_options(HEADS[head], VARIANTS[variant]),
        )


def joined_options(*groups: Sequence[str]) -> list[str]:
    """Joins options; --head's values, which several groups may have, behind one --head."""
    joined, fields = [], []
    for group in groups:
        words = iter(group)
        for word in words:
            (fields if word == "--head" else joined).append(next(words) if word == "--head" else word)
    return joined + (["--head", *fields] if fields else [])


def roll_out(
    out: Path, work: Path, contenders: Sequence[Contender], delays: Sequence[Delays], episodes: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Lets policies act with each delay in the same scenarios, those whose reports are there aside.

    Yields what rollout.json has of each, with `contender`, `head`, `variant`, `steps` and `delays`.
    """
    for (features, actions), steps in itertools.product(delays, (None, *FLOW_STEPS)):
        those = [contender for contender in contenders if contender.steps == steps]
        if not those:
            continue
        report = out / f"features-{features}-actions-{actions}" / (f"{steps}-steps" if steps else "all-steps")
        if not (report / "rollout.json").is_file():
            run_command(
                "rollout",
                *(work / "runs" / contender.run for contender in those),
                *("--backbone", work / "backbone", "--out", report, "--episodes", episodes, "--seed", seed),
                *("--shift", "breathing", "--feature-latency", features, "--action-latency", actions),
                *(("--sampling-steps", steps) if steps else ()),
            )
        judged = {run["name"]: run for run in json.loads((report / "rollout.json").read_text())["runs"]}
        for contender in those:
            yield {
                "contender": contender.name,
                **vars(contender),
                "delays": {"features": features, "actions": actions},
                **judged[contender.run],
            }


def choose(results: Sequence[dict[str, Any]], count: int) -> list[Contender]:
    """Returns the policies, plain ones aside, with the highest mean success over the delays, the best first."""
    rates: dict[Contender, list[float]] = {}
    for result in results:
        contender = Contender(result["head"], result["variant"], result["steps"])
        rates.setdefault(contender, []).append(result["success"]["rate"])
    made = [contender for contender in rates if contender.variant != "plain"]
    return sorted(made, key=lambda contender: -statistics.fmean(rates[contender]))[:count]


def results_table(results: Sequence[dict[str, Any]], title: str) -> Table:
    """Tabulates policies by delays: success with its interval, the jump between chunks and the jerk."""
    delays = list(dict.fromkeys(tuple(result["delays"].values()) for result in results))
    table = Table(title=title, title_justify="left")
    table.add_column("policy", no_wrap=True)
    for features, actions in delays:
        table.add_column(f"features {features}, actions {actions}", justify="right")
    for name in dict.fromkeys(result["contender"] for result in results):
        cells = {
            tuple(result["delays"].values()): result for result in results if result["contender"] == name
        }
        table.add_row(name, *(_cell(cells[delay]) if delay in cells else "" for delay in delays))
    table.caption = (
        "success with Wilson's 95 % interval; medians of the jump between chunks, mm, and of jerk, mm/s³"
    )
    return table


def _cell(result: dict[str, Any]) -> str:
    success = result["success"]
    jump, jerk = result["chunk_jump"]["median"], result["jerk"]["median"]
    return (
        f"{success['rate']:.0%} ({success['low']:.0%}–{success['high']:.0%})\n"
        f"{'–' if jump is None else f'{jump:.3f}'}, {'–' if jerk is None else f'{jerk:.0f}'}"
    )


COMMAND = cli.Command("benchmarks.late_features", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
