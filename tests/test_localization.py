"""Localization metrics against loops, exact fractions and scikit-learn."""

import itertools
from fractions import Fraction
from functools import cache
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from analysis import localization as loc
from analysis.intervals import bootstrap_indices, interval_over_images
from analysis.localization_table import localization_table
from analysis.nulls import false_discovery_rate, permutation_null

RANK_METRICS = ("iou", "rank_accuracy", "roc_auc", "average_precision", "pointing_game")


def _iou_over_tie_orders(values: list[int], inside: list[bool], selected: int) -> float:
    """Mean IoU over every way to complete the highest `selected` patches inside the tie at the boundary."""
    level = sorted(values, reverse=True)[selected - 1]
    higher = [place for place, value in enumerate(values) if value > level]
    tied = [place for place, value in enumerate(values) if value == level]
    area = sum(inside)
    found = [
        sum(inside[place] for place in (*higher, *rest))
        for rest in itertools.combinations(tied, selected - len(higher))
    ]
    return float(sum(Fraction(hits * found.count(hits), selected + area - hits) for hits in set(found)) / len(found))


@cache
def _chance_of_iou(num: int, selected: int, area: int) -> float:
    ways = [
        Fraction(comb(area, hit) * comb(num - area, selected - hit), comb(num, selected))
        * Fraction(hit, selected + area - hit)
        for hit in range(max(0, selected + area - num), min(selected, area) + 1)
    ]
    return float(sum(ways))


def _kept(values: list[int]) -> int:
    """The fewest highest patches that hold three fifths of the mass, in integers."""
    held = 0
    for place, value in enumerate(sorted(values, reverse=True), 1):
        held += value
        if 5 * held >= 3 * sum(values):
            return place
    raise AssertionError("unreachable")


def _loop(values: list[int], inside: list[bool]) -> dict[str, float]:
    """Every per-picture metric of one map and mask by its definition; None where there is no region."""
    num, area = len(values), sum(inside)
    hit = [value for value, is_in in zip(values, inside, strict=True) if is_in]
    out = [value for value, is_in in zip(values, inside, strict=True) if not is_in]
    share_in = sum(hit) / sum(values)
    level = sorted(values, reverse=True)[area - 1]
    higher, tied = sum(v > level for v in values), sum(v == level for v in values)
    drawn = sum(v > level for v in hit) + sum(v == level for v in hit) * (area - higher) / tied
    wins = sum((a > b) + 0.5 * (a == b) for a in hit for b in out)
    precision, recall_before = 0.0, 0.0
    for threshold in sorted(set(values), reverse=True):
        above, above_in = sum(v >= threshold for v in values), sum(v >= threshold for v in hit)
        precision += (above_in / area - recall_before) * above_in / above
        recall_before = above_in / area
    return {
        "iou": _iou_over_tie_orders(values, inside, area),
        "iou_mass60": _iou_over_tie_orders(values, inside, _kept(values)),
        "mass": share_in,
        "lift": share_in / (area / num),
        "rank_accuracy": drawn / area,
        "roc_auc": wins / (len(hit) * len(out)) if out else np.nan,
        "average_precision": precision,
        "pointing_game": sum(v == max(values) for v in hit) / values.count(max(values)),
    }


def _random_pairs(num_images: int, num_heads: int, rows: int, cols: int, seed: int):
    """Maps of small integers (many ties) and masks of every size from empty to full."""
    rng = np.random.default_rng(seed)
    highest = rng.integers(1, 12, (num_images, num_heads, 1, 1))
    maps = rng.integers(0, highest + 1, (num_images, num_heads, rows, cols))
    maps[..., 0, 0] += (maps.sum(axis=(2, 3)) == 0).astype(maps.dtype)
    area = rng.integers(0, rows * cols + 1, num_images)
    mask = (rng.random((num_images, rows * cols)).argsort(axis=1) < area[:, None]).reshape(-1, rows, cols)
    return maps.astype(np.float64), mask


def test_ten_thousand_maps_equal_the_loop():
    maps, mask = _random_pairs(2500, 4, 3, 4, seed=0)
    assert (~mask).all(axis=(1, 2)).sum() > 50 and mask.all(axis=(1, 2)).sum() > 50
    found = loc.per_picture(maps, mask)
    chance = loc.chance_per_picture(maps, mask)
    assert set(found) == set(chance) == set(loc.METRICS)
    for image, head in np.ndindex(2500, 4):
        values, inside = [int(v) for v in maps[image, head].ravel()], mask[image].ravel().tolist()
        if not any(inside):
            assert all(np.isnan(metric[image, head]) for metric in (*found.values(), *chance.values()))
            continue
        for name, expected in _loop(values, inside).items():
            np.testing.assert_allclose(found[name][image, head], expected, rtol=0, atol=1e-12, err_msg=name)
        area = sum(inside)
        expected_chance = {
            "iou": _chance_of_iou(12, area, area),
            "iou_mass60": _chance_of_iou(12, _kept(values), area),
            "mass": area / 12,
            "lift": 1.0,
            "rank_accuracy": area / 12,
            "roc_auc": np.nan if area == 12 else 0.5,
            "pointing_game": area / 12,
        }
        for name, expected in expected_chance.items():
            np.testing.assert_allclose(chance[name][image, head], expected, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("levels", [3, 40, None])
def test_auc_and_average_precision_equal_scikit_learn(levels):
    rng = np.random.default_rng(1)
    maps = rng.random((60, 5, 16, 16)) if levels is None else rng.integers(1, levels, (60, 5, 16, 16)) / 7
    mask = rng.random((60, 16, 16)) < rng.random((60, 1, 1)) * 0.5 + 0.01
    auc, precision = loc.roc_auc(maps, mask), loc.average_precision(maps, mask)
    for image, head in np.ndindex(60, 5):
        truth, score = mask[image].ravel(), maps[image, head].ravel()
        assert auc[image, head] == pytest.approx(roc_auc_score(truth, score), abs=1e-12, rel=0)
        assert precision[image, head] == pytest.approx(average_precision_score(truth, score), abs=1e-12, rel=0)


def test_hand_computed_picture():
    """Values 4 3 3 0 against the first and the third patch."""
    maps, mask = np.array([[[4.0, 3.0], [3.0, 0.0]]]), np.array([[[True, False], [True, False]]])
    found = {name: float(value[0]) for name, value in loc.per_picture(maps, mask).items()}
    assert found["iou"] == pytest.approx((1 + 1 / 3) / 2)  # the second place goes to patch 1 (1/3) or to patch 2 (1)
    assert found["iou_mass60"] == pytest.approx((1 + 1 / 3) / 2)  # 0.4 + 0.3 reaches 0.6
    assert found["mass"] == pytest.approx(0.7)
    assert found["lift"] == pytest.approx(1.4)
    assert found["rank_accuracy"] == pytest.approx(0.75)
    assert found["roc_auc"] == pytest.approx(3.5 / 4)
    assert found["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found["pointing_game"] == 1.0
    chance = {name: float(value[0]) for name, value in loc.chance_per_picture(maps, mask).items()}
    assert chance["iou"] == pytest.approx((4 * 1 / 3 + 1 * 1) / 6)
    assert chance["mass"] == chance["rank_accuracy"] == chance["pointing_game"] == 0.5


def test_average_precision_chance_is_the_mean_over_all_orders():
    for area in range(1, 6):
        mask = np.zeros((120, 5, 1), dtype=bool)
        mask[:, :area] = True
        orders = np.array(list(itertools.permutations(range(1, 6))), dtype=np.float64)[..., None]
        chance = loc.chance_per_picture(orders, mask)["average_precision"]
        np.testing.assert_allclose(chance, loc.average_precision(orders, mask).mean(), rtol=0, atol=1e-12)


def test_quantile_iou_by_hand():
    """Two pictures of four patches, the highest quarter of all eight: the 6 of the first and the 5 of the second."""
    maps = np.array([[[6.0, 1.0], [1.0, 2.0]], [[5.0, 3.0], [1.0, 1.0]]])
    mask = np.array([[[True, True], [False, False]], [[False, True], [False, False]]])
    ranked = loc.rank_maps(maps, top_share=0.25)
    hit, union = loc.quantile_overlap(ranked, mask)
    np.testing.assert_allclose(hit, [1, 0])
    np.testing.assert_allclose(union, [2, 2])
    np.testing.assert_allclose(loc.iou_quantile(ranked, mask), [0.5, 0])
    np.testing.assert_allclose(loc.chance_per_picture(ranked, mask)["iou_quantile"], [0.5 / 2.5, 0.25 / 1.75])


def test_quantile_iou_shares_out_ties():
    """All eight patches tie for two places: each is taken by a quarter."""
    mask = np.array([[[True, True], [False, False]], [[False, False], [False, False]]])
    hit, union = loc.quantile_overlap(loc.rank_maps(np.ones((2, 2, 2)), top_share=0.25), mask)
    assert hit[0] == pytest.approx(0.5) and union[0] == pytest.approx(1 + 2 - 0.5)
    assert np.isnan(hit[1]) and np.isnan(union[1])


def test_quantile_threshold_is_over_all_pictures_of_a_head():
    rng = np.random.default_rng(2)
    maps, mask = rng.random((20, 3, 5, 5)), rng.random((20, 5, 5)) < 0.3
    mask[4] = False
    hit, union = loc.quantile_overlap(loc.rank_maps(maps, top_share=0.1), mask)
    shares = maps / maps.sum(axis=(2, 3), keepdims=True)
    for head in range(3):
        highest = sorted(shares[:, head].ravel(), reverse=True)[:50]
        for image in set(range(20)) - {4}:
            member = shares[image, head] >= highest[-1]
            assert hit[image, head] == (member & mask[image]).sum()
            assert union[image, head] == (member | mask[image]).sum()


@settings(max_examples=60, deadline=None)
@given(mask=hnp.arrays(bool, (3, 4, 5)), seed=st.integers(0, 2**32 - 1))
def test_a_map_of_the_region_is_perfect(mask, seed):
    mask[:, 0, 0] = True
    rng = np.random.default_rng(seed)
    maps = mask * rng.uniform(0.5, 1, mask.shape) + ~mask * rng.uniform(0, 0.1, mask.shape)
    found = loc.per_picture(maps, mask)
    whole = mask.all(axis=(1, 2))
    for name in RANK_METRICS:
        np.testing.assert_allclose(found[name], np.where(whole & (name == "roc_auc"), np.nan, 1.0), atol=1e-12)
    adjusted = loc.adjusted_for_chance(found["iou"], loc.chance_per_picture(maps, mask)["iou"])
    np.testing.assert_allclose(adjusted, np.where(whole, np.nan, 1.0), atol=1e-12)
    np.testing.assert_allclose(loc.mass(mask.astype(float), mask), 1.0)


@settings(max_examples=60, deadline=None)
@given(
    maps=hnp.arrays(np.float64, (2, 3, 3, 4), elements=st.integers(0, 6)),
    mask=hnp.arrays(bool, (2, 3, 4)),
    seed=st.integers(0, 2**32 - 1),
)
def test_patch_order_and_monotone_maps_do_not_matter(maps, mask, seed):
    maps = maps + 1.0
    found = loc.per_picture(maps, mask)
    order = np.random.default_rng(seed).permutation(12)
    moved = maps.reshape(2, 3, 12)[..., order].reshape(maps.shape)
    moved_mask = mask.reshape(2, 12)[:, order].reshape(mask.shape)
    for name, value in loc.per_picture(moved, moved_mask).items():
        np.testing.assert_allclose(value, found[name], rtol=0, atol=1e-12, err_msg=name)
    risen = loc.per_picture(np.exp(3 * maps), mask)
    scaled = loc.per_picture(maps * 0.37, mask)
    for name in RANK_METRICS:
        np.testing.assert_array_equal(risen[name], found[name], err_msg=name)
        np.testing.assert_array_equal(scaled[name], found[name], err_msg=name)


@settings(max_examples=40, deadline=None)
@given(mask=hnp.arrays(bool, (2, 16, 16)), level=st.floats(1e-3, 1e3))
def test_a_uniform_map_scores_chance(mask, level):
    maps = np.full(mask.shape, level)
    found, chance = loc.per_picture(maps, mask), loc.chance_per_picture(maps, mask)
    for name in set(loc.METRICS) - {"average_precision"}:
        np.testing.assert_allclose(found[name], chance[name], rtol=0, atol=1e-12, err_msg=name)
    area = np.where(mask.any(axis=(1, 2)), mask.sum(axis=(1, 2)), np.nan)
    np.testing.assert_allclose(found["average_precision"], area / 256, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(maps=hnp.arrays(np.float32, (2, 2, 4, 4), elements=st.floats(0, 1, width=32)), mask=hnp.arrays(bool, (2, 4, 4)))
def test_values_stay_in_range(maps, mask):
    maps = maps + np.float32(1e-3)
    for name, value in loc.per_picture(maps, mask).items():
        highest = 16.0 if name == "lift" else 1.0
        assert np.isnan(value).all(axis=1).tolist() == [
            not part.any() or (part.all() and name == "roc_auc") for part in mask
        ]
        assert (np.isnan(value) | ((value >= 0) & (value <= highest + 1e-12))).all(), name


def test_axes_between_image_and_row_are_free():
    rng = np.random.default_rng(3)
    maps, mask = rng.random((4, 2, 3, 5, 6)), rng.random((4, 5, 6)) < 0.3
    found = loc.per_picture(maps, mask)
    single = loc.per_picture(maps[:, 1, 2], mask)
    for name, value in found.items():
        assert value.shape == (4, 2, 3)
        np.testing.assert_allclose(value[:, 1, 2], single[name], rtol=1e-14)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.full((2, 3, 3), np.nan), "expected finite values, picture 0"),
        (np.stack([np.ones((3, 3)), np.full((3, 3), -1.0)]), "expected non-negative values, picture 1"),
        (np.stack([np.ones((3, 3)), np.zeros((3, 3))]), "picture 1 is all zero"),
        (np.ones((2, 3, 3), dtype=np.int64), "expected floats"),
        (np.ones((3, 3)), "expected floats"),
        (np.full((2, 3, 3), np.inf), "expected finite values"),
    ],
)
def test_refuses_maps_that_are_none(maps, message):
    with pytest.raises(ValueError, match=message) as refusal:
        loc.iou_area_matched(maps, np.ones((2, 3, 3), dtype=bool))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "mask", [None, np.ones((2, 3, 3)), np.ones((1, 3, 3), dtype=bool), np.ones((2, 3, 4), dtype=bool)]
)
def test_refuses_masks_of_another_size(mask):
    with pytest.raises(ValueError, match=r"mask: expected bool \[image row col\]"):
        loc.mass(np.ones((2, 3, 3)), mask)


def test_refuses_a_grid_turned_on_its_side_and_wrong_shares():
    with pytest.raises(ValueError, match="expected a grid"):
        loc.mass(np.ones((2, 3, 4)), np.ones((2, 4, 3), dtype=bool))
    for share in (0, 1.5):
        for name in ("top_share", "kept_share"):
            with pytest.raises(ValueError, match="maps: expected shares above 0 and up to 1"):
                loc.rank_maps(np.ones((2, 3, 4)), **{name: share})
    with pytest.raises(ValueError, match="patch labels"):
        loc.region_masks(np.ones((2, 3, 4)), {"chirp": (0,)})


REGIONS = {"chirp": (0,), "title": (1,), "text": (1, 2), "never": (9,)}


@pytest.fixture(scope="module")
def scene():
    """24 pictures: the chirp moves, three have none, and L1H0 follows it; title and axis label stand still."""
    rng = np.random.default_rng(4)
    labels = np.full((24, 6, 6), 3, dtype=np.uint8)
    labels[:, 0, :3], labels[:, 5, 1:4] = 1, 2
    for image in range(21):
        start = rng.integers(0, 4)
        labels[image, 2 + rng.integers(0, 3), start : start + 3] = 0
    maps = rng.exponential(size=(24, 2, 2, 6, 6)).astype(np.float32)
    maps[:, 1, 0] += 20 * (labels == 0)
    maps[:, 0, 1] += 20 * (labels == 1)
    return maps, labels, bootstrap_indices(24, 500, seed=5)


def test_table_is_tidy_ordered_and_complete(scene):
    maps, labels, indices = scene
    table = localization_table(maps, labels, REGIONS, "cls", 6, indices, num_permutations=499)
    assert list(table.columns) == [
        "layer", "head", "query", "region", "metric", "value", "chance", "adjusted",
        "ci_low", "ci_high", "n", "p", "q_value",
    ]  # fmt: skip
    keys = [tuple(row) for row in table[["layer", "head", "region", "metric"]].to_numpy()]
    assert keys == [(la, h, r, m) for la in range(2) for h in range(2) for r in REGIONS for m in loc.METRICS]
    assert set(table["query"]) == {"cls"} and table["n"].dtype == np.int64
    assert table.equals(localization_table(maps, labels, REGIONS, "cls", 6, indices, num_permutations=499))


def test_table_rows_follow_from_the_pictures(scene):
    maps, labels, indices = scene
    table = localization_table(maps, labels, REGIONS, "cls", 6, indices, num_permutations=499)
    table = table.set_index(["layer", "head", "region", "metric"])
    for region, ids in REGIONS.items():
        mask = np.isin(labels, ids)
        if region == "never":
            continue
        found, chance = loc.per_picture(maps, mask), loc.chance_per_picture(maps, mask)
        for name in set(loc.METRICS) - {"iou_quantile"}:
            highest = np.inf if name == "lift" else 1.0
            interval = interval_over_images(found[name], indices, bounds=(0.0, highest))
            for layer, head in np.ndindex(2, 2):
                row = table.loc[layer, head, region, name]
                assert row["n"] == (21 if region == "chirp" else 24)
                assert row["value"] == pytest.approx(np.nanmean(found[name][:, layer, head]), abs=1e-12)
                assert row["chance"] == pytest.approx(np.nanmean(chance[name][:, layer, head]), abs=1e-12)
                assert (row["ci_low"], row["ci_high"]) == (interval.low[layer, head], interval.high[layer, head])
                adjusted = (row["value"] - row["chance"]) / (1 - row["chance"]) if name != "lift" else np.nan
                assert row["adjusted"] == pytest.approx(adjusted, abs=1e-12, nan_ok=True)
        hit, union = loc.quantile_overlap(maps, mask)
        row = table.loc[1, 0, region, "iou_quantile"]
        assert row["value"] == pytest.approx(np.nansum(hit[:, 1, 0]) / np.nansum(union[:, 1, 0]))
        assert 0 < row["chance"] < 1 and row["ci_low"] <= row["value"] <= row["ci_high"]


def test_table_says_nothing_of_a_region_that_is_not_there(scene):
    maps, labels, indices = scene
    table = localization_table(maps, labels, REGIONS, "mean", 6, indices, num_permutations=99)
    absent = table[table["region"] == "never"]
    assert (absent["n"] == 0).all()
    assert absent[["value", "chance", "adjusted", "ci_low", "ci_high", "p", "q_value"]].isna().all(axis=None)


def test_table_tests_only_what_moves(scene):
    maps, labels, indices = scene
    table = localization_table(maps, labels, REGIONS, "cls", 6, indices, num_permutations=499)
    tested = table["region"].eq("chirp") & table["metric"].isin(["mass", "lift"])
    assert table.loc[tested, ["p", "q_value"]].notna().all(axis=None)
    assert table.loc[~tested, ["p", "q_value"]].isna().all(axis=None)  # title and text never move
    p = permutation_null(maps, labels == 0, seed=6, num_permutations=499).p
    for name in ("mass", "lift"):
        rows = table[table["region"].eq("chirp") & table["metric"].eq(name)]
        np.testing.assert_array_equal(rows["p"], p.ravel())
        np.testing.assert_array_equal(rows["q_value"], false_discovery_rate(p).ravel())
    assert p[1, 0] == 1 / 500 and p[0, 1] > 0.01


def test_table_takes_masks_of_its_own_and_a_family_of_concepts(scene):
    maps, labels, indices = scene
    corner = np.zeros(labels.shape, dtype=bool)
    corner[np.arange(24), np.arange(24) % 6, 0] = True
    table = localization_table(
        maps, labels, {"chirp": (0,)}, "cls", 6, indices,
        extra_masks={"corner": corner}, concepts=["corner"], num_permutations=99,
    )  # fmt: skip
    assert table["region"].drop_duplicates().tolist() == ["chirp", "corner"]
    row = table[(table["region"] == "corner") & (table["metric"] == "mass")].iloc[0]
    assert row["value"] == pytest.approx(loc.mass(maps, corner)[:, 0, 0].mean())
    has_q = table[table["q_value"].notna()]
    assert set(has_q["region"]) == {"corner"} and len(has_q) == 8


def test_table_refuses_what_does_not_fit(scene):
    maps, labels, indices = scene
    for wrong in (
        lambda: localization_table(maps[:, 0], labels, REGIONS, "cls", 6, indices),
        lambda: localization_table(maps, labels[:, :5], REGIONS, "cls", 6, indices),
        lambda: localization_table(maps, labels, REGIONS, "cls", 6, indices[:, :5]),
        lambda: localization_table(maps, labels, REGIONS, "cls", 6, indices, concepts=["edge"]),
        lambda: localization_table(maps, labels, {}, "cls", 6, indices),
    ):
        with pytest.raises(ValueError, match="expected") as refusal:
            wrong()
        assert "\n" not in str(refusal.value)


def test_random_maps_on_moving_regions_are_at_chance():
    """Adjusted IoU 0 ± 0.005 over heads; p values uniform; no more than 5 % false discoveries."""
    rng = np.random.default_rng(7)
    labels = np.full((128, 16, 16), 1, dtype=np.uint8)
    for image in range(128):
        row, col = rng.integers(0, 12, 2)
        labels[image, row : row + 4, col : col + rng.integers(2, 6)] = 0
    maps = rng.exponential(size=(128, 6, 12, 16, 16)).astype(np.float32)
    table = localization_table(maps, labels, {"chirp": (0,)}, "cls", 0, bootstrap_indices(128, 200, 0))
    adjusted = table.groupby("metric")["adjusted"].mean()
    for name in ("iou", "iou_quantile", "iou_mass60", "mass", "rank_accuracy", "average_precision"):
        assert abs(adjusted[name]) < 0.005, name
    assert abs(table.loc[table["metric"] == "lift", "value"].mean() - 1) < 0.01
    p = table.loc[table["metric"] == "mass", ["p", "q_value"]]
    assert stats.kstest(p["p"], "uniform").pvalue > 0.01
    assert (p["q_value"] < 0.05).mean() <= 0.05
