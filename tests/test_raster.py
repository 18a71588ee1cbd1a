import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_synth.raster import REGIONS, area_weights, coverage_counts, patch_counts, patch_labels


@given(st.integers(1, 60), st.integers(1, 60))
def test_area_weights_average_exactly(source, target):
    weights, row_sum = area_weights(source, target)
    assert (weights.sum(axis=1) == row_sum).all()
    # Every source pixel is used the same amount: the mean is kept.
    assert np.ptp(weights.sum(axis=0)) == 0
    # Second derivation: average after repeating every source pixel `target` times.
    values = np.arange(source, dtype=float) ** 2
    repeated = np.repeat(values, target).reshape(target, source).mean(axis=1)
    np.testing.assert_allclose(weights @ values / row_sum, repeated, rtol=1e-6)


def test_coverage_sums_to_one_and_matches_block_means():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(REGIONS), (480, 640)).astype(np.uint8)
    counts = coverage_counts(labels, 160)  # 3 x 4 blocks
    assert (counts.sum(axis=0) == 12).all()
    blocks = labels.reshape(160, 3, 160, 4).transpose(0, 2, 1, 3).reshape(160, 160, 12)
    for region in range(len(REGIONS)):
        np.testing.assert_array_equal(counts[region], (blocks == region).sum(axis=-1))


def test_patch_labels_follow_the_precedence():
    whole = 1000
    counts = np.zeros((len(REGIONS), 1, 5), dtype=np.int64)
    index = {name: position for position, name in enumerate(REGIONS)}
    background, margin = index["plot_background"], index["margin"]
    counts[background, 0] = [990, 500, 400, 1000 - 49, 949]
    counts[index["chirp"], 0, 0] = 10  # exactly 1 %
    counts[margin, 0, 1] = 500  # a tie goes to the background
    counts[margin, 0, 2] = 600
    counts[index["title"], 0, 3] = 49  # below 5 %
    counts[index["frame"], 0, 4] = 51
    names = [REGIONS[label] for label in patch_labels(counts, whole)[0]]
    assert names == ["chirp", "plot_background", "margin", "plot_background", "frame"]


def test_patch_counts_sum_blocks():
    counts = np.arange(16, dtype=np.int32).reshape(1, 4, 4)
    np.testing.assert_array_equal(patch_counts(counts, 2)[0], [[0 + 1 + 4 + 5, 18], [42, 10 + 11 + 14 + 15]])


@pytest.mark.parametrize("shape", [(224, 224), (640, 480)])
def test_wrong_label_maps_are_refused(shape):
    with pytest.raises(ValueError, match="expected 480 x 640"):
        coverage_counts(np.zeros(shape, dtype=np.uint8), 224)


def test_unknown_regions_are_refused():
    with pytest.raises(ValueError, match="region numbers below 12"):
        coverage_counts(np.full((480, 640), 12, dtype=np.uint8), 224)
