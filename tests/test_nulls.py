"""Exact chance against fractions and scipy; the permutation test against enumeration and under a true null."""

import itertools
from fractions import Fraction
from math import comb, factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis import nulls


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 256).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_hypergeometric_equals_scipy(case):
    total, good, drawn = case
    outcomes, weights = nulls.hypergeometric([total], [good], [drawn])
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-14)
    np.testing.assert_allclose(weights[0], stats.hypergeom.pmf(outcomes[0], total, good, drawn), rtol=1e-10, atol=1e-13)
    assert outcomes[0, 0] == max(0, good + drawn - total) and outcomes[0, -1] == min(good, drawn)


def test_hypergeometric_of_several_cases_is_that_of_each():
    cases = np.array([[10, 3, 4], [256, 40, 200], [5, 5, 2], [7, 0, 3], [50176, 900, 4000]])
    _, together = nulls.hypergeometric(*cases.T)
    for row, case in zip(together, cases, strict=True):
        _, alone = nulls.hypergeometric(*case[:, None])
        np.testing.assert_allclose(row[: alone.shape[1]], alone[0], rtol=1e-12, atol=1e-300)
        assert (row[alone.shape[1] :] == 0).all()


def test_hypergeometric_holds_for_the_pixels_of_a_picture():
    outcomes, weights = nulls.hypergeometric([50176], [3000], [3000])
    assert (weights * outcomes).sum() == pytest.approx(3000 * 3000 / 50176, rel=1e-10)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_expected_iou_is_the_exact_fraction(data):
    total = data.draw(st.integers(1, 40))
    good, drawn = data.draw(st.integers(0, total)), data.draw(st.integers(0, total))
    certain = data.draw(st.integers(0, 5))
    selected, area = certain + drawn + data.draw(st.integers(0, 5)), certain + good + data.draw(st.integers(1, 5))
    exact = sum(
        Fraction(comb(good, hit) * comb(total - good, drawn - hit), comb(total, drawn))
        * Fraction(certain + hit, selected + area - certain - hit)
        for hit in range(max(0, good + drawn - total), min(good, drawn) + 1)
    )
    found = nulls.expected_iou([certain, certain], [total, total], good, drawn, selected, area)
    np.testing.assert_allclose(found, float(exact), rtol=0, atol=1e-12)


def test_expected_iou_does_not_depend_on_how_cases_are_blocked(monkeypatch):
    area = np.arange(1, 61)
    whole = nulls.iou_chance(60, area, area)
    monkeypatch.setattr(nulls, "_MAX_CELLS", 50)
    np.testing.assert_allclose(nulls.iou_chance(60, area, area), whole, rtol=1e-13)


def test_iou_chance_by_hand():
    # N = 4, k = 2: no hit 1/6, one hit 4/6 (IoU 1/3), both 1/6 (IoU 1)
    assert nulls.iou_chance(4, 2, 2) == pytest.approx(4 / 6 / 3 + 1 / 6)
    np.testing.assert_allclose(nulls.iou_chance(16, [1, 16], [1, 16]), [1 / 16, 1])
    assert nulls.iou_chance(4, [[1], [2]], [1, 2, 3]).shape == (2, 3)


def test_average_precision_chance_by_hand():
    # one of two inside: first 1, second 1/2; both inside: 1; none: undefined
    np.testing.assert_allclose(nulls.average_precision_chance(2, [0, 1, 2]), [np.nan, 0.75, 1.0])
    np.testing.assert_allclose(nulls.average_precision_chance(1, [1]), [1.0])


def _moving(count: int, rng: np.random.Generator, rows: int = 6, cols: int = 6) -> np.ndarray:
    mask = np.zeros((count, rows, cols), dtype=bool)
    for image in range(count):
        row, col = rng.integers(0, rows - 1), rng.integers(0, cols - 2)
        mask[image, row : row + 2, col : col + rng.integers(1, 4)] = True
    return mask


def test_p_converges_to_that_of_all_permutations():
    rng = np.random.default_rng(0)
    mask = _moving(6, rng)
    maps = rng.exponential(size=(6, 2, 6, 6)) + 0.5 * mask[:, None]
    mass = maps / maps.sum(axis=(2, 3), keepdims=True)
    found = nulls.permutation_null(maps, mask, seed=1, num_permutations=40_000)
    for head in range(2):
        on_masks = np.array([[mass[i, head][mask[j]].sum() for j in range(6)] for i in range(6)])
        every = [np.mean([on_masks[i, pi[i]] for i in range(6)]) for pi in itertools.permutations(range(6))]
        exact = np.mean(np.array(every) >= np.trace(on_masks) / 6 - 1e-12)
        assert found.p[head] == pytest.approx(exact, abs=0.01) and exact >= 1 / factorial(6)
        assert found.observed[head] == pytest.approx(np.trace(on_masks) / 6)
        assert found.expected[head] == pytest.approx(on_masks.mean(), abs=2e-3)
    assert not found.position_fixed and found.num_images == 6


def test_a_map_that_follows_the_region_has_the_smallest_p():
    rng = np.random.default_rng(2)
    mask = _moving(40, rng)
    found = nulls.permutation_null(mask[:, None] + 0.1, mask, seed=3, num_permutations=999)
    assert found.p[0] == 1 / 1000


def test_a_map_that_stays_is_a_position_prior_not_a_detector():
    rng = np.random.default_rng(4)
    mask = _moving(40, rng)
    stays = np.broadcast_to(mask.mean(axis=0), mask.shape)[:, None]
    found = nulls.permutation_null(stays, mask, seed=5, num_permutations=999)
    assert found.p[0] == 1.0  # every pairing gives the same mean, up to rounding
    assert found.observed[0] > mask.mean()


def test_a_region_that_never_moves_cannot_be_tested():
    rng = np.random.default_rng(6)
    mask = np.zeros((10, 4, 4), dtype=bool)
    mask[:7, 1, 1:3] = True
    found = nulls.permutation_null(rng.random((10, 2, 3, 4, 4)), mask, seed=0)
    assert found.position_fixed and found.num_images == 7 and found.p.shape == (2, 3)
    assert np.isnan(found.p).all() and (found.observed > 0).all()


def test_one_picture_or_none_has_no_p():
    mask = np.zeros((5, 4, 4), dtype=bool)
    none = nulls.permutation_null(np.ones((5, 2, 4, 4)), mask, seed=0)
    assert none.num_images == 0 and not none.position_fixed and np.isnan(none.p).all() and none.p.shape == (2,)
    mask[2, 0, 0] = True
    one = nulls.permutation_null(np.ones((5, 2, 4, 4)), mask, seed=0)
    assert one.num_images == 1 and one.position_fixed and np.isnan(one.p).all()


def test_pictures_without_the_region_and_the_scale_of_maps_do_not_matter():
    rng = np.random.default_rng(7)
    mask = _moving(20, rng)
    maps = rng.random((20, 3, 6, 6))
    mask[15:] = False
    found = nulls.permutation_null(maps, mask, seed=8, num_permutations=199)
    scaled = nulls.permutation_null(
        maps[:15] * rng.uniform(1, 9, (15, 3, 1, 1)), mask[:15], seed=8, num_permutations=199
    )
    np.testing.assert_array_equal(found.p, scaled.p)


def test_random_maps_give_uniform_p_and_few_false_discoveries():
    rng = np.random.default_rng(9)
    p, any_found = [], []
    for seed in range(300):
        mask = _moving(16, rng)
        found = nulls.permutation_null(rng.exponential(size=(16, 20, 6, 6)), mask, seed=seed, num_permutations=999).p
        p.append(found)
        any_found.append((nulls.false_discovery_rate(found) < 0.05).any())
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.01)
    assert stats.kstest(np.ravel(p), "uniform").pvalue > 0.001
    assert np.mean(any_found) <= 0.05  # under a global null the false discovery rate is the share of runs with any


def test_false_discovery_rate_by_hand_and_with_gaps():
    p = np.array([[0.01, np.nan, 0.04], [0.03, 0.5, np.nan]])
    q = nulls.false_discovery_rate(p)
    # sorted 0.01 0.03 0.04 0.5 times 4/rank: 0.04 0.06 0.0533 0.5, then the running minimum from the right
    np.testing.assert_allclose(q, [[0.04, np.nan, 0.16 / 3], [0.16 / 3, 0.5, np.nan]])
    assert np.isnan(nulls.false_discovery_rate(np.full((2, 2), np.nan))).all()


@pytest.mark.parametrize(
    ("maps_shape", "mask"),
    [
        ((3, 2, 4, 4), np.ones((3, 4, 4))),
        ((3, 2, 4, 4), np.ones((3, 4, 5), dtype=bool)),
        ((3, 2, 4, 4), np.ones((2, 4, 4), dtype=bool)),
        ((3, 2, 4, 4), np.ones((4, 4), dtype=bool)),
    ],
)
def test_refuses_maps_and_masks_that_do_not_match(maps_shape, mask):
    with pytest.raises(ValueError, match="permutation null: expected maps") as refusal:
        nulls.permutation_null(np.ones(maps_shape), mask, seed=0)
    assert "\n" not in str(refusal.value)
