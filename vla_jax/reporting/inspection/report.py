"""The inspection of a data set as one HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.reporting.inspection.normalised import Distribution, describe, distributions
from vla_jax.reporting.inspection.overview import Offset, SourceSummary, summarise_sources, time_offsets
from vla_jax.reporting.inspection.plots import camera_figure, normalisation_figure, timeline_figure
from vla_jax.reporting.inspection.prompts import Prompt, prompts_of
from vla_jax.reporting.inspection.samples import (
    Sample,
    Timeline,
    choose_episodes,
    choose_samples,
    look_at,
    timeline,
)
from vla_jax.reporting.page import (
    NOT_DEFINED,
    Cell,
    ReportFigure,
    cards,
    figure,
    number,
    page,
    section,
    table,
)

MAX_TOKENS_SHOWN = 40
DISTRIBUTIONS = "Distributions"


@dataclass(frozen=True)
class EpisodeView:
    """A chosen episode. episode: its number; samples: the chosen ones."""

    episode: int
    timeline: Timeline
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Inspection:
    """All that is shown of a data set."""

    dataset: PackedDataset
    sources: list[SourceSummary]
    offsets: list[Offset]
    distributions: list[Distribution]
    prompts: list[Prompt]
    episodes: list[EpisodeView]


def inspect_dataset(
    dataset: PackedDataset,
    names: Sequence[str] = (),
    *,
    samples_per_episode: int = 4,
    tokenizer: Path | None = None,
) -> Inspection:
    """Looks at a data set: overview, time offsets, normalisation, prompts, and some episodes.

    names: episodes to show; without, one of each source. tokenizer: see `prompts_of`.

    Raises:
        UserError: an episode is not there, or the tokenizer cannot be read.
    """
    views = []
    for index in choose_episodes(dataset, names):
        entry = dataset.episodes[index]
        if entry.tick_start == entry.tick_stop:
            continue  # nothing moved: the overview says so
        samples = [look_at(dataset, tick) for tick in choose_samples(dataset, index, samples_per_episode)]
        views.append(EpisodeView(index, timeline(dataset, index), tuple(samples)))
    return Inspection(
        dataset,
        summarise_sources(dataset),
        time_offsets(dataset, dataset.sample_ticks("all")),
        distributions(dataset),
        prompts_of(dataset, tokenizer),
        views,
    )


def inspection_html(
    inspection: Inspection, figures: Mapping[str, Sequence[ReportFigure]] | None = None
) -> str:
    """Returns the page. figures: of `inspection_figures`, drawn already."""
    figures = inspection_figures(inspection) if figures is None else figures
    dataset = inspection.dataset
    meta = dataset.meta
    lead = (
        f"{meta.action_hz:g} actions per second, alignment by {meta.alignment}, features refreshed every "
        f"{meta.vlm_reuse_count} ticks, sensor windows of {meta.sensor_window_size} rows in {meta.sensor_dtype}."
    )
    parts = [
        _cards(inspection),
        section("Sources", table(SOURCE_HEADER, source_rows(inspection.sources)), SOURCE_NOTE),
        section(
            "Time offsets at the samples' ticks",
            table(OFFSET_HEADER, offset_rows(inspection.offsets)),
            OFFSET_NOTE,
        ),
        section("Prompts", _prompt_table(inspection.prompts), prompt_note(inspection.prompts)),
    ]
    for view in inspection.episodes:
        parts += [_episode(dataset, view), *map(figure, figures[_title(dataset, view)])]
    if inspection.distributions:
        parts.append(
            section(
                "Before and after normalisation",
                table(NORMALISATION_HEADER, normalisation_rows(inspection.distributions)),
                NORMALISATION_NOTE,
            )
        )
        parts += map(figure, figures[DISTRIBUTIONS])
    return page(f"data set {dataset.path.resolve().name}", lead, parts)


SOURCE_HEADER = (
    "source",
    "format",
    "episodes",
    "held out",
    "hours",
    "samples",
    "weight",
    "cameras [Hz]",
    "sensor [Hz]",
    "poses [Hz]",
    "missing (episodes)",
)
SOURCE_NOTE = (
    "Rates are measured: the median period of pictures and poses, the sensor rows that came between ticks."
)


def source_rows(sources: Sequence[SourceSummary]) -> list[list[str | Cell]]:
    """Returns one row per source, under `SOURCE_HEADER`."""
    rows: list[list[str | Cell]] = []
    for source in sources:
        low, high = source.weight
        rates = sorted(set(source.camera_hz.values()))
        cameras = NOT_DEFINED if not rates else number(rates[0])
        if len(rates) > 1 and number(rates[-1]) != cameras:
            cameras = ", ".join(f"{view} {number(hz)}" for view, hz in source.camera_hz.items())
        missing = ", ".join(f"{name} ({count})" for name, count in source.missing.items())
        rows.append(
            [
                source.source,
                source.format,
                str(len(source.episodes)),
                str(source.held_out),
                number(source.hours),
                str(source.samples),
                number(low) if low == high else f"{number(low)}…{number(high)}",
                cameras,
                number(source.sensor_hz),
                number(source.pose_hz),
                missing or NOT_DEFINED,
            ]
        )
    return rows


OFFSET_HEADER = ("age of", "median [ms]", "largest [ms]", "its period [ms]", "later than the tick")
OFFSET_NOTE = (
    "The features' pictures are older than the newest by the ticks since their refresh. Something later than its tick "
    "can only come of alignment by index, which pairs by position as the reference does."
)


def offset_rows(offsets: Sequence[Offset]) -> list[list[str | Cell]]:
    """Returns one row per thing that has an age, under `OFFSET_HEADER`."""
    return [
        [
            offset.what,
            number(offset.median_ms),
            number(offset.max_ms),
            number(offset.period_ms),
            Cell(
                f"{100 * offset.later:.0f} %" if offset.later else NOT_DEFINED, "bad" if offset.later else ""
            ),
        ]
        for offset in offsets
    ]


def prompt_note(prompts: Sequence[Prompt]) -> str:
    """Says what the tokens are, or how to get them."""
    if all(prompt.tokens is None for prompt in prompts):
        return "--tokenizer BACKBONE shows their tokens (its folder or its tokenizer.json)."
    return "Tokens of the prompt alone; chat template and pictures come around it on export."


def _prompt_table(prompts: Sequence[Prompt]) -> str:
    rows = []
    for prompt in prompts:
        rows.append([prompt.text, str(prompt.episodes), Cell(prompt_tokens(prompt), "text")])
    return table(("prompt", "episodes", "tokens"), rows)


def prompt_tokens(prompt: Prompt) -> str:
    """Returns a prompt's tokens with their numbers, cut after the first few; nothing without a tokenizer."""
    if prompt.tokens is None:
        return ""
    pairs = list(zip(prompt.tokens or (), prompt.ids or (), strict=True))
    shown = " ".join(f"{token.strip() or '␣'}·{number_}" for token, number_ in pairs[:MAX_TOKENS_SHOWN])
    return f"{len(pairs)}: {shown}" + (" …" if len(pairs) > MAX_TOKENS_SHOWN else "")


NORMALISATION_HEADER = (
    "",
    "mean",
    "deviation",
    "smallest",
    "largest",
    "mean, after",
    "deviation, after",
    "smallest, after",
    "largest, after",
)
NORMALISATION_NOTE = (
    "All training actions, and the sensor windows of up to 64 training samples. A dimension that never changes (the "
    "gripper) is fed as its distance from the constant."
)


def normalisation_rows(found: Sequence[Distribution]) -> list[list[str | Cell]]:
    """Returns one row per quantity, under `NORMALISATION_HEADER`."""
    return [
        [entry.name, *(number(value) for values in (entry.before, entry.after) for value in describe(values))]
        for entry in found
    ]


SAMPLE_HEADER = ("sample", "at [s]", "features", "reuse step", "shared by ticks", "ages [ms]", "next action")


def sample_rows(samples: Sequence[Sample]) -> list[list[str | Cell]]:
    """Returns one row per sample, under `SAMPLE_HEADER`."""
    return [
        [
            f"tick {sample.tick}",
            f"{sample.seconds:.1f}",
            f"record {sample.record}",
            str(sample.reuse_step),
            str(sample.shared_by),
            ", ".join(f"{name} {age:.0f}" for name, age in sample.ages_ms.items()),
            " ".join(f"{value:+.3f}" for value in sample.actions[0]),
        ]
        for sample in samples
    ]


def _cards(inspection: Inspection) -> str:
    dataset = inspection.dataset
    hours = sum(source.hours for source in inspection.sources)
    with_sensor = sum(entry.has_sensor for entry in dataset.episodes)
    samples = {split: len(dataset.sample_ticks(split)) for split in ("train", "val")}
    return cards(
        [
            ("episodes", str(len(dataset.episodes)), f"{number(hours)} hours of control ticks"),
            ("training samples", str(samples["train"]), f"{samples['val']} held out"),
            (
                "with sensor",
                f"{with_sensor} of {len(dataset.episodes)}",
                f"{len(dataset.sensor)} rows stored",
            ),
            ("views", str(len(dataset.meta.views)), ", ".join(dataset.meta.views) or "no pictures"),
            ("prompts", str(len(inspection.prompts)), f"{len(dataset.required_records())} feature records"),
        ]
    )


def _episode(dataset: PackedDataset, view: EpisodeView) -> str:
    entry = dataset.episodes[view.episode]
    note = f"{entry.path}, {entry.format}, split {entry.split}. " + " ".join(entry.notes)
    content = table(SAMPLE_HEADER, sample_rows(view.samples)) if view.samples else "<p>No samples.</p>"
    return section(_title(dataset, view), content, f"“{entry.instruction}” {note}".strip())


def _title(dataset: PackedDataset, view: EpisodeView) -> str:
    return f"Episode {dataset.episodes[view.episode].name}"


def inspection_figures(inspection: Inspection) -> dict[str, list[ReportFigure]]:
    """Draws the page's figures, under the titles of the sections that they belong to."""
    dataset, found = inspection.dataset, {}
    for view in inspection.episodes:
        title = _title(dataset, view)
        found[title] = []
        if view.samples and dataset.meta.views:
            caption = "The pictures that the chosen samples' features come from."
            drawing = camera_figure(view.samples, dataset.meta.views)
            found[title].append(ReportFigure(f"{title}: cameras", caption, drawing))
        caption = (
            "Force and A-scans as stored, actions per control tick, and the age of what each tick sees: the features' "
            "pictures grow old until the next refresh. Lines: the samples above."
        )
        drawing = timeline_figure(view.timeline, [sample.seconds for sample in view.samples])
        found[title].append(ReportFigure(f"{title}: over time", caption, drawing))
    if inspection.distributions:
        caption = "Left: as recorded; right: as the networks see it. Counts on a logarithmic scale."
        drawing = normalisation_figure(inspection.distributions)
        found[DISTRIBUTIONS] = [ReportFigure(DISTRIBUTIONS, caption, drawing)]
    return found
