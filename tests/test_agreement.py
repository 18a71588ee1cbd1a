"""Agreement of methods with the truth: scipy, enumerated ties, lists by hand, loops over resamples."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from analysis import agreement as ag
from analysis.intervals import bootstrap_indices

STATISTICS = (
    "spearman", "kendall", "top_5", "top_10", "top_10pct", "rbo",
    "spearman_within_layers", "spearman_layer_means_removed",
)  # fmt: skip
SCORES = hnp.arrays(np.float64, (3, 2, 4), elements=st.integers(-3, 3))


def _one(scores: np.ndarray) -> ag.Ranking:
    """Scores of a single row `[layer head]`, or `[head]` of a single layer."""
    return ag.rank_scores(np.asarray(scores, dtype=np.float64).reshape(1, *np.atleast_2d(scores).shape))


@settings(max_examples=200, deadline=None)
@given(SCORES, SCORES)
def test_spearman_and_kendall_equal_scipy_with_ties(a, b):
    first, second = ag.rank_scores(a), ag.rank_scores(b)
    for row in range(3):
        x, y = a[row].ravel(), b[row].ravel()
        if len(set(x)) == 1 or len(set(y)) == 1:
            assert np.isnan(ag.spearman(first, second)[row]) and np.isnan(ag.kendall(first, second)[row])
            continue
        assert ag.spearman(first, second)[row] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        assert ag.kendall(first, second)[row] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


def test_spearman_and_kendall_equal_scipy_on_many_heads(monkeypatch):
    rng = np.random.default_rng(0)
    a = rng.standard_t(2, size=(30, 12, 6))
    b = a + rng.standard_t(2, size=a.shape)
    monkeypatch.setattr(ag, "_PAIRS_AT_ONCE", 7 * 72 * 71 // 2)
    first, second = ag.rank_scores(a), ag.rank_scores(b)
    for row in range(30):
        x, y = a[row].ravel(), b[row].ravel()
        assert ag.spearman(first, second)[row] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        assert ag.kendall(first, second)[row] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(SCORES, SCORES)
def test_layer_statistics_equal_scipy(a, b):
    within = ag.spearman_within_layers(ag.rank_scores(a), ag.rank_scores(b))
    removed = ag.spearman_layer_means_removed(ag.rank_scores(a), ag.rank_scores(b))
    for row in range(3):
        varied = [la for la in range(2) if np.ptp(a[row, la]) > 0 and np.ptp(b[row, la]) > 0]
        expected = [stats.spearmanr(a[row, la], b[row, la]).statistic for la in varied]
        assert within[row] == pytest.approx(np.mean(expected) if varied else np.nan, abs=1e-12, nan_ok=True)
        x, y = ((4 * s[row] - s[row].sum(axis=1, keepdims=True)).ravel() for s in (a, b))  # exact: integers
        if np.ptp(x) and np.ptp(y):
            assert removed[row] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        else:
            assert np.isnan(removed[row])


def _orders(scores: np.ndarray):
    """Every order of the heads, highest first, that breaks the ties of `scores` in some way."""
    groups = [np.flatnonzero(scores == value) for value in sorted(set(scores), reverse=True)]
    for parts in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield [int(head) for part in parts for head in part]


def _rbo_of_orders(a: list[int], b: list[int], p: float) -> float:
    overlap = [len(set(a[:d]) & set(b[:d])) / d for d in range(1, len(a) + 1)]
    return (1 - p) / p * sum(x * p**d for d, x in enumerate(overlap, 1)) + overlap[-1] * p ** len(a)


@pytest.mark.parametrize("seed", range(6))
def test_overlaps_are_the_mean_over_all_ways_to_break_ties(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, 6).astype(float), rng.integers(0, 3 + seed, 6).astype(float)
    pairs = list(itertools.product(_orders(a), _orders(b)))
    first, second = _one(a), _one(b)
    for k in range(1, 7):
        expected = np.mean([len(set(x[:k]) & set(y[:k])) / k for x, y in pairs])
        assert ag.top_overlap(first, second, k)[0] == pytest.approx(expected, abs=1e-12)
    for p in (0.5, 0.9):
        expected = np.mean([_rbo_of_orders(x, y, p) for x, y in pairs])
        assert ag.rank_biased_overlap(first, second, p)[0] == pytest.approx(expected, abs=1e-12)


def test_rank_biased_overlap_by_hand():
    # a: 0 1 2, b: 1 0 2; overlaps 0, 1, 1: 0.5/0.5 · (0.25 + 0.125) + 0.125
    assert ag.rank_biased_overlap(_one([3.0, 2, 1]), _one([2.0, 3, 1]), 0.5)[0] == pytest.approx(0.5)
    # reversed: overlaps 0, 1/2, 1
    assert ag.rank_biased_overlap(_one([3.0, 2, 1]), _one([1.0, 2, 3]), 0.5)[0] == pytest.approx(0.125 + 0.125 + 0.125)


def test_rows_with_and_without_ties_do_not_disturb_each_other():
    rng = np.random.default_rng(1)
    a, b = rng.random((4, 2, 5)), rng.random((4, 2, 5))
    a[1, 0, 0] = a[1, 1, 3]
    together = ag.statistics(ag.rank_scores(a), ag.rank_scores(b))
    for row in range(4):
        alone = ag.statistics(ag.rank_scores(a[row : row + 1]), ag.rank_scores(b[row : row + 1]))
        for name, value in together.items():
            np.testing.assert_allclose(value[row], alone[name][0], rtol=1e-13)


def test_a_tenth_of_the_heads_is_rounded_up():
    """Two of eleven, not one: the first places differ, the first two are shared."""
    a = np.arange(11.0)[::-1]
    b = a.copy()
    b[[0, 1]] = b[[1, 0]]
    found = ag.statistics(_one(a), _one(b))
    assert found["top_10pct"][0] == 1.0
    b = a.copy()
    b[[1, 2]] = b[[2, 1]]  # of the first two one is shared
    assert ag.statistics(_one(a), _one(b))["top_10pct"][0] == 0.5
    ten = np.arange(10.0)[::-1]
    swapped = ten[[1, 0, *range(2, 10)]]
    assert ag.statistics(_one(ten), _one(swapped))["top_10pct"][0] == 0.0  # one of ten


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float64, (1, 3, 5), elements=st.integers(-20, 20), unique=True), st.integers(0, 2**32 - 1))
def test_perfect_reversed_and_renamed(scores, seed):
    same = ag.statistics(ag.rank_scores(scores), ag.rank_scores(np.arctan(scores)))
    for name in set(STATISTICS) - {"spearman_layer_means_removed"}:
        assert same[name][0] == pytest.approx(1.0), name
    shifted = ag.rank_scores(3 * scores + np.array([5.0, -7.0, 0.5])[:, None])
    assert ag.spearman_layer_means_removed(ag.rank_scores(scores), shifted)[0] > 0.9
    against = ag.statistics(ag.rank_scores(scores), ag.rank_scores(-scores))
    for name in ("spearman", "kendall", "spearman_within_layers", "spearman_layer_means_removed"):
        assert against[name][0] == pytest.approx(-1.0), name
    rng = np.random.default_rng(seed)
    other, order = rng.random(scores.shape), rng.permutation(5)
    found, renamed = (
        ag.statistics(ag.rank_scores(x), ag.rank_scores(y))
        for x, y in ((scores, other), (scores[..., order], other[..., order]))
    )
    for name in STATISTICS:
        assert renamed[name][0] == pytest.approx(found[name][0], abs=1e-12), name


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e12])
def test_the_unit_of_the_scores_does_not_matter(scale):
    rng = np.random.default_rng(9)
    a, b = rng.random((5, 3, 4)), rng.random((5, 3, 4))
    found = ag.statistics(ag.rank_scores(a), ag.rank_scores(b))
    for name, value in ag.statistics(ag.rank_scores(scale * a), ag.rank_scores(b)).items():
        np.testing.assert_allclose(value, found[name], rtol=1e-13)


def test_equal_scores_order_nothing():
    rng = np.random.default_rng(2)
    for value in ag.statistics(ag.rank_scores(np.full((1, 3, 4), 0.1)), ag.rank_scores(rng.random((1, 3, 4)))).values():
        assert np.isnan(value[0])


def test_a_score_of_depth_alone_says_nothing_within_layers():
    rng = np.random.default_rng(3)
    depth = np.repeat(np.arange(12.0)[:, None] / 7, 6, axis=1)
    truth = depth + rng.random((12, 6)) / 10
    found = ag.statistics(_one(depth), _one(truth))
    assert found["spearman"][0] == pytest.approx(stats.spearmanr(depth.ravel(), truth.ravel()).statistic, abs=1e-12)
    assert found["spearman"][0] > 0.9
    assert np.isnan(found["spearman_within_layers"][0]) and np.isnan(found["spearman_layer_means_removed"][0])


def test_halves_are_disjoint_complete_and_reproducible():
    first, second = ag.random_halves(7, 50, seed=4)
    assert (first.sum(axis=1) == 3).all() and (first + second == 1).all()
    np.testing.assert_array_equal(first, ag.random_halves(7, 50, seed=4)[0])
    assert 0.3 < first.mean(axis=0).min() and len({tuple(row) for row in first}) > 20


def test_noise_ceiling_is_the_root_of_the_mean_and_nothing_below_zero():
    assert ag.noise_ceiling(np.array([0.2, 0.3])) == pytest.approx(0.5)
    assert np.isnan(ag.noise_ceiling(np.array([-0.2, 0.1]))) and np.isnan(ag.noise_ceiling(np.array([0.5, np.nan])))


@pytest.fixture(scope="module")
def study():
    """40 pictures, 4 layers of 6 heads, effects with heavy tails."""
    rng = np.random.default_rng(5)
    effect = rng.exponential(size=(4, 6)) - 0.2
    truths = {name: effect + 0.7 * rng.standard_t(3, size=(40, 4, 6)) for name in ("zero", "mean")}
    methods = {
        "same": truths["zero"],
        "noisy": effect + rng.standard_t(3, size=(40, 4, 6)),
        "magnitude": np.abs(effect + rng.standard_t(3, size=(40, 4, 6))).astype(np.float32),
        "layer_index": np.broadcast_to(np.arange(4.0)[None, :, None] / 7, (40, 4, 6)).copy(),
        "flat": np.full((40, 4, 6), 0.1),
    }
    signed = {"same": True, "noisy": True, "magnitude": False, "layer_index": True, "flat": True}
    indices = bootstrap_indices(40, 300, seed=6)
    return methods, truths, signed, indices, ag.agreement_table(methods, truths, signed, indices, 7, num_halves=60)


def test_table_is_tidy_ordered_and_reproducible(study):
    methods, truths, signed, indices, table = study
    assert list(table.columns) == [
        "method", "truth", "estimator", "statistic", "value", "ci_low", "ci_high", "value_cross",
        "cross_ci_low", "cross_ci_high", "noise_ceiling", "n",
    ]  # fmt: skip
    keys = []
    for method in methods:
        seen = ("zero", "mean") if signed[method] else ("zero", "zero_abs", "mean", "mean_abs")
        keys += list(itertools.product([method], seen, ["mean", "trimmed"], STATISTICS))
    assert [tuple(row) for row in table[["method", "truth", "estimator", "statistic"]].to_numpy()] == keys
    assert (table["n"] == 40).all()
    assert table.equals(ag.agreement_table(methods, truths, signed, indices, 7, num_halves=60))


def _row(table, *key):
    names = ["method", "truth", "estimator", "statistic"]
    return table[(table[names] == list(key)).all(axis=1)].iloc[0]


@pytest.mark.parametrize(("estimator", "average"), [("mean", np.mean), ("trimmed", stats.trim_mean)])
@pytest.mark.parametrize(("method", "truth"), [("noisy", "mean"), ("magnitude", "zero_abs")])
def test_rows_equal_a_loop_over_resamples(study, estimator, average, method, truth):
    methods, truths, _, indices, table = study
    scores = methods[method].astype(np.float64)
    target = np.abs(truths["zero"]) if truth == "zero_abs" else truths[truth]

    def aggregate(values, pictures):
        chosen = values[np.asarray(pictures)].reshape(len(pictures), -1)
        return average(chosen, axis=0) if estimator == "mean" else average(chosen, 0.1, axis=0)

    def rho(a, b):
        return stats.spearmanr(aggregate(scores, a), aggregate(target, b)).statistic

    row = _row(table, method, truth, estimator, "spearman")
    everyone = list(range(40))
    assert row["value"] == pytest.approx(rho(everyone, everyone), abs=1e-12)
    replicates = np.array([rho(drawn, drawn) for drawn in indices])
    limits = np.percentile(replicates, [2.5, 97.5]) + row["value"] - replicates.mean()
    np.testing.assert_allclose([row["ci_low"], row["ci_high"]], np.clip(limits, -1, 1), atol=1e-12)
    halves = ag.random_halves(40, 60, seed=7)[0] == 1
    cross = [rho(np.flatnonzero(half), np.flatnonzero(~half)) for half in halves]
    assert row["value_cross"] == pytest.approx(np.mean(cross), abs=1e-12)
    if estimator == "trimmed":
        assert np.isnan(row["cross_ci_low"]) and np.isnan(row["cross_ci_high"])
    else:
        left_out = [
            np.mean([rho([i for i in everyone if half[i] and i != gone], [i for i in everyone if not half[i] and
                     i != gone]) for half in halves[:40]])
            for gone in everyone
        ]  # fmt: skip
        error = np.sqrt(39 * np.var(left_out))
        limits = np.clip(stats.t.interval(0.95, 39, row["value_cross"], error), -1, 1)
        np.testing.assert_allclose([row["cross_ci_low"], row["cross_ci_high"]], limits, atol=1e-12)
    split = [
        stats.spearmanr(aggregate(target, np.flatnonzero(half)), aggregate(target, np.flatnonzero(~half))).statistic
        for half in halves
    ]
    assert row["noise_ceiling"] == pytest.approx(np.sqrt(np.mean(split)), abs=1e-12)


def test_the_truth_agrees_with_itself_up_to_its_own_noise(study):
    table = study[-1]
    same = table[(table["method"] == "same") & (table["truth"] == "zero")]
    np.testing.assert_allclose(same["value"], 1.0)
    np.testing.assert_allclose(same["ci_low"], 1.0)
    np.testing.assert_allclose(same["value_cross"], same["noise_ceiling"] ** 2, atol=1e-12)
    assert (same["value_cross"] < 1).all()


def test_rank_correlations_of_means_alone_have_an_interval_across_pictures(study):
    table = study[-1].dropna(subset=["value_cross"])
    with_one = table["statistic"].str.startswith("spearman") & (table["estimator"] == "mean")
    assert (table[["cross_ci_low", "cross_ci_high"]].notna().all(axis=1) == with_one).all()
    three = {name: found[:3] for name, found in study[0].items()}
    few = ag.agreement_table(three, {"zero": study[1]["zero"][:3]}, study[2], bootstrap_indices(3, 20), 0)
    assert few["value_cross"].notna().any() and few["cross_ci_low"].isna().all()


def test_controls_in_the_table(study):
    table = study[-1]
    numbers = ["value", "ci_low", "ci_high", "value_cross"]
    assert table.loc[table["method"] == "flat", numbers].isna().all(axis=None)
    inside = table["statistic"].isin(["spearman_within_layers", "spearman_layer_means_removed"])
    depth = table["method"] == "layer_index"
    assert table.loc[depth & inside, numbers].isna().all(axis=None)
    assert table.loc[depth & ~inside, numbers].notna().all(axis=None)
    known = table[table["value"].notna()]
    assert ((known["ci_low"] <= known["value"] + 1e-12) & (known["value"] <= known["ci_high"] + 1e-12)).all()
    assert (known["ci_low"] >= -1).all() and (known["ci_high"] <= 1).all()
    assert (known.loc[known["statistic"].isin(ag.OVERLAPS), "ci_low"] >= 0).all()


def test_no_method_beats_the_noise_ceiling_on_the_other_half():
    """Not even the method that knows the true effects, beyond the noise of the halves."""
    rng = np.random.default_rng(8)
    gaps = []
    for _ in range(40):
        effect = rng.normal(size=(3, 8))
        truth = effect + 5 * rng.normal(size=(32, 3, 8))
        oracle = np.broadcast_to(effect, truth.shape)
        table = ag.agreement_table(
            {"oracle": oracle}, {"zero": truth}, {"oracle": True}, bootstrap_indices(32, 2, 0), 0, num_halves=40
        )
        gaps.append((table["value_cross"] - table["noise_ceiling"]).to_numpy())
    assert np.nanmean(gaps) < 0.02


def test_refuses_in_one_line(study):
    methods, truths, signed, indices, _ = study
    broken = methods["noisy"].copy()
    broken[3, 1, 2] = np.nan
    calls = {
        "noisy: expected finite scores, picture 3": ({"noisy": broken}, truths, {"noisy": True}, indices),
        r"noisy: expected scores \[image layer head\]": ({"noisy": broken[1:]}, truths, {"noisy": True}, indices),
        r"missing for \['noisy'\]": ({"noisy": methods["noisy"]}, truths, {}, indices),
        "expected methods and truths": ({}, truths, signed, indices),
        "bootstrap indices": (methods, truths, signed, indices[:, 1:]),
        "truths unlike": (methods, truths | {"zero_abs": truths["zero"]}, signed, indices),
    }
    for message, arguments in calls.items():
        with pytest.raises(ValueError, match=message) as refusal:
            ag.agreement_table(*arguments, 0)
        assert "\n" not in str(refusal.value)
    for wrong in (
        lambda: ag.top_overlap(_one([1.0, 2]), _one([1.0, 2]), 3),
        lambda: ag.top_overlap(_one([1.0]), _one([1.0]), 0),
    ):
        with pytest.raises(ValueError, match="expected k from 1"):
            wrong()
    with pytest.raises(ValueError, match="expected p between"):
        ag.rank_biased_overlap(_one([1.0, 2]), _one([1.0, 2]), 1.0)
