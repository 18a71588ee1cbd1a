import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_synth.chirp import (
    BLURRED_VARIANCE_BINS,
    RIDGE_PEAK,
    ChirpParams,
    check_preset,
    chirp_mask,
    noise,
    ridge,
    sample_params,
)


def params(**changes):
    values = dict(
        start_time_s=15.0, duration_s=12.0, start_freq_hz=40.0, end_freq_hz=60.0, chirp_type="linear", noise_level=0.2
    )
    return ChirpParams(**{**values, **changes})


@given(st.integers(0, 2**32 - 1))
def test_default_chirps_stay_inside_and_visible(seed):
    chirp = sample_params(np.random.default_rng(seed))
    assert 0 <= chirp.start_time_s <= 45
    assert 3 <= chirp.duration_s <= 15
    assert 0 <= min(chirp.start_freq_hz, chirp.end_freq_hz) <= max(chirp.start_freq_hz, chirp.end_freq_hz) <= 100
    assert abs(chirp.end_freq_hz - chirp.start_freq_hz) <= 30
    if chirp.chirp_type == "exponential":
        assert min(chirp.start_freq_hz, chirp.end_freq_hz) >= 5
    assert chirp.snr_db > 16
    clean = ridge(chirp)
    assert clean.max() == pytest.approx(RIDGE_PEAK, rel=0.2)
    assert chirp_mask(clean).sum() >= 10


def test_default_end_frequencies_do_not_pile_up():
    rng = np.random.default_rng(0)
    ends = np.array([sample_params(rng).end_freq_hz for _ in range(2000)])
    assert len(np.unique(ends)) == 2000
    assert ((ends == 0) | (ends == 100)).sum() == 0


def test_published_recipe_clips_as_published():
    rng = np.random.default_rng(0)
    drawn = [sample_params(rng, "published") for _ in range(4000)]
    ends = np.array([chirp.end_freq_hz for chirp in drawn])
    on_boundary = ((ends == 0) | (ends == 100)).mean()
    # P(clipped) = 2 * E[(30 - f)+] / (60 * 100) = 2 * 450 / 6000
    assert on_boundary == pytest.approx(0.15, abs=0.02)
    assert min(chirp.duration_s for chirp in drawn) < 1.1


def test_level_ridge_has_the_closed_form():
    chirp = params(start_freq_hz=50.0, end_freq_hz=50.0, start_time_s=60 * 32 / 128, duration_s=60 * 16 / 128)
    clean = ridge(chirp)
    bins = np.arange(128)
    column = RIDGE_PEAK * np.exp(-0.5 * (bins - 63.5) ** 2 / BLURRED_VARIANCE_BINS)
    expected = np.zeros((128, 128))
    expected[:, 32:48] = column[:, None]
    np.testing.assert_allclose(clean, expected, atol=1e-6)


@pytest.mark.parametrize("chirp_type", ["linear", "exponential"])
def test_ridge_runs_from_start_to_end(chirp_type):
    chirp = params(chirp_type=chirp_type, start_time_s=15.0, duration_s=15.0, start_freq_hz=30.0, end_freq_hz=58.0)
    columns = np.flatnonzero(ridge(chirp).any(axis=0))
    assert columns[0] == 32 and columns[-1] == 63
    first, last = ridge(chirp)[:, 32].argmax(), ridge(chirp)[:, 63].argmax()
    assert abs((first + 0.5) * 100 / 128 - 30) < 1.0
    assert abs((last + 0.5) * 100 / 128 - 58) < 1.5


def test_partial_time_bins_count_by_their_share():
    whole = params(start_freq_hz=50.0, end_freq_hz=50.0, start_time_s=15.0, duration_s=6.0)
    later = params(start_freq_hz=50.0, end_freq_hz=50.0, start_time_s=15.0 + 0.25 * 60 / 128, duration_s=6.0)
    np.testing.assert_allclose(ridge(later)[:, 32], 0.75 * ridge(whole)[:, 32], atol=1e-6)


def test_published_ridge_against_a_slow_loop():
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(3)
    for _ in range(20):
        chirp = sample_params(rng, "published")
        grid = np.zeros((128, 128))
        first, length = int(chirp.start_time_s * 128 / 60), int(chirp.duration_s * 128 / 60)
        low, high = int(chirp.start_freq_hz * 1.28), int(chirp.end_freq_hz * 1.28)
        for step in range(length):
            share = step / length
            if chirp.chirp_type == "linear":
                centre = low + (high - low) * share
            else:
                centre = max(low, 1) * (high / max(low, 1)) ** share
            centre = min(max(centre, 0), 127)
            for row in range(128):
                if abs(row - int(centre)) <= 2:
                    grid[row, first + step] = np.exp(-((row - centre) ** 2))
        np.testing.assert_allclose(ridge(chirp, "published"), gaussian_filter(grid, 1), atol=1e-6)


def test_noise_has_the_level_that_the_snr_says():
    # Away from the edges, where the blur reflects and averages less.
    measured = np.std([noise(np.random.default_rng(seed), 0.3)[8:-8, 8:-8] for seed in range(20)])
    chirp = params(noise_level=0.3)
    assert 20 * np.log10(RIDGE_PEAK / measured) == pytest.approx(chirp.snr_db, abs=0.1)


def test_mask_of_no_chirp_is_empty():
    assert not chirp_mask(np.zeros((128, 128), dtype=np.float32)).any()


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="expected one of default, published"):
        check_preset("pretty")
