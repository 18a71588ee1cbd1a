import numpy as np
import pytest

from analysis.estimate_cost import compare_costs, sweep_costs


def test_costs_by_layer():
    costs = sweep_costs(4, 2)
    np.testing.assert_allclose(costs[:, 0], [2.7 / 4, 1.7 / 4, 0.7 / 4, 0.0])
    np.testing.assert_array_equal(costs[:, 0], costs[:, 1])
    # The default model: one sweep of all heads costs about 32 forward passes.
    assert 1 + sweep_costs(12, 6).sum() == pytest.approx(32.35)


def test_by_hand():
    # 100 pictures, 20 swept. Head 0: R² 0.75, so 20 / (1 − 0.75·0.8) = 50 pictures; head 1: R² 0, so 20.
    costs = np.array([[3.0, 1.0]])
    found = compare_costs(np.array([[0.75, 0.0]]), num_pictures=100, num_swept=20, head_costs=costs, predictor_cost=2.0)
    np.testing.assert_allclose(found.effective_pictures, [[50.0, 20.0]])
    assert found.estimate == pytest.approx(20 * (1 + 4) + 100 * 2)
    assert found.exact == pytest.approx((50 * 3 + 20 * 1) / 4 * 5)
    assert found.ratio == pytest.approx(212.5 / 300)
    # Head 1 on all pictures: the other 80 cost its own pass and an intact one each.
    mixed = compare_costs(
        np.array([[0.75, 0.0]]),
        num_pictures=100,
        num_swept=20,
        head_costs=costs,
        predictor_cost=2.0,
        is_exact=np.array([[False, True]]),
    )
    np.testing.assert_allclose(mixed.effective_pictures, [[50.0, 100.0]])
    assert mixed.estimate == pytest.approx(300 + 80 * 2)
    assert mixed.exact == pytest.approx((50 * 3 + 100) / 4 * 5)


def test_effective_pictures_are_those_of_equal_variance():
    r2 = np.array([[-0.5, 0.0, 0.3, 0.9, 1.0]])
    found = compare_costs(r2, num_pictures=64, num_swept=8, head_costs=np.ones((1, 5)), predictor_cost=0.0)
    np.testing.assert_allclose(1 / found.effective_pictures, r2 / 64 + (1 - r2) / 8)
    assert found.effective_pictures[0, -1] == pytest.approx(64)


def test_everything_swept_costs_the_sweep():
    found = compare_costs(
        np.full((2, 2), 0.4), num_pictures=10, num_swept=10, head_costs=sweep_costs(2, 2), predictor_cost=0.0
    )
    assert found.ratio == pytest.approx(1.0)


def test_sweeping_a_head_on_all_pictures_never_pays_above_r2_zero():
    """The reason for the threshold of `poor_heads`: at equal intervals it makes the estimate dearer."""
    costs, r2 = sweep_costs(12, 6), np.full((12, 6), 0.87)
    for poor in (0.0, 0.2, 0.5):
        r2[7, 3] = poor
        mark = np.zeros((12, 6), dtype=bool)
        mark[7, 3] = True
        common = {"num_pictures": 640, "num_swept": 64, "head_costs": costs, "predictor_cost": 2.0}
        assert compare_costs(r2, is_exact=mark, **common).ratio < compare_costs(r2, **common).ratio


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_swept": 0}, "expected 0 < num_swept ≤ num_pictures"),
        ({"num_swept": 11}, "got 11, 10 and 1.0"),
        ({"predictor_cost": -1.0}, "no negative predictor_cost"),
        ({"head_costs": np.ones((2, 1))}, r"expected head_costs and is_exact \[1, 2\] as r2, got \[2, 1\]"),
        ({"is_exact": np.ones((2, 1), dtype=bool)}, r"expected head_costs and is_exact \[1, 2\]"),
    ],
)
def test_refuses_what_does_not_fit(changed, message):
    arguments = {"num_pictures": 10, "num_swept": 5, "head_costs": np.ones((1, 2)), "predictor_cost": 1.0} | changed
    with pytest.raises(ValueError, match=message):
        compare_costs(np.zeros((1, 2)), **arguments)
