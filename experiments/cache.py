"""Looks after a feature cache: `python -m experiments.cache stats|verify|gc|merge|import CACHE …`."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated

from rich.table import Table
from tyro.conf import Positional, arg, subcommand

from experiments import cli
from experiments.console import make_console, print_table
from experiments.data import open_dataset
from feature_cache.maintenance import (
    CollectionSummary,
    ProvenanceStatistics,
    collect_garbage,
    damaged_shards,
    merge,
    statistics,
)
from feature_cache.store import FeatureStore
from vla_jax.contracts.checks import NotNegative, problem
from vla_jax.dataset.feature_table import record_keys
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.reference.cached_files import (
    ImportedRecord,
    import_features,
    imported_provenance,
    reference_files,
)
from vla_jax.reference.cached_records import match_reference_files

_NUM_PROMPTS_SHOWN = 3
_NUM_FILES_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Stats:
    """Says what a cache holds: backbones, poolings, resolutions, prompts, sizes."""

    cache: Positional[Path]
    """Feature cache."""


@dataclasses.dataclass(frozen=True)
class Verify:
    """Compares every byte with its checksum; names damaged shards and ends with status 1 if there are any."""

    cache: Positional[Path]
    """Feature cache."""


@dataclasses.dataclass(frozen=True)
class Gc:
    """Removes the least recently used shards until the cache is small enough, and what killed writers left."""

    cache: Positional[Path]
    """Feature cache."""
    limit_gb: NotNegative
    """Size to come down to, in GB (10⁹ bytes)."""
    keep: tuple[Path, ...] = ()
    """Prepared data sets whose features must stay."""
    dry_run: bool = False
    """Say what would be removed, and remove nothing."""
    yes: bool = False
    """Do not ask, even where no data set is named whose features must stay."""


@dataclasses.dataclass(frozen=True)
class Merge:
    """Copies the features of other caches, made on other machines, into this one."""

    cache: Positional[Path]
    """Feature cache that grows; made if it does not exist."""
    sources: Positional[tuple[Path, ...]]
    """Caches to copy from."""


@dataclasses.dataclass(frozen=True)
class Import:
    """Takes over the features that a PyTorch reference run wrote: `<episode>_vlm<index>.pt` files, mean-pooled."""

    cache: Annotated[Positional[Path], arg(metavar="CACHE")]
    """Feature cache that grows; made if it does not exist."""
    reference: Annotated[Positional[Path], arg(metavar="REFERENCE_DIR")]
    """The reference's cache directory."""
    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """Prepared data set of the same episodes; all files can be used where it was prepared with `--alignment index`,
    the reference's way of pairing pictures with actions."""
    backbone: str
    """What to call the backbone that made the files, for instance Qwen/Qwen2.5-VL-3B-Instruct-360x640. The files do
    not say; caches of two backbones need two names."""


Arguments = (
    Annotated[Stats, subcommand("stats")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Gc, subcommand("gc")]
    | Annotated[Merge, subcommand("merge")]
    | Annotated[Import, subcommand("import")]
)


def main(arguments: Stats | Verify | Gc | Merge | Import) -> int | None:
    match arguments:
        case Stats():
            return _stats(arguments)
        case Verify():
            return _verify(arguments)
        case Gc():
            return _gc(arguments)
        case Merge():
            return _merge(arguments)
        case Import():
            return _import(arguments)


def _stats(arguments: Stats) -> None:
    table = Table(
        "features", "backbone", "pooling", "pixels", "records", "shards", "GB", "last used", "prompts"
    )
    found = _statistics(arguments.cache)
    for entry in found:
        table.add_row(*_row(entry))
    table.columns[1].overflow = table.columns[-1].overflow = "fold"
    print_table(make_console(), table, ("pixels", "last used", "shards", "pooling"))
    for entry in found:
        for error in entry.damaged:
            print(error)


def _row(entry: ProvenanceStatistics) -> list[str]:
    made_by = entry.provenance
    pooling = f"grid {made_by.grid}x{made_by.grid}" if made_by.pooling == "grid" else made_by.pooling
    layer = "" if made_by.layer == -1 else f", layer {made_by.layer}"
    adapter = "" if made_by.adapter is None else f" + adapter {made_by.adapter[:8]}"
    prompts = [f"{prompt} ({count})" for prompt, count in list(entry.prompts.items())[:_NUM_PROMPTS_SHOWN]]
    if len(entry.prompts) > _NUM_PROMPTS_SHOWN:
        prompts.append(f"and {len(entry.prompts) - _NUM_PROMPTS_SHOWN} more")
    used = "" if entry.last_used is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
    return [
        entry.name,
        made_by.backbone_name + adapter,
        f"{pooling}{layer}, {made_by.dtype}",
        "imported" if made_by.is_imported else str(made_by.processor.get("size", {}).get("longest_edge", "")),
        str(entry.num_records),
        str(entry.num_shards),
        f"{entry.num_bytes / 1e9:.3f}",
        used,
        "\n".join(prompts),
    ]


def _verify(arguments: Verify) -> int | None:
    _statistics(arguments.cache)
    errors = damaged_shards(arguments.cache)
    for error in errors:
        print(error)
    if errors:
        return 1
    num_shards = sum(entry.num_shards for entry in statistics(arguments.cache))
    print(f"{arguments.cache}: {num_shards} shards, all sound")
    return None


def _gc(arguments: Gc) -> None:
    if problem(NotNegative, arguments.limit_gb):
        raise UserError(f"--limit-gb {arguments.limit_gb:g} is impossible; give a number of GB, 0 or more")
    _statistics(arguments.cache)
    needed = []
    for path in arguments.keep:
        dataset = PackedDataset.open(path)
        chosen = (dataset.records[i] for i in dataset.required_records())
        needed += [(record.prompt, [image.digest for image in record.images]) for record in chosen]
    limit = int(arguments.limit_gb * 1e9)
    planned = collect_garbage(arguments.cache, limit, needed, dry_run=True)
    if arguments.dry_run:
        for path in planned.removed:
            print(f"would remove {path}")
        print(f"{arguments.cache}: {_told_sizes(planned, 'would be removed', 'then')}")
        return
    if planned.removed and not arguments.keep and not arguments.yes:
        _ask(f"{arguments.cache}: remove {len(planned.removed)} files, whoever needs them?")
    summary = collect_garbage(arguments.cache, limit, needed)
    print(f"{arguments.cache}: {_told_sizes(summary, 'removed', 'now')}")
    if summary.num_bytes_after > limit:
        print("the data sets to keep need more than the limit")


def _told_sizes(summary: CollectionSummary, removed: str, now: str) -> str:
    return (
        f"{len(summary.removed)} files {removed}, {summary.num_bytes_before / 1e9:.3f} GB before, "
        f"{summary.num_bytes_after / 1e9:.3f} GB {now}"
    )


def _ask(question: str) -> None:
    """Raises UserError unless somebody at the terminal says yes."""
    answer = input(f"{question} [y/N] ") if sys.stdin.isatty() else ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError(
            "nothing was removed; name the data sets whose features must stay (--keep DATA), or say --yes "
            "(--dry-run shows what would go)"
        )


def _statistics(cache: Path) -> list[ProvenanceStatistics]:
    """Raises UserError where a folder holds no features: it is no cache, or an empty one."""
    found = statistics(cache)
    if not found:
        raise UserError(f"{cache}: holds no features, so it is no feature cache, or an empty one")
    return found


def _merge(arguments: Merge) -> int | None:
    num_damaged = 0
    for source in arguments.sources:
        _statistics(source)
    for source in arguments.sources:
        summary = merge(arguments.cache, source)
        print(f"{source}: {summary.num_copied} shards copied, {summary.num_present} were there already")
        for error in summary.damaged:
            print(f"left out: {error}")
        num_damaged += len(summary.damaged)
    return 1 if num_damaged else None


def _import(arguments: Import) -> None:
    dataset = open_dataset(arguments.data)
    paths = reference_files(arguments.reference)
    provenance = imported_provenance(arguments.backbone)
    match = match_reference_files(dataset, provenance, paths)
    records = [ImportedRecord(paths[file.name], file.key, file.prompt) for file in match.files]
    summary = import_features(arguments.cache, provenance, records)
    left_out = match.unmatched | summary.unusable
    told = [_told(names, f"file(s) {reason}") for reason, names in left_out.items()]
    hint = ""
    if dataset.meta.alignment != "index":
        hint = (
            f"{arguments.data} pairs pictures with actions by time and the reference by index: data prepared with "
            "--alignment index can use all files"
        )
    if not summary.num_written + summary.num_present:
        raise UserError(
            f"{arguments.reference}: none of {len(paths)} files could be used for {arguments.data}: "
            + "; ".join([*told, hint] if hint else told)
        )
    print(
        f"{arguments.cache}: {summary.num_written} records imported, {summary.num_present} already there; "
        f"features {provenance.name()} (mean pooling)"
    )
    for line in told:
        print(f"{arguments.reference}: left out {line}")
    required = dataset.required_records()
    store = FeatureStore.open(arguments.cache, provenance.name())
    absent = required[~store.contains(record_keys(dataset, required, provenance))]
    if len(absent):
        pictures = [str(dataset.records[int(i)].images[0].path) for i in absent]
        print(f"{arguments.data}: {_told(pictures, f'of {len(required)} records have no features')}")
    if hint and (left_out or len(absent)):
        print(hint)


def _told(names: list[str], what: str) -> str:
    more = ", …" if len(names) > _NUM_FILES_SHOWN else ""
    return f"{len(names)} {what}, the first: {', '.join(names[:_NUM_FILES_SHOWN])}{more}"


COMMAND = cli.Command("cache", Arguments, "Looks after a cache of vision-language features.", main)
if __name__ == "__main__":
    COMMAND.run()
