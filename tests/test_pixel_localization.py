"""Pixel maps against pixel coverage: the ceiling by enumeration, the table from the metrics of single pictures."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from analysis import localization as loc
from analysis import pixel_localization as px
from analysis.intervals import bootstrap_indices, interval_over_images


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, (2, 4, 9)))
def test_ceiling_is_the_best_of_all_unions_of_patches(mask):
    found = px.iou_ceiling(mask, (2, 3))
    patches = [(slice(r, r + 2), slice(c, c + 3)) for r in (0, 2) for c in (0, 3, 6)]
    for image in range(2):
        if not mask[image].any():
            assert np.isnan(found[image])
            continue
        best = 0.0
        for size in range(1, 7):
            for chosen in itertools.combinations(patches, size):
                union = np.zeros((4, 9), dtype=bool)
                for patch in chosen:
                    union[patch] = True
                best = max(best, (union & mask[image]).sum() / (union | mask[image]).sum())
        assert found[image] == pytest.approx(best, abs=1e-12)


def test_ceiling_of_a_thin_line_is_low_and_of_whole_patches_one():
    mask = np.zeros((3, 224, 224), dtype=bool)
    mask[0, 100:102] = True  # two of the fourteen rows of a patch
    mask[1, 14:28, 28:56] = True
    np.testing.assert_allclose(px.iou_ceiling(mask, (16, 16)), [2 / 14, 1.0, np.nan])


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float64, (2, 3, 3), elements=st.integers(0, 4)), hnp.arrays(bool, (2, 6, 9))
)  # fmt: skip
def test_no_map_of_whole_patches_passes_the_ceiling(maps, mask):
    maps = maps + 1.0
    drawn = px.draw_patches(maps, 6, 9)
    for image in range(2):
        if not mask[image].any():
            continue
        for level in np.unique(maps[image]):
            chosen = drawn[image] >= level
            iou = (chosen & mask[image]).sum() / (chosen | mask[image]).sum()
            assert iou <= px.iou_ceiling(mask, (3, 3))[image] + 1e-12


def test_patches_are_drawn_flat_and_in_place():
    drawn = px.draw_patches(np.arange(6.0).reshape(1, 2, 3), 4, 9)
    np.testing.assert_array_equal(drawn[0], np.kron(np.arange(6.0).reshape(2, 3), np.ones((2, 3))))


def test_a_pixel_is_inside_when_half_covered():
    coverage = np.zeros((1, 3, 1, 4), dtype=np.float32)
    coverage[0, 0, 0] = [0.5, 0.49, 0.3, 0.0]
    coverage[0, 1, 0] = [0.0, 0.0, 0.2, 0.6]
    coverage[0, 2] = 1 - coverage[0, :2].sum(axis=0)
    masks = px.pixel_masks(coverage, {"line": (0,), "both": (0, 1)})
    np.testing.assert_array_equal(masks["line"][0, 0], [True, False, False, False])
    np.testing.assert_array_equal(masks["both"][0, 0], [True, False, True, True])


REGIONS = {"chirp": (0,), "text": (1, 2), "none": (3,)}


@pytest.fixture(scope="module")
def scene():
    """20 pictures of 24 x 24 pixels on a 4 x 4 grid; the chirp, missing in two pictures, moves."""
    rng = np.random.default_rng(0)
    labels = np.full((20, 24, 24), 4)
    labels[:, :3, 4:12], labels[:, 21:, 4:9] = 1, 2
    for image in range(18):
        row, col = rng.integers(4, 18), rng.integers(0, 10)
        labels[image, row : row + 2, col : col + 9] = 0
    coverage = (labels[:, None] == np.arange(5)[:, None, None]).astype(np.float32)
    maps = {
        "saliency": rng.exponential(size=(20, 24, 24)).astype(np.float32) + 3 * (labels == 0),
        "rollout": rng.exponential(size=(20, 4, 4)).astype(np.float16),
    }
    return maps, coverage, labels, bootstrap_indices(20, 200, seed=1)


def test_table_is_tidy_ordered_and_complete(scene):
    maps, coverage, _, indices = scene
    table = px.pixel_localization_table(maps, coverage, REGIONS, indices, grid=(4, 4))
    assert list(table.columns) == [
        "method", "region", "metric", "value", "chance", "adjusted", "ci_low", "ci_high", "n", "ceiling",
    ]  # fmt: skip
    keys = list(itertools.product(maps, REGIONS, px.PIXEL_METRICS))
    assert [tuple(row) for row in table[["method", "region", "metric"]].to_numpy()] == keys
    assert (table["n"] == table["region"].map({"chirp": 18, "text": 20, "none": 0})).all()
    absent = table["region"] == "none"
    numbers = ["value", "chance", "adjusted", "ci_low", "ci_high", "ceiling"]
    assert table.loc[absent, numbers].isna().all(axis=None)
    assert table["ceiling"].notna().equals(table["metric"].eq("iou") & ~absent)


def test_table_rows_follow_from_the_pictures(scene, monkeypatch):
    maps, coverage, labels, indices = scene
    monkeypatch.setattr(px, "PICTURES_AT_ONCE", 7)
    table = px.pixel_localization_table(maps, coverage, REGIONS, indices, grid=(4, 4))
    table = table.set_index(["method", "region", "metric"])
    for method, scores in maps.items():
        full = np.kron(scores, np.ones((1, 6, 6))) if scores.shape[1] == 4 else scores
        for region, ids in {"chirp": (0,), "text": (1, 2)}.items():
            mask = np.isin(labels, ids)
            found, chance = loc.per_picture(full, mask), loc.chance_per_picture(full, mask)
            for metric in px.PIXEL_METRICS:
                highest = np.inf if metric == "lift" else 1.0
                row = table.loc[method, region, metric]
                interval = interval_over_images(found[metric], indices, bounds=(0.0, highest))
                expected = [np.nanmean(found[metric]), interval.low, interval.high, np.nanmean(chance[metric])]
                got = row[["value", "ci_low", "ci_high", "chance"]].to_numpy(dtype=float)
                np.testing.assert_allclose(got, expected, rtol=1e-6)
            row = table.loc[method, region, "iou"]
            assert row["adjusted"] == pytest.approx((row["value"] - row["chance"]) / (1 - row["chance"]))
            assert row["ceiling"] == pytest.approx(np.nanmean(px.iou_ceiling(mask, (4, 4))))
            assert np.isnan(table.loc[method, region, "lift"]["adjusted"])
    chirp = table.loc["saliency", "chirp", "iou"]
    assert chirp["value"] > chirp["chance"] + 0.1
    assert abs(table.loc["rollout", "chirp", "iou"]["adjusted"]) < 0.1


def test_a_uniform_map_scores_chance(scene):
    _, coverage, _, indices = scene
    table = px.pixel_localization_table({"flat": np.ones((20, 4, 4))}, coverage, {"text": (1, 2)}, indices, grid=(4, 4))
    table = table.set_index("metric")
    for metric in ("iou", "mass", "lift", "roc_auc"):
        assert table.loc[metric, "value"] == pytest.approx(table.loc[metric, "chance"], abs=1e-12)


def test_refuses_in_one_line(scene):
    maps, coverage, _, indices = scene
    table = px.pixel_localization_table
    spoiled = maps["saliency"].copy()
    spoiled[17, 0, 0] = np.nan
    calls = {
        "expected methods and regions": lambda: table({}, coverage, REGIONS, indices, grid=(4, 4)),
        "coverage: expected values": lambda: table(maps, coverage + 1, REGIONS, indices, grid=(4, 4)),
        "coverage: expected floats": lambda: table(maps, coverage[0], REGIONS, indices, grid=(4, 4)),
        "region chirp: expected indices": lambda: table(maps, coverage, {"chirp": (5,)}, indices, grid=(4, 4)),
        "rollout: expected maps": lambda: table(maps, coverage, REGIONS, indices, grid=(3, 3)),
        "bootstrap indices": lambda: table(maps, coverage, REGIONS, indices[:, 1:], grid=(4, 4)),
        "saliency, pictures from 16: maps: expected finite values, picture 1": lambda: table(
            {"saliency": spoiled}, coverage, REGIONS, indices, grid=(4, 4)
        ),
        "ceiling: expected a grid": lambda: px.iou_ceiling(coverage[:, 0] > 0, (5, 4)),
        "patch maps: expected a grid": lambda: px.draw_patches(np.ones((1, 5, 4)), 24, 24),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message) as refusal:
            call()
        assert "\n" not in str(refusal.value)
