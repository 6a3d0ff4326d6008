"""A-scans of a common-path OCT fibre in the needle, looking ahead of the tip along the needle.

One A-scan has 1025 depth bins of 5 um (in gel), bin 0 at the tip: a range of about 5 mm. Its power is the sum of
- scattering layers: mean power falling as exp(-2 mu z) (single scattering, Beer-Lambert; Faber et al., "Quantitative
  measurement of attenuation coefficients of weakly scattering media using OCT", Opt. Express 12, 2004) times
  fully developed speckle, that is a circular Gaussian field with Rayleigh amplitude (Schmitt, Xiang, Yung, "Speckle in
  optical coherence tomography", J. Biomed. Opt. 4, 1999; Karamata et al., JOSA A 22, 2005);
- interfaces: the axial point spread function (Gaussian) at their depth, attenuated by what lies above;
- the collection's fall with distance for a bare fibre, 1 / (1 + (z / z_R)^2);
- fixed lines of the instrument: the end face, its decaying side lobes, two weak internal reflections;
- the noise floor of a few averaged looks.
The recorded value is logarithmic: VALUE_PER_DB units per dB over a floor of FLOOR_VALUE, which gives the recorded range
(about -28 to 290) and the nearly straight decay that recordings show in tissue.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from experiments.phantom.tissue import GEL_INDEX, MEMBRANE_REFLECTION_DB, TissueLayers

NUM_BINS = 1025
BIN_MM = 0.005
FLOOR_VALUE = 14.0
VALUE_PER_DB = 4.0
VALUE_RANGE = (-28.0, 290.0)
"""The digitiser's limits, in recorded units."""
AXIAL_SIGMA_MM = 0.0075
"""Standard deviation of the amplitude point spread function (about 12 um full width at half maximum in power)."""
BEAM_RADIUS_MM = 0.025
"""A sideways move of the tip by this much replaces the scatterers in the beam."""

_FINE = 4
"""Sub-bins per bin, so that the tissue moves past the tip in steps of 1.25 um."""
_FINE_MM = BIN_MM / _FINE
_RAYLEIGH_RANGE_MM = 1.4
_TOP_MM = -14.0
_BOTTOM_MM = 20.0


def optical_mm(depth_mm: NDArray | float) -> NDArray:
    """Returns the sensor's depth coordinate [gel-equivalent mm] of a geometric depth: air counts 1 / 1.36."""
    depth_mm = np.asarray(depth_mm, dtype=np.float64)
    return np.where(depth_mm < 0, depth_mm / GEL_INDEX, depth_mm)


def mean_tissue_profile(layers: TissueLayers, depth_mm: NDArray) -> tuple[NDArray, NDArray]:
    """Returns the layers' mean backscattered power over the noise floor and the optical depth at gel-equivalent depths.

    depth_mm: [n] ascending, gel-equivalent. Returns power [n] (unattenuated, linear; zero in air) and tau [n], the
    integral of mu from the surface, so that light returns from b to a tip at a with exp(-2 (tau_b - tau_a)).
    """
    power = np.zeros_like(depth_mm)
    optical_depth = np.zeros_like(depth_mm)
    media = layers.scatterers()
    bottoms = [top for top, _ in media[1:]] + [np.inf]
    for (top, medium), bottom in zip(media, bottoms, strict=True):
        inside = (depth_mm >= top) & (depth_mm < bottom)
        power[inside] = 10 ** (medium.backscatter_db / 10)
        optical_depth += medium.attenuation_per_mm * np.clip(depth_mm - top, 0.0, bottom - top)
    return power, optical_depth


def instrument_power() -> NDArray:
    """Returns the fixed pattern [1025] of the sensor: end face, side lobes, internal reflections; linear power."""
    bins = np.arange(NUM_BINS)
    end_face = 66.0 - 0.9 * (bins - 5.0) ** 2
    lobes = 34.0 * np.exp(-bins / 90.0) + 4.0 * np.cos(bins / 3.7) * np.exp(-bins / 60.0)
    lines = np.maximum(11.0 - 0.8 * np.abs(bins - 490), 17.0 - 0.8 * np.abs(bins - 818))
    decibels = np.maximum(np.maximum(end_face, lobes), lines)
    # Minus the floor itself, so that the pattern sinks into the noise without a step.
    return (10 ** (np.maximum(decibels, 0.0) / 10) - 1.0).astype(np.float32)


class AscanModel:
    """The A-scans of one phantom: its scatterers are drawn once and stay fixed in the tissue.

    Pushing the needle slides the same speckle towards bin 0; moving it sideways brings other scatterers into the beam.
    """

    def __init__(self, layers: TissueLayers, rng: np.random.Generator):
        self._depth_mm = np.arange(_TOP_MM, _BOTTOM_MM, _FINE_MM)
        power, self._optical_depth = mean_tissue_profile(layers, self._depth_mm)
        attenuation = np.exp(-self._optical_depth)  # of the amplitude, there and back
        # Two independent fields: their mixtures cos(t) f0 + sin(t) f1 have the same statistics at every angle t.
        self._fields = np.stack([_speckle_field(self._depth_mm.size, rng) for _ in range(2)])
        self._fields *= (np.sqrt(power) * attenuation).astype(np.float32)
        self._interfaces = np.zeros(self._depth_mm.size, np.complex64)
        for depth, peak_db in layers.reflections():
            amplitude = 10 ** (peak_db / 20) * np.exp(-np.interp(depth, self._depth_mm, self._optical_depth))
            shape = np.exp(-0.5 * ((self._depth_mm - depth) / AXIAL_SIGMA_MM) ** 2)
            phase = rng.uniform(0, 2 * np.pi)
            self._interfaces += (amplitude * np.exp(1j * phase) * shape).astype(np.complex64)
        ahead_mm = np.arange(NUM_BINS) * BIN_MM
        self._collection = (1.0 / (1.0 + (ahead_mm / _RAYLEIGH_RANGE_MM) ** 2)).astype(np.float32)
        self._instrument = instrument_power()

    def power(self, tip_mm: NDArray, membrane_mm: NDArray, sideways_mm: float) -> NDArray:
        """Returns the noise-free power over the noise floor for successive tip positions, [t, 1025] float32.

        tip_mm, membrane_mm: [t], geometric depths below the surface of the tip and of the membrane, which may give way.
        sideways_mm: lateral path of the tip so far; it decides which scatterers are in the beam.
        """
        tip = np.clip(optical_mm(tip_mm), _TOP_MM, _BOTTOM_MM - (NUM_BINS + 2) * BIN_MM)
        index = np.rint((tip - _TOP_MM) / _FINE_MM).astype(np.int64)
        start = int(index.min())
        stop = int(index.max()) + NUM_BINS * _FINE
        stop += (start - stop) % _FINE
        angle = sideways_mm / BEAM_RADIUS_MM
        field = np.float32(np.cos(angle)) * self._fields[0, start:stop]
        field += np.float32(np.sin(angle)) * self._fields[1, start:stop]
        field += self._interfaces[start:stop]
        intensity = field.real**2 + field.imag**2
        # [sub-bin, bin]: a window of 1025 bins at any sub-bin is then contiguous.
        by_sub_bin = np.ascontiguousarray(intensity.reshape(-1, _FINE).T)
        first, sub_bin = np.divmod(index - start, _FINE)
        rows = sliding_window_view(by_sub_bin, NUM_BINS, axis=1)[sub_bin, first]
        rows *= np.exp(2 * self._optical_depth[index]).astype(np.float32)[:, None]
        self._add_membrane(rows, tip, optical_mm(membrane_mm))
        rows *= self._collection
        rows += self._instrument
        return rows

    def _add_membrane(self, rows: NDArray, tip: NDArray, membrane: NDArray) -> None:
        """Adds the membrane's reflection to `rows` [t, 1025] at its bin, where it lies ahead of the tip."""
        offsets = np.arange(-8, 9)
        position = (membrane - tip) / BIN_MM
        columns = np.rint(position).astype(np.int64)[:, None] + offsets
        loss = np.interp(membrane, self._depth_mm, self._optical_depth) - np.interp(
            tip, self._depth_mm, self._optical_depth
        )
        peak = 10 ** (MEMBRANE_REFLECTION_DB / 10) * np.exp(-2 * np.maximum(loss, 0.0))
        shape = np.exp(-(((columns - position[:, None]) * BIN_MM / AXIAL_SIGMA_MM) ** 2))
        visible = (columns >= 0) & (columns < NUM_BINS)
        row_index, offset_index = np.nonzero(visible)
        rows[row_index, columns[visible]] += (peak[:, None] * shape)[row_index, offset_index]


def recorded_values(
    power: NDArray, gain: float, offset: float, noise_db: float, rng: np.random.Generator
) -> NDArray:
    """Turns power over the noise floor into recorded values with fresh noise, in place; [t, 1025] float32.

    gain: about 1, scales the logarithm. offset: recorded units, added. noise_db: deviation of the noise.
    """
    noise = rng.standard_normal(power.shape, dtype=np.float32)
    noise *= np.float32(noise_db * np.log(10) / 10)
    np.exp(noise, out=noise)
    power += noise
    np.log(power, out=power)
    power *= np.float32(gain * VALUE_PER_DB * 10 / np.log(10))
    power += np.float32(FLOOR_VALUE + offset)
    return np.clip(power, *VALUE_RANGE, out=power)


def _speckle_field(size: int, rng: np.random.Generator) -> NDArray:
    """Returns a circular Gaussian field of unit mean power, smoothed by the axial point spread function; complex64."""
    white = rng.standard_normal((2, size), dtype=np.float32)
    frequency = np.fft.rfftfreq(size, _FINE_MM)
    transfer = np.exp(-2 * (np.pi * AXIAL_SIGMA_MM * frequency) ** 2)
    smooth = np.fft.irfft(np.fft.rfft(white, axis=1) * transfer, size, axis=1)
    field = smooth[0] + 1j * smooth[1]
    return (field / np.sqrt(np.mean(np.abs(field) ** 2))).astype(np.complex64)
