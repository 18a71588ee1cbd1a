"""The loops in plain Python: by hand, against each other, and against the metrics on arrays."""

import numpy as np
import pytest

from analysis.bench.picture_benchmarks import largest_difference, metrics_at_once, metrics_in_a_loop
from analysis.bench.plain_localization import NAMES, by_definition, by_sorting, dataset_threshold
from analysis.localization import METRICS


@pytest.mark.parametrize("loop", [by_definition, by_sorting])
def test_hand_computed_picture(loop):
    """Values 4 3 3 0 against the first and the third patch; the first is above the threshold, the 3s half taken."""
    found = loop([4.0, 3.0, 3.0, 0.0], [True, False, True, False], 0.3, 0.5)
    assert found == pytest.approx(
        {
            "iou": (1 + 1 / 3) / 2,
            "iou_mass60": (1 + 1 / 3) / 2,
            "iou_quantile": 1.5 / 2.5,
            "mass": 0.7,
            "lift": 1.4,
            "rank_accuracy": 0.75,
            "roc_auc": 3.5 / 4,
            "average_precision": 0.5 + 0.5 * 2 / 3,
            "pointing_game": 1.0,
        }
    )
    assert set(found) == set(NAMES) == set(METRICS)


@pytest.mark.parametrize("loop", [by_definition, by_sorting])
def test_no_region_and_nothing_but_region(loop):
    assert loop([1.0, 2.0], [False, False], 0.5, 1.0) == dict.fromkeys(NAMES)
    whole = loop([1.0, 2.0], [True, True], 0.5, 1.0)
    assert whole["roc_auc"] is None and whole["average_precision"] == whole["mass"] == whole["iou"] == 1.0


def test_dataset_threshold_by_hand():
    """Eight patches in two maps; the highest quarter of them is 6/10 and one of the two 5/10."""
    threshold, tied_share = dataset_threshold([[6.0, 1.0, 1.0, 2.0], [5.0, 5.0, 0.0, 0.0]], top_share=0.25)
    assert (threshold, tied_share) == (0.5, 0.5)


@pytest.mark.parametrize("levels", [4, None])
def test_arrays_equal_both_loops(levels):
    rng = np.random.default_rng(0)
    shape = (12, 2, 2, 5, 6)
    maps = rng.exponential(size=shape) if levels is None else 1.0 + rng.integers(0, levels, shape)
    masks = {"some": rng.random((12, 5, 6)) < 0.3, "few": rng.random((12, 5, 6)) < 0.03}
    masks["few"][:3] = False
    masks["some"][4] = True
    fast = metrics_at_once(maps.astype(np.float32), masks)
    for loop in (by_definition, by_sorting):
        assert largest_difference(fast, metrics_in_a_loop(maps.astype(np.float32), masks, loop)) <= 1e-12
    assert np.isnan(fast[1, :, :3]).all() and np.isnan(fast[0, list(METRICS).index("roc_auc"), 4]).all()


def test_nan_on_one_side_alone_is_a_difference():
    assert largest_difference(np.array([np.nan, 1.0]), np.array([np.nan, 1.5])) == 0.5
    assert largest_difference(np.array([np.nan]), np.array([0.0])) == float("inf")
