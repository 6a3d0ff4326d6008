"""Looking at a packed data set: what is there, what single samples show, and how old what they see is."""

from vla_jax.reporting.inspection.ages import picture_ages, sensor_ages
from vla_jax.reporting.inspection.normalised import Distribution, distributions
from vla_jax.reporting.inspection.overview import Offset, SourceSummary, summarise_sources, time_offsets
from vla_jax.reporting.inspection.plots import camera_figure, normalisation_figure, timeline_figure
from vla_jax.reporting.inspection.prompts import Prompt, prompts_of
from vla_jax.reporting.inspection.report import Inspection, inspect_dataset, inspection_html
from vla_jax.reporting.inspection.samples import (
    Sample,
    Timeline,
    choose_episodes,
    choose_samples,
    look_at,
    timeline,
)

__all__ = [
    "Distribution",
    "Inspection",
    "Offset",
    "Prompt",
    "Sample",
    "SourceSummary",
    "Timeline",
    "camera_figure",
    "choose_episodes",
    "choose_samples",
    "distributions",
    "inspect_dataset",
    "inspection_html",
    "look_at",
    "normalisation_figure",
    "picture_ages",
    "prompts_of",
    "sensor_ages",
    "summarise_sources",
    "time_offsets",
    "timeline",
    "timeline_figure",
]
