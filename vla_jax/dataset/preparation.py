"""Packs recorded episodes into a data set: packed in parallel, joined, and put in place atomically.

Everything is built inside DATA, in `.building/`: first the packed episodes, then the joined arrays. Renaming those
into DATA and replacing `dataset.json` are the only steps that others can see, so that a killed run leaves the old
data set, or none, and the next run goes on with the episodes that are complete. Episodes whose files have not changed
are taken from the data set that is already there.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from vla_jax.dataset.episode_packing import pack_episodes
from vla_jax.dataset.joining import JoinedEpisode, cut_out, join
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.packed_dataset import INDEX_FILE, PackedDataset
from vla_jax.dataset.packed_episode import INFO_FILE, PackedEpisode, load_packed
from vla_jax.dataset.schema import Column, registered_columns
from vla_jax.dataset.units import (
    LARGEST_MEDIAN_SPEED,
    LARGEST_RADIANS,
    could_be_radians,
    looks_like_metres,
)
from vla_jax.dataset.window_span import window_span_note
from vla_jax.errors import UserError
from vla_jax.recordings.discovery import EpisodeFolder, choose_by_label, find_episodes
from vla_jax.recordings.findings import EpisodeError, Finding
from vla_jax.recordings.untrusted_files import printable
from vla_jax.storage.locks import LOCK_FILE, locked
from vla_jax.storage.replacing import is_temporary, remove_leftovers, writing_to

BUILDING = ".building"


class FaultyEpisodesError(UserError):
    """Faults refuse the data set; `findings` holds them all."""

    def __init__(self, message: str, findings: Sequence[Finding]) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


@dataclass(frozen=True)
class PrepareResult:
    """A finished data set. findings: faults of the episodes left out, notes on the others.

    num_read: episodes read in this run; the others were taken from the data set that was there.
    notes: on the set as a whole, in lines to show.
    choices: folder → what was taken for what in its episodes, where their format leaves that open.
    """

    dataset: PackedDataset
    findings: tuple[Finding, ...]
    num_read: int
    notes: tuple[str, ...] = ()
    choices: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)

    @property
    def faulty(self) -> list[str]:
        """Episodes left out."""
        return sorted({finding.episode for finding in self.findings if finding.is_fault})


def prepare(sources: Sequence[str], out: str | Path, options: PrepareOptions) -> PrepareResult:
    """Packs all episodes under `sources` into the data set `out`.

    Raises:
        UserError: no episodes; `out` holds something else, or another run writes it; episodes do not go together.
        FaultyEpisodesError: no episode is usable, or `options.strict` and one is not.
    """
    out, columns = Path(out), registered_columns()
    episodes = find_episodes(sources)
    choices, options = _ask_readers(episodes, options)
    prompts = choose_by_label(episodes, options.prompts, "prompt")
    weights = choose_by_label(episodes, options.weights, "weight")
    _check_out(out)
    with _held(out), writing_to(out):
        for folder in (out, out / BUILDING):
            remove_leftovers(folder)
        current = _open_current(out)
        known = _known_episodes(current, options, columns)
        fingerprints = [episode.reader.fingerprint(episode.path) for episode in episodes]
        places = [out / BUILDING / options.episode.name_of(digest, columns) for digest in fingerprints]
        jobs = [
            (episode, options.episode, place, digest, columns)
            for episode, place, digest in zip(episodes, places, fingerprints, strict=True)
            if digest not in known and not (place / INFO_FILE).is_file()
        ]
        findings = pack_episodes(jobs, options.num_workers)
        members, told = [], {finding.episode for finding in findings}
        for i, episode in enumerate(episodes):
            packed = known.get(fingerprints[i]) or load_packed(places[i])
            if packed is None:
                continue
            prompt, weight = prompts[i] or options.instruction, weights[i]
            members.append(JoinedEpisode(episode, packed, prompt, 1.0 if weight is None else weight))
            if str(episode.path) not in told:
                findings += [Finding(str(episode.path), note, False) for note in packed.info.notes]
        _refuse_faults(findings, len(episodes), options.strict)
        try:
            units = _units_note([member.packed for member in members], options.episode)
        except UserError:
            if current is None:
                shutil.rmtree(out / BUILDING, ignore_errors=True)
            raise
        join(out, out / BUILDING, members, options, columns, current)
        shutil.rmtree(out / BUILDING, ignore_errors=True)
    order = {printable(str(episode.path)): i for i, episode in enumerate(episodes)}
    findings.sort(key=lambda finding: order[finding.episode])
    dataset = PackedDataset.open(out)
    notes = [note for note in (units, _split_note(current, dataset), window_span_note(dataset)) if note]
    return PrepareResult(dataset, tuple(findings), len(jobs), tuple(notes), choices)


def _ask_readers(
    episodes: Sequence[EpisodeFolder], options: PrepareOptions
) -> tuple[dict[str, Sequence[tuple[str, str]]], PrepareOptions]:
    """Returns what the readers chose, by folder, and the options with the rate that the episodes say.

    Episodes in one folder are taken to be alike.

    Raises:
        UserError: options do not fit the episodes, or those have different rates.
    """
    choices: dict[str, Sequence[tuple[str, str]]] = {}
    rates: dict[float, Path] = {}
    asked = {(episode.reader.kind, episode.path.parent): episode for episode in episodes}
    for (_, folder), episode in asked.items():
        reader, own = episode.reader, options.episode.own(episode.reader)
        try:
            if chosen := reader.choices(episode.path, own):
                choices[str(folder)] = chosen
            rate = reader.action_hz(episode.path, own)
        except EpisodeError as error:
            raise UserError(f"{folder}: {error}") from error
        if rate is not None:
            rates.setdefault(rate, folder)
    if options.episode.action_hz is not None or not rates:
        return choices, options
    if len(rates) > 1:
        listed = ", ".join(f"{rate:g} Hz in {folder}" for rate, folder in rates.items())
        raise UserError(
            f"actions are recorded at different rates: {listed}; prepare them into data sets of their own"
        )
    return choices, replace(options, episode=replace(options.episode, action_hz=next(iter(rates))))


def _units_note(episodes: Sequence[PackedEpisode], options: EpisodeOptions) -> str | None:
    """Says in what units poses are taken, where that is not told and the angles leave it open.

    Raises:
        UserError: positions look like metres, and nobody says what they are.
    """
    if options.pose_units is None:
        small = [episode for episode in episodes if looks_like_metres(episode, options.rate_hz)]
        if small:
            raise UserError(
                f"{len(small)} of {len(episodes)} episodes move by less than {LARGEST_MEDIAN_SPEED:g} mm a second, as "
                f"if their positions were metres (the first: {small[0].info.name}); say which: --pose-units m, or "
                "--pose-units mm; and for the angles --angle-units rad or deg"
            )
    if options.angle_units is None and could_be_radians(episodes):
        return (
            f"angles are taken as degrees and never leave ±{LARGEST_RADIANS:g}; if they are radians, say --angle-units "
            "rad (or deg, to be asked no more)"
        )
    return None


def _split_note(before: PackedDataset | None, now: PackedDataset) -> str | None:
    """Says that what was held out may be trained on now."""
    if before is None or before.index["split"] == now.index["split"]:
        return None
    chosen = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in before.index["split"].items())
    return f"the held-out episodes are chosen anew; before they were those of {chosen}"


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder for the data set")
    if out.is_dir() and not (out / INDEX_FILE).is_file():
        others = [
            path
            for path in out.iterdir()
            if path.name not in (BUILDING, LOCK_FILE) and not is_temporary(path)
        ]
        # A folder of a first run that was killed between its last two steps holds one content folder.
        if any(not (path / "episodes.json").is_file() for path in others):
            raise UserError(f"{out}: exists and is no data set; choose a new folder for --out")


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Holds the folder against a second `prepare`; leaves nothing behind where nothing was made."""
    with locked(out, busy=f"{out}: another prepare is writing this data set; wait for it"):
        (out / BUILDING).mkdir(exist_ok=True)
        try:
            yield
        finally:
            with suppress(OSError):
                (out / BUILDING).rmdir()


def _refuse_faults(findings: Sequence[Finding], num_episodes: int, strict: bool) -> None:
    faults = [finding for finding in findings if finding.is_fault]
    faulty = sorted({finding.episode for finding in faults})
    if not faulty or (len(faulty) < num_episodes and not strict):
        return
    first = min(faults, key=lambda finding: finding.episode)
    what = "no episode is usable" if len(faulty) == num_episodes else "--strict refuses faulty episodes"
    raise FaultyEpisodesError(
        f"{what}: {len(faulty)} of {num_episodes} have faults; the first: {first.episode}: {first.reason}",
        findings,
    )


def _open_current(out: Path) -> PackedDataset | None:
    try:
        return PackedDataset.open(out)
    except UserError:
        # Missing or unreadable: everything is read anew, and what is there is replaced.
        return None


def _known_episodes(
    current: PackedDataset | None, options: PrepareOptions, columns: Sequence[Column]
) -> dict[str, PackedEpisode]:
    """Returns the episodes of the data set that is there, by fingerprint, if they were packed in the same way."""
    if (
        current is None
        or current.index["episode_options"] != options.episode.to_json()
        or current.columns != tuple(columns)
    ):
        return {}
    return {entry.fingerprint: cut_out(current, i) for i, entry in enumerate(current.episodes)}
