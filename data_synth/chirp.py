"""Chirps and their spectrograms: numbers in, a 128 x 128 grid of intensities out.

Takes a numpy Generator or a :class:`ChirpParams`; gives parameters, the noise-free ridge and the noise, all on the
grid ``[frequency bin, time bin]`` with bin (0, 0) at 0 Hz and 0 s. Knows nothing of figures, pixels or models.

Conventions: the grid spans 60 s x 100 Hz, as in the published generator (``chirp-spectrogram-generator`` 0.1.6).
Three presets:

``published``
    The published recipe: a ridge five bins tall that stops one bin short of its end, drawn at whole bins, blurred
    together with the noise; end frequencies clipped to the axis; durations from 1 s.
``default``
    The same picture without its faults: a continuous ridge from the start to the end frequency, drawn at the width
    the published one has after its blur (so what is labelled is what is seen); end frequencies drawn inside the axis;
    durations from 3 s; exponential chirps from 5 Hz up, so that none collapses onto the axis.
``colorbar``
    The chirps and noise of ``default``, to the bit. Only the colour bar differs, and only it is asked for
    (:mod:`data_synth.tasks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

TIME_SPAN_S = 60.0
FREQ_SPAN_HZ = 100.0
NUM_BINS = 128
BLUR_SIGMA_BINS = 1.0
RIDGE_VARIANCE_BINS = 0.5
NOISE_LEVELS = (0.09, 0.3)
MAX_START_TIME_S = 45.0
MAX_DURATION_S = 15.0
MAX_SWEEP_HZ = 30.0
MIN_DURATION_S = {"published": 1.0, "default": 3.0, "colorbar": 3.0}
MIN_EXPONENTIAL_HZ = 5.0
# A level ridge of variance v, blurred with variance s along frequency, keeps sqrt(v / (v + s)) of its height.
BLURRED_VARIANCE_BINS = RIDGE_VARIANCE_BINS + BLUR_SIGMA_BINS**2
RIDGE_PEAK = float(np.sqrt(RIDGE_VARIANCE_BINS / BLURRED_VARIANCE_BINS))

ChirpType = Literal["linear", "exponential"]
Preset = Literal["default", "published", "colorbar"]
PRESETS: tuple[Preset, ...] = ("default", "published", "colorbar")


@dataclass(frozen=True)
class ChirpParams:
    """One chirp: when and at which frequency it starts, where it ends, and how loud the noise around it is."""

    start_time_s: float
    duration_s: float
    start_freq_hz: float
    end_freq_hz: float
    chirp_type: ChirpType
    noise_level: float

    @property
    def snr_db(self) -> float:
        """Height of a level ridge over the standard deviation of the blurred noise, in dB."""
        return float(20 * np.log10(RIDGE_PEAK / (self.noise_level * _NOISE_GAIN)))

    def frequency_hz(self, fraction: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Instantaneous frequency in Hz at a fraction (0 = start, 1 = end) of the duration."""
        fraction = np.asarray(fraction, dtype=np.float64)
        if self.chirp_type == "linear":
            return self.start_freq_hz + (self.end_freq_hz - self.start_freq_hz) * fraction
        return self.start_freq_hz * (self.end_freq_hz / self.start_freq_hz) ** fraction


def _noise_gain() -> float:
    """Standard deviation that the blur leaves of white noise of standard deviation 1."""
    impulse = np.zeros((33, 33))
    impulse[16, 16] = 1.0
    return float(np.sqrt((gaussian_filter(impulse, BLUR_SIGMA_BINS) ** 2).sum()))


_NOISE_GAIN = _noise_gain()


def check_preset(preset: str) -> None:
    """Raise ValueError unless ``preset`` is one of :data:`PRESETS`."""
    if preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")


def sample_params(rng: np.random.Generator, preset: Preset = "default") -> ChirpParams:
    """Draw one chirp. The draws, their order and their number are part of the preset's definition."""
    start_time_s = rng.uniform(0.0, MAX_START_TIME_S)
    duration_s = rng.uniform(MIN_DURATION_S[preset], MAX_DURATION_S)
    if preset == "published":
        start_freq_hz = rng.uniform(0.0, FREQ_SPAN_HZ)
        end_freq_hz = float(np.clip(start_freq_hz + rng.uniform(-MAX_SWEEP_HZ, MAX_SWEEP_HZ), 0.0, FREQ_SPAN_HZ))
        chirp_type: ChirpType = "linear" if rng.random() < 0.5 else "exponential"
    else:
        chirp_type = "linear" if rng.random() < 0.5 else "exponential"
        lowest_hz = 0.0 if chirp_type == "linear" else MIN_EXPONENTIAL_HZ
        start_freq_hz = rng.uniform(lowest_hz, FREQ_SPAN_HZ)
        end_freq_hz = rng.uniform(
            max(lowest_hz, start_freq_hz - MAX_SWEEP_HZ), min(FREQ_SPAN_HZ, start_freq_hz + MAX_SWEEP_HZ)
        )
    noise_level = rng.uniform(*NOISE_LEVELS)
    return ChirpParams(start_time_s, duration_s, start_freq_hz, end_freq_hz, chirp_type, noise_level)


def ridge(params: ChirpParams, preset: Preset = "default") -> NDArray[np.float32]:
    """The noise-free spectrogram ``[frequency bin, time bin]`` as it is seen in the picture, before noise is added."""
    return _published_ridge(params) if preset == "published" else _continuous_ridge(params)


def chirp_mask(clean: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a noise-free spectrogram is above half its peak: the ground truth of "chirp" on the grid."""
    peak = clean.max()
    return clean > 0.5 * peak if peak > 0 else np.zeros(clean.shape, dtype=bool)


def noise(rng: np.random.Generator, noise_level: float) -> NDArray[np.float32]:
    """White Gaussian noise of the given level after the blur, ``[frequency bin, time bin]``."""
    white = rng.standard_normal((NUM_BINS, NUM_BINS), dtype=np.float32)
    return gaussian_filter(white * np.float32(noise_level), sigma=BLUR_SIGMA_BINS)


def _continuous_ridge(params: ChirpParams) -> NDArray[np.float32]:
    bins_per_s, bins_per_hz = NUM_BINS / TIME_SPAN_S, NUM_BINS / FREQ_SPAN_HZ
    start, length = params.start_time_s * bins_per_s, params.duration_s * bins_per_s
    first, last = int(np.floor(start)), min(int(np.ceil(start + length)), NUM_BINS)
    edges = np.arange(first, last + 1, dtype=np.float64)
    left, right = np.maximum(edges[:-1], start), np.minimum(edges[1:], start + length)
    # The part of the chirp inside each time bin is an interval of frequencies: the ridge is full there and falls off
    # beside it, so that steep chirps have no gaps. Bin f is centred at f + 0.5.
    at_left = params.frequency_hz((left - start) / length) * bins_per_hz - 0.5
    at_right = params.frequency_hz((right - start) / length) * bins_per_hz - 0.5
    low, high = np.minimum(at_left, at_right), np.maximum(at_left, at_right)
    bins = np.arange(NUM_BINS, dtype=np.float64)[:, None]
    distance = np.maximum(np.maximum(low - bins, bins - high), 0.0)
    clean = np.zeros((NUM_BINS, NUM_BINS), dtype=np.float32)
    clean[:, first:last] = RIDGE_PEAK * np.exp(-0.5 * distance**2 / BLURRED_VARIANCE_BINS) * (right - left)
    return clean


def _published_ridge(params: ChirpParams) -> NDArray[np.float32]:
    first = int(params.start_time_s * NUM_BINS / TIME_SPAN_S)
    length = int(params.duration_s * NUM_BINS / TIME_SPAN_S)
    start_bin = int(params.start_freq_hz * NUM_BINS / FREQ_SPAN_HZ)
    end_bin = int(params.end_freq_hz * NUM_BINS / FREQ_SPAN_HZ)
    fraction = np.arange(length) / length
    if params.chirp_type == "exponential":
        start_bin = max(start_bin, 1)
        centre = start_bin * (end_bin / start_bin) ** fraction
    else:
        centre = start_bin + (end_bin - start_bin) * fraction
    centre = np.clip(centre, 0, NUM_BINS - 1)
    bins = np.arange(NUM_BINS)[:, None]
    inside = np.abs(bins - centre.astype(int)) <= 2
    clean = np.zeros((NUM_BINS, NUM_BINS))
    clean[:, first : first + length] = inside * np.exp(-0.5 * (bins - centre) ** 2 / RIDGE_VARIANCE_BINS)
    return gaussian_filter(clean, sigma=BLUR_SIGMA_BINS).astype(np.float32)
