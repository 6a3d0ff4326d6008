"""The time that a sensor window spans, which is not the same in all formats."""

from vla_jax.dataset.packed_dataset import PackedDataset

# Rates as recorded differ a little between sessions; formats differ by the time between two actions.
ALIKE = 1.5


def window_span_note(dataset: PackedDataset) -> str | None:
    """Says how long windows are where a data set mixes lengths; None where they are all alike.

    A window is a number of rows: 65 rows of a legacy episode, one for each action, are 6.5 s, those of the sensor's own
    650 Hz a tenth of a second.
    """
    rows = dataset.meta.sensor_window_size
    spans: dict[str, list[float]] = {}
    for entry in dataset.episodes:
        if entry.has_sensor and entry.sensor_hz:
            spans.setdefault(entry.format, []).append(rows / entry.sensor_hz)
    found = [span for of_format in spans.values() for span in of_format]
    if not found or max(found) < ALIKE * min(found):
        return None
    listed = ", ".join(
        f"{_seconds(of_format)} in {kind} episodes" for kind, of_format in sorted(spans.items())
    )
    return (
        f"sensor windows of {rows} rows span {listed}: one network reads both (as the reference's does); prepare them "
        "into data sets of their own if that is not meant"
    )


def _seconds(spans: list[float]) -> str:
    shortest, longest = min(spans), max(spans)
    return f"{longest:.2g} s" if longest < ALIKE * shortest else f"{shortest:.2g} to {longest:.2g} s"
