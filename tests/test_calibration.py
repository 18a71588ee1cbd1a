"""Calibration: scipy's regression on resampled pictures, and predictions whose slope and R² are known."""

import numpy as np
import pytest
from scipy import stats

from analysis import calibration as cb
from analysis.intervals import bootstrap_indices


def indices(n: int) -> np.ndarray:
    return bootstrap_indices(n, 200, seed=2)


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    effect = rng.exponential(size=(3, 4))
    truth = effect + rng.standard_t(4, size=(18, 3, 4))
    scores = {"noisy": 0.5 * truth + 0.3 * rng.normal(size=truth.shape) + 0.2, "few": truth[:7] + 0.1}
    return scores, truth, cb.calibration_table(scores, truth, indices)


def fits(x, y):
    """Slope through the origin, slope, intercept, R² of the prediction; by least squares and by definition."""
    origin = np.linalg.lstsq(x[:, None], y, rcond=None)[0][0]
    line = stats.linregress(x, y)
    return [origin, line.slope, line.intercept, 1 - np.mean((y - x) ** 2) / np.var(y)]


def test_two_rows_a_method(study):
    scores, _, table = study
    assert list(table.columns) == list(cb.COLUMNS)
    assert table[["method", "level"]].to_numpy().tolist() == [[m, level] for m in scores for level in cb.LEVELS]
    assert table["n"].tolist() == [18, 18, 7, 7]


@pytest.mark.parametrize("method", ["noisy", "few"])
@pytest.mark.parametrize("level", ["mean", "picture"])
def test_rows_equal_a_loop_over_resamples(study, method, level):
    scores, truth, table = study
    row = table[(table["method"] == method) & (table["level"] == level)].iloc[0]
    n = len(scores[method])

    def of(pictures):
        x, y = scores[method][np.asarray(pictures)], truth[np.asarray(pictures)]
        return fits(x.mean(0).ravel(), y.mean(0).ravel()) if level == "mean" else fits(x.ravel(), y.ravel())

    value = np.array(of(range(n)))
    np.testing.assert_allclose(row[["slope", "slope_with_intercept", "intercept", "r2"]].to_numpy(float), value,
                               atol=1e-10)  # fmt: skip
    replicates = np.array([of(drawn) for drawn in indices(n)])
    low, high = np.percentile(replicates, [2.5, 97.5], axis=0) + value - replicates.mean(axis=0)
    low, high = np.minimum(low, value), np.maximum(high, value)
    np.testing.assert_allclose(row[["slope_ci_low", "slope_ci_high"]].to_numpy(float), [low[0], high[0]], atol=1e-10)
    np.testing.assert_allclose(row[["r2_ci_low", "r2_ci_high"]].to_numpy(float), [low[3], min(high[3], 1)], atol=1e-10)


@pytest.mark.parametrize("method", ["noisy", "few"])
@pytest.mark.parametrize("level", ["mean", "picture"])
def test_without_the_head_of_the_largest_effect(study, method, level):
    scores, truth, table = study
    row = table[(table["method"] == method) & (table["level"] == level)].iloc[0]
    n = len(scores[method])
    sizes = np.abs(truth[:n].mean(axis=0))
    layer, head = (int(row[name]) for name in ("largest_layer", "largest_head"))
    assert sizes[layer, head] == sizes.max()
    kept = [(a, b) for a in range(3) for b in range(4) if (a, b) != (layer, head)]

    def of(pictures):
        x, y = (np.stack([part[np.asarray(pictures), a, b] for a, b in kept], 1) for part in (scores[method], truth))
        return fits(x.mean(0), y.mean(0)) if level == "mean" else fits(x.ravel(), y.ravel())

    value = np.array(of(range(n)))
    replicates = np.array([of(drawn) for drawn in indices(n)])
    low, high = np.percentile(replicates, [2.5, 97.5], axis=0) + value - replicates.mean(axis=0)
    low, high = np.minimum(low, value), np.maximum(high, value)
    for name, at, top in (("slope", 0, np.inf), ("r2", 3, 1.0)):
        found = row[[f"{name}_without_largest{end}" for end in ("", "_ci_low", "_ci_high")]].to_numpy(float)
        np.testing.assert_allclose(found, [value[at], low[at], min(high[at], top)], atol=1e-10)


def test_one_head_can_carry_a_slope():
    """All heads but one are predicted at twice their effect, the large one at half of it."""
    rng = np.random.default_rng(5)
    truth = rng.uniform(0.9, 1.1, (10, 2, 3)) * np.array([[1.0, 2.0, 3.0], [2.0, 1.0, -100.0]])
    predicted = 2 * truth
    predicted[:, 1, 2] = truth[:, 1, 2] / 2
    row = cb.calibration_table({"m": predicted}, truth, indices).iloc[0]
    assert (row["largest_layer"], row["largest_head"]) == (1, 2)
    # Σ t·p / Σ p²: 38 + 100 · 50 over 76 + 50², but for what the pictures add.
    assert row["slope"] == pytest.approx(5038 / 2576, abs=0.01) and row["slope_without_largest"] == pytest.approx(0.5)
    alone = cb.calibration_table({"m": predicted[:, :1, :1]}, truth[:, :1, :1], indices)
    assert alone[[name for name in alone if "without" in name]].isna().all(axis=None)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_known_predictions(study, scale):
    truth = scale * study[1]
    constant = np.broadcast_to(truth.mean(), truth.shape)
    scores = {"itself": truth, "half": truth / 2, "shifted": truth + scale, "mean": constant, "nothing": 0 * truth}
    table = cb.calibration_table(scores, truth, indices).set_index(["method", "level"])
    for level in cb.LEVELS:
        for column in ("slope", "slope_ci_low", "slope_ci_high", "r2", "r2_ci_low", "r2_ci_high"):
            assert table.loc[("itself", level), column] == pytest.approx(1.0)
        assert table.loc[("half", level), ["slope", "slope_with_intercept"]].tolist() == pytest.approx([2.0, 2.0])
        assert table.loc[("shifted", level), "slope_with_intercept"] == pytest.approx(1.0)
        assert table.loc[("shifted", level), "intercept"] == pytest.approx(-scale)
        spread = truth.mean(axis=0) if level == "mean" else truth
        assert table.loc[("shifted", level), "r2"] == pytest.approx(1 - scale**2 / spread.var())
        # The mean of all effects for every head explains nothing, and has no slope of its own.
        assert table.loc[("mean", level), "r2"] == pytest.approx(0.0, abs=1e-9)
        assert table.loc[("mean", level), "slope"] == pytest.approx(1.0)
        assert np.isnan(table.loc[("mean", level), "slope_with_intercept"])
        assert np.isnan(table.loc[("nothing", level), ["slope", "slope_with_intercept"]].tolist()).all()
        assert table.loc[("nothing", level), "r2"] < 0


def test_intervals_hold_the_true_slope():
    rng = np.random.default_rng(1)
    held = []
    for _ in range(60):
        x = rng.normal(size=(5, 6)) + 0.5 * rng.normal(size=(30, 1, 1))
        y = 1.5 * x + rng.standard_t(5, size=x.shape)
        row = cb.calibration_table({"m": x}, y, indices).iloc[1]
        held.append(row["slope_ci_low"] <= 1.5 <= row["slope_ci_high"])
    assert np.mean(held) >= 0.85


def test_r2_does_not_exceed_one_where_few_pictures_are_bad():
    """One picture of twelve is predicted badly: resamples without it are perfect, and moved they would pass 1."""
    rng = np.random.default_rng(3)
    truth = np.tile(rng.normal(size=(3, 4)), (12, 1, 1))
    predicted = truth + 0.5 * rng.normal(size=(3, 4)) * (np.arange(12) == 0)[:, None, None]
    table = cb.calibration_table({"m": predicted}, truth, indices)
    assert table["r2_ci_high"].iloc[0] == 1 > table["r2"].iloc[0] > table["r2_ci_low"].iloc[0]


def test_refuses_in_one_line(study):
    scores, truth, _ = study
    broken = scores["noisy"].copy()
    broken[3, 1, 1] = np.inf
    for message, given in (
        ("a: expected finite", broken), (r"heads \[3, 4\]", broken[:, :2]), ("of 2 pictures", broken[:1]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as refusal:
            cb.calibration_table({"a": given}, truth, indices)
        assert "\n" not in str(refusal.value)
