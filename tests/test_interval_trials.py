"""Trials of intervals: kinds against scipy and loops, populations of known mean and tails, the committed table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from scipy import stats

from analysis import interval_trials as tr
from analysis.interval_coverage import NAME, best_kinds, main, read_effects
from analysis.intervals import bootstrap_indices, index_counts, kind_for
from analysis.tables import read_table

ESTIMATE = Path(__file__).resolve().parents[1] / "results" / "estimate"


def test_kinds_equal_scipy_on_the_same_resamples():
    values = np.random.default_rng(0).lognormal(size=(21, 3)) - np.array([0.0, 1.5, 40.0])
    counts = index_counts(bootstrap_indices(21, 400, seed=5), 21)
    for estimator, function in (("mean", np.mean), ("trimmed", lambda x, axis: stats.trim_mean(x, 0.1, axis=axis))):
        found = tr.limits_of(values, counts, estimator, 0.9)
        assert set(found) == set(tr.KINDS[estimator])
        for kind, name in (("bca", "BCa"), ("percentile", "percentile")):
            rng = np.random.default_rng(5)
            expected = stats.bootstrap((values,), function, n_resamples=400, method=name, confidence_level=0.9, rng=rng)
            np.testing.assert_allclose(found[kind], expected.confidence_interval, rtol=1e-8)
    found = tr.limits_of(values, counts, "mean", 0.9)
    t = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    np.testing.assert_allclose(found["student_t"], [t.low, t.high], rtol=1e-9)
    # On the log scale where the plain interval keeps clear of 0: above it, not at all, below it.
    assert t.low[0] > 0 and t.low[1] < 0 < t.high[1] and t.high[2] < 0
    low, high = found["log_t"]
    mean = values.mean(axis=0)
    half = stats.t.ppf(0.95, 20) * stats.sem(values, axis=0) / np.abs(mean)
    np.testing.assert_allclose([low[0], high[0]], mean[0] * np.exp([-half[0], half[0]]))
    np.testing.assert_allclose([low[1], high[1]], [t.low[1], t.high[1]])
    np.testing.assert_allclose([low[2], high[2]], mean[2] * np.exp([half[2], -half[2]]))


def test_bootstrap_t_by_a_loop():
    values = np.random.default_rng(1).lognormal(size=(9, 2))
    indices = bootstrap_indices(9, 200, seed=3)
    low, high = tr.limits_of(values, index_counts(indices, 9))["bootstrap_t"]
    for column in range(2):
        x = values[:, column]
        ratios = [(x[drawn].mean() - x.mean()) / stats.sem(x[drawn], ddof=1) for drawn in indices if np.ptp(x[drawn])]
        ends = x.mean() - np.quantile(ratios, [0.975, 0.025]) * stats.sem(x)
        np.testing.assert_allclose([low[column], high[column]], ends, rtol=1e-9)


def test_a_constant_head_has_its_value_for_an_interval():
    found = tr.limits_of(np.full((12, 1), 0.3), index_counts(bootstrap_indices(12, 20), 12))
    for kind in ("student_t", "bca", "percentile", "log_t"):
        np.testing.assert_allclose(found[kind], 0.3, rtol=1e-14)


def test_tails_have_the_shape_they_were_drawn_with_and_leave_the_means():
    rng = np.random.default_rng(2)
    effects = np.stack([stats.genpareto.rvs(0.3, size=20_000, random_state=rng), rng.exponential(size=20_000)], axis=1)
    population = tr.with_tails(np.concatenate([effects, -2 * effects]))
    # What lies above a threshold of a generalized Pareto distribution has the same shape.
    np.testing.assert_allclose(population.shape, [[0.3, 0.0]] * 2, atol=0.06)
    np.testing.assert_allclose(population.scale[1] / population.scale[0], 2, rtol=0.2)

    few = rng.standard_t(3, size=(40, 5)) + 1
    tailed = tr.with_tails(few)
    assert ((tailed.shape >= 0) & (tailed.shape <= 0.5)).all()
    drawn = tailed.draw(np.random.default_rng(4), 400_000)
    np.testing.assert_allclose(drawn.mean(axis=0), few.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(stats.trim_mean(drawn, 0.1), tailed.target("trimmed"), atol=0.03)
    # Beyond the stored effects on both sides, and the inner eight tenths as they were.
    assert (drawn.max(axis=0) > few.max(axis=0)).all() and (drawn.min(axis=0) < few.min(axis=0)).all()
    inner = np.sort(few, axis=0)[4:-4]
    for head in range(5):
        kept = np.isin(drawn[:, head], inner[:, head])
        assert kept.mean() == pytest.approx(0.8, abs=0.01)
        outside = drawn[~kept, head]
        assert ((outside > inner[-1, head]) | (outside < inner[0, head])).all()


def test_targets_of_the_stored_population():
    effects = np.random.default_rng(5).standard_t(3, size=(23, 3))
    population = tr.Population(effects)
    np.testing.assert_allclose(population.target("mean"), effects.mean(axis=0))
    np.testing.assert_allclose(population.target("trimmed"), stats.trim_mean(np.repeat(effects, 10, axis=0), 0.1))
    drawn = population.draw(np.random.default_rng(0), 50)
    rows = [np.flatnonzero((effects == picture).all(axis=1)) for picture in drawn]
    assert all(len(row) == 1 for row in rows)


@pytest.mark.parametrize("estimator", ["mean", "trimmed"])
def test_light_tails_are_covered_and_misses_fall_on_both_sides(estimator):
    effects = np.random.default_rng(7).normal(size=(600, 4))
    found = tr.trial(tr.Population(effects), 40, estimator=estimator, sets=250, replicates=200, seed=0)
    assert set(found) == set(tr.KINDS[estimator])
    for kind, one in found.items():
        assert 0.90 < one.holds.mean() < 0.985, kind
        missed = 1 - one.holds.mean()
        assert 0.2 * missed < one.below.mean() < 0.8 * missed
    width = 2 * stats.t.ppf(0.975, 39) / np.sqrt(40)
    if estimator == "mean":
        np.testing.assert_allclose(found["student_t"].width, width, rtol=0.06)


def write_run(folder, effects):
    (folder / "scores").mkdir(parents=True)
    save_file({"delta_loss": effects}, folder / "scores" / "ablation_zero.safetensors")
    return folder


def test_the_command_writes_one_row_a_trial(tmp_path, capsys):
    rng = np.random.default_rng(0)
    runs = [str(write_run(tmp_path / name, rng.standard_t(3, size=(24, 3, 2)))) for name in ("one", "two")]
    few = ["--sets", "3", "--trimmed-sets", "2", "--bootstrap-replicates", "20", "--trimmed-replicates", "10"]
    assert main([*runs, "--output-dir", str(tmp_path / "out"), *few]) == 0
    first = (tmp_path / "out" / NAME).read_bytes()
    assert main([*runs, "--output-dir", str(tmp_path / "out"), *few]) == 0
    assert (tmp_path / "out" / NAME).read_bytes() == first
    table = read_table(tmp_path / "out" / NAME)
    assert len(table) == 2 * 2 * 4 * (5 + 3) and not table.duplicated(list(table.columns[:5])).any()
    assert table[table["estimator"] == "mean"]["heads"].eq(6).all()
    assert table[table["estimator"] == "trimmed"]["heads"].eq(1).all()
    keys = zip(table["num_pictures"], table["estimator"], table["interval"], strict=True)
    assert [kind_for(number, estimator) == kind for number, estimator, kind in keys] == list(table["in_use"])
    assert table.groupby(["estimator", "run", "tails", "num_pictures"])["in_use"].sum().eq(1).all()
    assert (table["coverage_min"] <= table["coverage_median"]).all()
    np.testing.assert_allclose(table.loc[table["interval"] == "student_t", "width_ratio"], 1)
    capsys.readouterr()


def test_best_is_the_smallest_gap_over_both_tails_and_level_ones_are_students():
    gaps = {
        16: {"bca": (0.1, 0.1), "student_t": (0.0, 0.15)},
        64: {"bca": (0.0, 0.1), "student_t": (0.2, 0.2)},
        128: {"bca": (0.1, 0.1), "student_t": (0.1, 0.108)},
    }
    rows = [
        ("mean", "a", tails, number, kind, gap)
        for number, kinds in gaps.items()
        for kind, both in kinds.items()
        for tails, gap in zip(("stored", "fitted"), both, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["estimator", "run", "tails", "num_pictures", "interval", "gap_mean"])
    other = table.assign(run="b", gap_mean=1 - table["gap_mean"])
    found = best_kinds(pd.concat([table, other]), "a")
    assert found.to_dict() == {("mean", 16): "student_t", ("mean", 64): "bca", ("mean", 128): "student_t"}


def test_a_table_of_others_is_refused_before_anything_is_computed(tmp_path, capsys, monkeypatch):
    good = write_run(tmp_path / "good", np.random.default_rng(0).normal(size=(24, 2, 2)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / NAME).write_text("mine\n")
    monkeypatch.setattr("analysis.interval_coverage.coverage_rows", None)
    assert main([str(good), "--output-dir", str(tmp_path / "out")]) == 2
    assert "not written by analysis.interval_coverage" in capsys.readouterr().err
    assert (tmp_path / "out" / NAME).read_text() == "mine\n"


def test_bad_input_is_one_line_and_nothing_written(tmp_path, capsys):
    rng = np.random.default_rng(0)
    good = write_run(tmp_path / "good", rng.normal(size=(24, 2, 2)))
    short = write_run(tmp_path / "short", rng.normal(size=(5, 2, 2)))
    for arguments, message in (
        ([tmp_path / "none"], "no such file"),
        ([good, short], "at least 20 images, got [5, 2, 2]"),
        ([good, good], "different names"),
        ([good, "--sets", "1"], "--sets: expected at least 2, got 1"),
    ):
        assert main([*map(str, arguments), "--output-dir", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not (tmp_path / "out" / NAME).exists()


@pytest.mark.parametrize(("tails", "size"), [("stored", 16), ("fitted", 64)])
def test_the_committed_table_is_what_the_stored_effects_give(tails, size):
    """Fewer sets of the same draws: within what 150 of them can differ from all."""
    effects = read_effects(ESTIMATE)
    population = tr.Population(effects) if tails == "stored" else tr.with_tails(effects)
    found = tr.trial(population, size, sets=150, replicates=20, seed=0)["student_t"]
    table = read_table(ESTIMATE / NAME)
    [row] = table.query(
        f"estimator == 'mean' and run == 'estimate' and tails == '{tails}' and num_pictures == {size} "
        "and interval == 'student_t'"
    ).itertuples()
    assert np.median(found.holds) == pytest.approx(row.coverage_median, abs=0.02)
    assert np.abs(found.holds - 0.95).mean() == pytest.approx(row.gap_mean, abs=0.015)
    assert row.heads == 72
