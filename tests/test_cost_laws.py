"""Cost laws: known coefficients found again, terms by hand, and one real point in a process of its own."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.bench import cost_laws
from analysis.bench.cost_laws import (
    disk_bytes,
    fit_law,
    memory_terms,
    operations,
    points,
    table_of,
    time_terms,
    vit_sizes,
)
from analysis.bench.cost_points import SETTINGS, STAGES, Measured, Point, measure, measure_each, random_model
from analysis.bench.operations import backward_macs, forward_macs, shared_sweep_macs, sizes_of
from attribution.batch import MethodSettings
from attribution.methods import METHODS, PIXEL_METHODS

SMALL = Point("attention_pass", pictures=2, blocks=2, heads=2, width=8, image_size=32)


def test_law_finds_its_coefficients_again():
    rng = np.random.default_rng(0)
    terms = np.column_stack([np.ones(8), rng.uniform(1, 100, (8, 2))])
    values = terms @ [0.5, 0.0, 2.0]
    law = fit_law(terms, values, np.arange(8) == 7)
    np.testing.assert_allclose(law.coefficients, [0.5, 0.0, 2.0], atol=1e-9)
    assert max(law.median_error, law.largest_error, law.held_out_error) < 1e-9


def test_held_out_error_is_of_a_fit_that_never_saw_the_point():
    terms = np.array([[1.0], [1.0], [1.0]])
    law = fit_law(terms, np.array([2.0, 2.0, 4.0]), np.array([False, False, True]))
    assert law.held_out_error == pytest.approx(0.5) and law.largest_error == pytest.approx(0.0)
    assert law.coefficients[0] > 2.0  # the projection uses all points
    assert np.isnan(fit_law(terms, np.ones(3), np.zeros(3, dtype=bool)).held_out_error)


@pytest.mark.parametrize(("values", "held_out"), [([1.0, 0.0], [False, False]), ([1.0, 1.0], [True, True])])
def test_law_refuses_what_cannot_be_fitted(values, held_out):
    with pytest.raises(ValueError, match="law: expected positive values"):
        fit_law(np.ones((2, 1)), np.array(values), np.array(held_out))


def test_operations_of_the_stages():
    sizes = sizes_of(random_model(SMALL))
    forward, backward = forward_macs(sizes), backward_macs(sizes)
    dials = MethodSettings(steps=5)
    assert operations("sweep", sizes, dials) == shared_sweep_macs(sizes)
    assert operations("attention_pass", sizes, dials) == forward
    assert operations("layer_pass", sizes, dials) == 6 * (forward + backward)
    forwards, backwards = cost_laws.passes_of_methods(sizes, dials)
    expected = shared_sweep_macs(sizes) + (1 + forwards) * forward + backwards * backward
    assert operations("full_run", sizes, dials) == expected


def test_time_grows_with_pictures_and_passes_hold_at_most_so_many():
    sizes = vit_sizes(2, 3, 12, 5, 16)
    for stage in STAGES:
        one, two = (np.array(time_terms(stage, sizes, pictures, SETTINGS)) for pictures in (1, 2))
        np.testing.assert_allclose(two[1:], 2 * one[1:])
        assert one[0] == two[0] == 1
        few, many = (memory_terms(stage, sizes, pictures, SETTINGS) for pictures in (16, 160))
        assert few[:4] == many[:4] and many[4] == pytest.approx(10 * few[4])
    assert cost_laws.rows_of_a_pass("sweep", sizes, 4, SETTINGS) == 12  # three heads of four pictures
    assert cost_laws.rows_of_a_pass("sweep", sizes, 8, SETTINGS) == 16
    assert cost_laws.rows_of_a_pass("layer_pass", sizes, 2, SETTINGS) == 6  # three nodes
    assert cost_laws.rows_of_a_pass("attention_pass", sizes, 40, SETTINGS) == 16


def test_memory_terms_by_hand():
    """One block, one head of 4 channels, 5 tokens, 4 x 3·16² pixels; MB of float32."""
    sizes = vit_sizes(1, 1, 4, 5, 16)
    terms = memory_terms("attention_pass", sizes, 2, SETTINGS)
    weights = 4 * 16 + 2 * 4 * 16 + 768 * 4 + (4 * 256 + 256 * 128 + 128 * 3)
    np.testing.assert_allclose(np.array(terms[1:]) * 2**18, [weights, 2 * 5 * (32 + 32), 2 * 25, 2 * 4 * 768])


def test_disk_is_what_a_run_stores():
    sizes = vit_sizes(12, 6, 384, 257, 14)
    found = disk_bytes(sizes)
    default = sum(method.default for method in METHODS.values())
    assert found["attention maps of two queries, float32"] == 2 * 4 * 72 * 256
    assert found["effects on the loss and on each target, float64"] == 8 * 72 * 4 + 32
    assert found[f"scores of {default} head methods, float32"] == default * 4 * 72
    assert sum(value for name, value in found.items() if "float16" in name) == 2 * 256 * sum(
        method.default for method in PIXEL_METHODS.values()
    )


def test_points_vary_one_size_at_a_time():
    for quick in (False, True):
        chosen = points(quick)
        assert {point.stage for point in chosen} == set(STAGES)
        usual = {point.stage: point for point in chosen if point.varied == "none"}
        for point in chosen:
            if point.varied not in ("none", "large"):
                size = getattr(point, point.varied)
                assert replace(usual[point.stage], varied=point.varied, **{point.varied: size}) == point
                assert size != getattr(usual[point.stage], point.varied)
    assert {"pictures", "blocks", "heads", "width", "image_size", "large"} < {point.varied for point in points()}


@pytest.fixture(scope="module")
def invented():
    """Every point of the full plan, with seconds and memory that follow a law exactly."""
    rows = []
    for point in points():
        tokens = 1 + (point.image_size // 16) ** 2
        sizes = vit_sizes(point.blocks, point.heads, point.width, tokens, 16)
        seconds = float(np.dot(time_terms(point.stage, sizes, point.pictures, SETTINGS), [0.1, 0.01, 0.5]))
        terms = memory_terms(point.stage, sizes, point.pictures, SETTINGS)
        rows.append(Measured(point, sizes, seconds, float(np.dot(terms, [20.0, 2.0, 1.0, 1.0, 3.0]))))
    return rows


def test_table_keeps_measured_and_projected_apart(invented):
    table = table_of(invented)
    assert list(table.columns) == list(cost_laws.COLUMNS)
    assert list(dict.fromkeys(table["kind"])) == ["measured", "law", "projected"]
    measured, projected = (table[table["kind"] == kind] for kind in ("measured", "projected"))
    assert len(measured) == len(points())
    np.testing.assert_allclose(measured["seconds"], measured["seconds_by_law"], rtol=1e-6)
    np.testing.assert_allclose(measured["peak_mb"], measured["peak_mb_by_law"], rtol=1e-6)
    assert measured[["hours", "model"]].isna().all(axis=None)
    assert projected[["seconds", "peak_mb"]].isna().all(axis=None)


def test_projection_by_hand(invented):
    table = table_of(invented)
    large = table[(table["kind"] == "projected") & (table["model"] == "ViT-L/16") & (table["stage"] == "sweep")]
    assert large["processes"].tolist() == [1, 8, 64] and set(large["pictures"]) == {100_000}
    sizes = vit_sizes(24, 16, 1024, 197, 16)
    for _, found in large.iterrows():
        own = -(-100_000 // found["processes"])
        terms = time_terms("sweep", sizes, own, MethodSettings(), calls=-(-own // 16))
        expected = np.dot(terms, [0.1, 0.01, 0.5]) / 3600
        assert found["hours"] == pytest.approx(expected, rel=1e-6)
    disk = table[(table["stage"] == "disk") & (table["model"] == "ViT-L/16")]
    assert disk["disk_gb"].sum() == pytest.approx(sum(disk_bytes(sizes).values()) * 1e5 / 1e9)


def test_points_too_small_bear_no_projection(invented):
    assert set(table_of(invented, project=False)["kind"]) == {"measured", "law"}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs(stage):
    found = measure(replace(SMALL, stage=stage), threads=1, tries=1)
    assert found.seconds > 0 and found.peak_mb >= 0
    assert found.sizes == vit_sizes(2, 2, 8, 5, 16)


def test_points_are_measured_in_processes_of_their_own():
    small, large = SMALL, replace(SMALL, pictures=400)
    first, second, third = measure_each([small, large, small], threads=1)
    assert [each.point.pictures for each in (first, second, third)] == [2, 400, 2]
    assert second.peak_mb > third.peak_mb  # what the large point needed is not held against the next one


def test_table_reads_back(invented, tmp_path):
    table = table_of(invented)
    table.to_csv(tmp_path / "laws.csv", index=False)
    assert len(pd.read_csv(tmp_path / "laws.csv")) == len(table)
