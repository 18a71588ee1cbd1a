"""The trials against direct computation, and on populations whose answer is known."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from analysis import estimate_trials
from analysis.estimate import estimate_effects, estimate_from_outputs
from analysis.estimate_trials import INTERVALS, Redraws, StoredEffects, coverage, redraw
from analysis.intervals import bootstrap_indices, interval_over_images


def stored_effects(seed=0, num_images=40, noise=0.5, with_outputs=True):
    rng = np.random.default_rng(seed)
    changes = rng.normal(size=(num_images, 2, 2, 3))
    residuals = 0.3 * rng.normal(size=(num_images, 3))
    predicted = changes + noise * rng.normal(size=changes.shape)
    effects, scores = ((part * (part + 2 * residuals[:, None, None])).mean(axis=-1) for part in (changes, predicted))
    return StoredEffects(effects, scores, *((changes, predicted, residuals) if with_outputs else ()))


def test_estimators_by_what_was_stored():
    assert list(stored_effects().estimators) == ["scores", "outputs"]
    assert list(stored_effects(with_outputs=False).estimators) == ["scores"]
    stored = stored_effects()
    drawn, swept = np.array([5, 5, 0, 9, 31, 7]), np.array([1, 3, 4])
    pick = drawn[swept]
    np.testing.assert_array_equal(
        stored.estimators["scores"](drawn, swept).pseudo_values,
        estimate_effects(stored.effects[pick], stored.predicted[drawn], swept).pseudo_values,
    )
    np.testing.assert_array_equal(
        stored.estimators["outputs"](drawn, swept).pseudo_values,
        estimate_from_outputs(stored.changes[pick], stored.predicted_changes[drawn], stored.residuals[drawn], swept)[
            0
        ].pseudo_values,
    )


@pytest.mark.parametrize("estimator", ["scores", "outputs"])
def test_redraws_are_unbiased_and_know_the_explained_variance(estimator):
    stored = stored_effects()
    found = redraw(stored, estimator, 12, draws=1500, seed=0)
    assert found.errors.shape == found.reported_r2.shape == (1500, 4)
    assert np.abs(found.bias_z).max() < 3.5
    # The error of the estimate on 12 of 40 pictures, head by head.
    plain = stored.effects.reshape(40, 4).var(axis=0, ddof=1) * (1 / 12 - 1 / 40)
    np.testing.assert_allclose(1 - found.r2, (found.errors**2).mean(axis=0) / plain)
    assert found.r2.min() > 0.3
    # What a sample of 12 reports of itself is noisy, and on the whole too modest.
    assert (found.reported_r2.mean(axis=0) < found.r2).all()
    np.testing.assert_allclose(np.median(found.reported_r2, axis=0), found.r2, atol=0.15)


def test_redraws_hang_on_the_seed_alone():
    stored = stored_effects()
    first, again, other = (redraw(stored, "scores", 8, draws=5, seed=seed).errors for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_kept_bias_by_hand():
    errors = np.array([[1.0, 1.0, 0.0], [3.0, -1.0, 1.0], [-4.0, 0.0, -1.0]])
    reported = np.array([[0.5, -1.0, -1.0], [-0.1, -1.0, 0.0], [0.0, -1.0, 0.2]])
    found = Redraws(errors, reported, np.zeros(3))
    np.testing.assert_array_equal(found.kept(0.0).sum(axis=0), [2, 0, 2])
    bias = found.kept_bias(0.0)
    assert bias[0] == pytest.approx(-1.5 / errors[:, 0].std()) and np.isnan(bias[1]) and bias[2] == 0.0


def test_selection_on_the_sample_biases_and_no_selection_does_not():
    """What `poor_heads` warns of: a high threshold keeps the samples on which the predictor happens to look good."""
    rng = np.random.default_rng(3)
    predicted = np.abs(rng.standard_t(3, (60, 1, 1)))
    effects = predicted + predicted * rng.normal(size=(60, 1, 1))
    found = redraw(StoredEffects(effects, predicted), "scores", 10, draws=4000, seed=0)
    assert np.abs(found.bias_z).max() < 3
    kept = found.kept(0.5)
    assert 0.1 < kept.mean() < 0.9
    assert np.abs(found.kept_bias(0.5)).max() > 5 / np.sqrt(kept.sum())
    np.testing.assert_allclose(found.kept_bias(-np.inf), found.errors.mean(axis=0) / found.errors.std(axis=0))


def test_bca_and_t_are_those_of_the_libraries(monkeypatch):
    stored = stored_effects()
    drawn = np.random.default_rng([5, 13, 0]).integers(0, 40, 20)
    values = stored.effects[drawn]
    truth = stored.effects.mean(axis=0)
    found = coverage(stored, "exact", 20, 20, populations=1, bootstrap_replicates=200, seed=5)
    bca = interval_over_images(values, bootstrap_indices(20, 200, 5), method="bca")
    np.testing.assert_allclose(found.widths["bca"][0], (bca.high - bca.low).ravel(), rtol=1e-9)
    np.testing.assert_array_equal(found.holds["bca"][0], ((bca.low <= truth) & (truth <= bca.high)).ravel())
    limits = ttest_1samp(values.reshape(20, 4), 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(found.widths["student_t"][0], limits.high - limits.low, rtol=1e-9)
    np.testing.assert_allclose(found.errors[0], (values.mean(axis=0) - truth).ravel())
    assert set(found.holds) == {"bca", "student_t"}


def test_estimates_use_pseudo_values_and_the_swept_degrees_of_freedom():
    stored = stored_effects()
    found = coverage(stored, "scores", 24, 8, populations=1, bootstrap_replicates=200, seed=5)
    drawn = np.random.default_rng([5, 13, 0]).integers(0, 40, 24)
    values = stored.estimators["scores"](drawn, np.arange(8)).pseudo_values.reshape(24, 4)
    bca = interval_over_images(values, bootstrap_indices(24, 200, 5), method="bca")
    np.testing.assert_allclose(found.widths["bca"][0], bca.high - bca.low, rtol=1e-9)
    quantile = 2.446911848791681  # of Student's t with 6 degrees of freedom
    np.testing.assert_allclose(found.widths["student_t"][0], 2 * quantile * values.std(axis=0, ddof=1) / np.sqrt(24))
    assert set(found.holds) == set(INTERVALS)


def test_stratified_bootstrap_t_by_a_loop():
    values = np.random.default_rng(6).standard_t(3, (9, 2))
    centred = values - values.mean(axis=0)
    counts = estimate_trials._stratified_counts(9, 4, 50, seed=1)
    np.testing.assert_array_equal(counts[:, :4].sum(axis=1), 4)
    np.testing.assert_array_equal(counts[:, 4:].sum(axis=1), 5)

    def standard_error(column):
        parts = (column[:4], column[4:])
        return np.sqrt(sum((len(part) / 9) ** 2 * part.var(ddof=1) / len(part) for part in parts))

    low, high = estimate_trials._stratified_t(centred, 4, counts)
    for column in range(2):
        ratios = []
        for row in counts.astype(int):
            drawn = np.concatenate([np.repeat(centred[:4, column], row[:4]), np.repeat(centred[4:, column], row[4:])])
            ratios.append(drawn.mean() / standard_error(drawn))
        own = standard_error(centred[:, column])
        expected = [-np.quantile(ratios, 0.975) * own, -np.quantile(ratios, 0.025) * own]
        np.testing.assert_allclose([low[column], high[column]], expected, rtol=1e-9)


def test_one_stratum_is_the_plain_bootstrap_t():
    counts = estimate_trials._stratified_counts(5, 5, 20, seed=1)
    assert counts.shape == (20, 5) and (counts.sum(axis=1) == 5).all()


def test_light_tails_are_covered():
    rng = np.random.default_rng(7)
    effects = rng.normal(size=(400, 2, 2))
    stored = StoredEffects(effects, effects + 0.5 * rng.normal(size=effects.shape))
    for estimator, swept in (("exact", 60), ("scores", 30)):
        found = coverage(stored, estimator, 60, swept, populations=250, bootstrap_replicates=300, seed=0)
        assert np.abs(found.bias_z).max() < 3.5
        for name in found.holds:
            assert found.holds[name].shape == found.widths[name].shape == (250, 4)
            assert 0.90 < found.holds[name].mean() < 0.985, name
