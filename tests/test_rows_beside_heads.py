"""Every number of a run that belongs to a head stands beside that head.

Each column of the tables of heads is found again from what it is said to come from, for one head at a time and joined
by (layer, head). The run has three layers of four heads, and all that varies differs for every head, so that another
order, or another head's number, is another table.
"""

from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import pytest
from finished_run import (
    HEADS,
    LAYERS,
    PATH,
    PERMUTATIONS,
    PICTURES,
    REPLICATES,
    RESAMPLED,
    SEED,
    SHAPLEY,
    TARGETS,
    TRUTHS,
)
from scipy.stats import false_discovery_control, hypergeom, trim_mean

from analysis.concept_masks import concept_masks
from analysis.intervals import bootstrap_indices, interval_over_images
from analysis.nulls import permutation_null
from analysis.pictures import region_indices
from analysis.role_rules import role_table
from analysis.run_tables import with_roles

PAIRS = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
PATCHES = 256
CONCEPTS = ("chirp", "text", "colorbar")


@cache
def indices(count):
    return bootstrap_indices(count, REPLICATES, seed=SEED)


def with_limits(values, bounds=(-np.inf, np.inf)):
    """Mean, lower and upper limit of one head's values [image ...]; pictures that say nothing are NaN."""
    found = interval_over_images(values, indices(len(values)), bounds=bounds)
    return np.array([np.nanmean(values, axis=0), found.low, found.high])


def ranks_of(means):
    """Rank of each head by means {head: mean}, 1 = highest; equal ones share their average rank."""
    found = {
        one: sum(other > mean for other in means.values()) + (1 + sum(other == mean for other in means.values())) / 2
        for one, mean in means.items()
    }
    return dict.fromkeys(means, np.nan) if len(set(means.values())) == 1 else found


def by_head(array):
    """{(layer, head): values [image ...]} of an array [image layer head ...]."""
    return {(layer, head): array[:, layer, head].astype(np.float64) for layer, head in PAIRS}


def row_by_head(table, **where):
    """{(layer, head): row} of the rows with these values, one a head."""
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == len(PAIRS), where
    rows = {(int(row["layer"]), int(row["head"])): row for _, row in table.iterrows()}
    assert set(rows) == set(PAIRS), where
    return rows


def expected_effects(run, kind):
    """Columns of a truth: {name: {head: value}}."""
    stored, name = run.stored(f"ablation_{kind}"), f"ablation_{kind}"
    count = {"resample": RESAMPLED}.get(kind, PICTURES)
    effects, intact = by_head(100 * stored["delta_loss"]), stored["intact_loss"]
    assert len(intact) == count
    drawn = indices(count)
    found = {f"{name}_{suffix}": {} for suffix in ("var_pct", "var_pct_ci_low", "var_pct_ci_high", "var_pct_trimmed")}
    found |= {f"{name}_{suffix}": {} for suffix in ("mse_pct", "mse_pct_ci_low", "mse_pct_ci_high", "mse_pct_trimmed")}
    for one, effect in effects.items():
        ratios = [100 * effect[row].sum() / (100 * intact[row].sum()) for row in drawn]
        trimmed = trim_mean(effect, 0.1)
        low, high = np.percentile(ratios, (2.5, 97.5))
        numbers = (*with_limits(effect), trimmed, effect.sum() / intact.sum(), low, high, trimmed / intact.mean())
        for column, number in zip(list(found), numbers, strict=True):
            found[column][one] = number
    found[f"{name}_rank"] = ranks_of({one: effect.mean() for one, effect in effects.items()})
    for place, target in enumerate(TARGETS):
        squared = by_head(stored["delta_target_sq"][..., place])
        found[f"{name}_{target}2"] = {one: values.mean() for one, values in squared.items()}
    if count < PICTURES:
        found[f"{name}_n"] = dict.fromkeys(PAIRS, count)
    return found


def expected_scorecard(run):
    found = {"layer": {one: one[0] for one in PAIRS}, "head": {one: one[1] for one in PAIRS}}
    for kind in TRUTHS:
        found |= expected_effects(run, kind)
    shapley = by_head(100 * run.stored("shapley")["scores"])
    for place, suffix in enumerate(("", "_ci_low", "_ci_high")):
        found[f"shapley_var_pct{suffix}"] = {one: with_limits(values)[place] for one, values in shapley.items()}
    found["shapley_n"] = dict.fromkeys(PAIRS, SHAPLEY)
    for method in dict.fromkeys(run.table("head_scores")["method"]):
        rows = row_by_head(run.table("head_scores"), method=method)
        found[f"score_{method}"] = {one: row["score"] for one, row in rows.items()}
        found[f"rank_{method}"] = {one: row["rank"] for one, row in rows.items()}
    localization = run.table("localization")
    for region in dict.fromkeys(localization["region"]):
        rows = row_by_head(localization, query="cls", metric="iou", region=region)
        found[f"iou_{region}"] = {one: row["value"] for one, row in rows.items()}
        found[f"iou_{region}_adjusted"] = {one: row["adjusted"] for one, row in rows.items()}
    attention = run.stored("attention_maps")
    weights = by_head(attention["cls_map"])
    found["entropy"] = {one: -(w * np.log(w)).sum(axis=(1, 2)).mean() for one, w in weights.items()}
    for column, key in (("mass_special", "cls_special_mass"), ("attention_distance", "attention_distance")):
        found[column] = {one: values.mean() for one, values in by_head(attention[key]).items()}
    rows = row_by_head(run.table("roles"), model="finetuned", query="cls", tau=3.0)
    found["role"] = {one: row["role"] for one, row in rows.items()}
    found["role_evidence"] = {one: row["evidence"] for one, row in rows.items()}
    return found | {"n": dict.fromkeys(PAIRS, PICTURES)}


def test_every_column_of_the_scorecard_is_beside_its_head(finished_run):
    table = finished_run.table("head_scorecard")
    rows, expected = row_by_head(table), expected_scorecard(finished_run)
    assert list(zip(table["layer"], table["head"], strict=True)) == PAIRS  # as promised: layer by layer
    assert set(expected) == set(table.columns)
    for column, values in expected.items():
        for one, value in values.items():
            found = rows[one][column]
            if isinstance(value, str):
                assert found == value, (column, one)
            else:
                assert found == pytest.approx(value, rel=1e-5, abs=1e-7, nan_ok=True), (column, one)
    # In another order of rows the numbers would be others, wherever they are not the same for all heads.
    turned = table.sort_values(["head", "layer"])
    alike = {name for name in table if list(turned[name].astype(str)) == list(table[name].astype(str))}
    assert alike == {name for name in table if table[name].nunique() <= 1} and len(alike) < 12


def test_every_row_of_head_scores_is_beside_its_head(finished_run):
    table, methods = finished_run.table("head_scores"), finished_run.table("methods").set_index("method")
    names = list(dict.fromkeys(table["method"]))
    assert len(table) == len(names) * len(PAIRS) and {"gate_ixg_out", "gate_ig", "cls_entropy"} < set(names)
    for name in names:
        stored = by_head(finished_run.stored(name)["scores"])
        sign = -1 if methods.loc[name, "direction"] == "'-" else 1  # escaped, as a spreadsheet wants it
        rank = ranks_of({one: sign * values.mean() for one, values in stored.items()})
        for one, row in row_by_head(table, method=name).items():
            assert row[["score", "ci_low", "ci_high"]].tolist() == pytest.approx(with_limits(sign * stored[one])), (
                name,
                one,
            )
            assert row["rank"] == rank[one] and row["n"] == (PATH if name == "gate_ig" else PICTURES)


def metrics_of(weights, mask, holding, above):
    """Value of each metric of one map [patch] without equal weights on one mask; `holding` patches hold three fifths of
    the mass, `above` are those above the threshold of the head."""
    order, area = np.argsort(-weights), int(mask.sum())
    inside = mask[order]
    hit, outside = inside.cumsum(), PATCHES - area
    below = outside - (1 + np.flatnonzero(inside) - hit[inside])  # patches outside that are lower, for each inside
    return {
        "iou": hit[area - 1] / (2 * area - hit[area - 1]),
        "iou_mass60": hit[holding - 1] / (holding + area - hit[holding - 1]),
        "iou_quantile": ((above & mask).sum(), (above | mask).sum()),
        "mass": weights[mask].sum(),
        "lift": weights[mask].sum() / (area / PATCHES),
        "rank_accuracy": hit[area - 1] / area,
        "roc_auc": below.sum() / (area * outside),
        "average_precision": (hit[inside] / (1 + np.flatnonzero(inside))).mean(),
        "pointing_game": float(inside[0]),
    }


def iou_by_chance(area):
    hits = np.arange(area + 1)
    return (hits / (2 * area - hits) * hypergeom(PATCHES, area, area).pmf(hits)).sum()


@pytest.mark.parametrize("query", ["cls", "mean"])
def test_every_row_of_localization_is_beside_its_head(finished_run, query):
    table = finished_run.table("localization")
    table = table[table["query"] == query]
    labels = finished_run.patch_labels.reshape(PICTURES, PATCHES)
    maps = finished_run.stored("attention_maps")[f"{query}_map"]
    regions, p_values, few = list(dict.fromkeys(table["region"])), {}, 0
    assert regions == list(region_indices()) and len(table) == len(PAIRS) * len(regions) * 9
    for region in regions:
        masks = np.isin(labels, region_indices()[region])
        shown = masks.any(axis=1)
        rows = table[table["region"] == region]
        found = {metric: row_by_head(rows, metric=metric) for metric in dict.fromkeys(rows["metric"])}
        for one in PAIRS:
            weights = maps[:, one[0], one[1]].reshape(PICTURES, PATCHES).astype(np.float64)
            weights /= weights.sum(axis=1, keepdims=True)
            untied = all(len(set(each)) == PATCHES for each in weights)
            few += not untied
            held = -np.sort(-weights, axis=1).cumsum(axis=1)
            holding = (held < 0.6 - 1e-12).sum(axis=1) + 1
            threshold = np.sort(weights.ravel())[-round(0.005 * weights.size)]
            values = [
                metrics_of(weights[place], masks[place], holding[place], weights[place] >= threshold)
                for place in np.flatnonzero(shown)
            ]
            means = [name for name in found if name != "iou_quantile"]
            of_pictures = np.full((PICTURES, len(means)), np.nan)
            highest = np.array([np.inf if name == "lift" else 1.0 for name in means])
            of_pictures[shown] = [[value[name] for name in means] for value in values]
            for name, *numbers in zip(means, *with_limits(of_pictures, (0.0, highest)), strict=True) if untied else ():
                beside = found[name][one][["value", "ci_low", "ci_high"]].tolist()
                assert beside == pytest.approx(numbers, rel=1e-6, abs=1e-9, nan_ok=True), (region, name, one)
            both = [value["iou_quantile"] for value in values]
            row = found["iou_quantile"][one]
            assert row["value"] == pytest.approx(sum(common for common, _ in both) / sum(union for _, union in both))
            assert {beside[one]["n"] for beside in found.values()} == {shown.sum()}
            chance = np.mean([iou_by_chance(int(area)) for area in masks[shown].sum(axis=1)])
            row = found["iou"][one]
            assert row["chance"] == pytest.approx(chance, rel=1e-9)
            assert row["adjusted"] == pytest.approx((row["value"] - chance) / (1 - chance), rel=1e-9)
            if region in CONCEPTS:
                grid, mask = maps[:, one[0], one[1]], masks.reshape(PICTURES, 16, 16)
                p_values[region, one] = permutation_null(grid, mask, seed=SEED, num_permutations=PERMUTATIONS).p.item()
    tested = {key: p for key, p in p_values.items() if np.isfinite(p)}
    q_values = dict(zip(tested, false_discovery_control(list(tested.values())), strict=True))
    for region, metric in product(CONCEPTS, ("mass", "lift")):
        for one, row in row_by_head(table, region=region, metric=metric).items():
            assert row["p"] == pytest.approx(p_values[region, one], nan_ok=True)
            assert row["q_value"] == pytest.approx(q_values.get((region, one), np.nan), nan_ok=True)
    assert len(set(tested.values())) > 3 and few <= len(regions)  # at most one head has equal weights in a map
    others = table[~table["region"].isin(CONCEPTS) | ~table["metric"].isin(["mass", "lift"])]
    assert others[["p", "q_value"]].isna().all(axis=None)


@pytest.mark.parametrize("query", ["cls", "mean"])
def test_every_row_of_concepts_is_beside_its_head(finished_run, query):
    table = finished_run.table("concepts")
    assert set(table["model"]) == {"finetuned"} and set(table["query"]) == {"cls", "mean"}
    table = table[table["query"] == query]
    found = finished_run.stored("check_concepts")
    drawn = {name: found[name].astype(bool) for name in ("corner", "edge")}
    masks = concept_masks(finished_run.patch_labels, drawn, found["sink_finetuned"].astype(bool))
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    assert list(dict.fromkeys(table["concept"])) == list(masks) and len(table) == len(masks) * len(PAIRS)
    maps = by_head(finished_run.stored("attention_maps")[f"{query}_map"])
    maps = {one: weights / weights.sum(axis=(1, 2), keepdims=True) for one, weights in maps.items()}
    p_values = {}
    for concept, mask in masks.items():
        area = np.where(mask.any(axis=(1, 2)), mask.mean(axis=(1, 2)), np.nan)
        for one, row in row_by_head(table, concept=concept).items():
            mass = (maps[one] * mask).sum(axis=(1, 2))
            others = np.stack([np.delete(maps[one], place, axis=0).mean(axis=0) for place in range(PICTURES)])
            elsewhere = (others * mask).sum(axis=(1, 2)) / area
            lift = mass / area
            assert row[["lift", "ci_low", "ci_high"]].tolist() == pytest.approx(
                with_limits(lift, (0.0, np.inf)), rel=1e-6, nan_ok=True
            ), (concept, one)
            shown = lift[np.isfinite(lift)]
            above = [np.mean(shown >= tau) for tau in (2, 3, 5)]
            assert row[["share_above_2", "share_above_3", "share_above_5"]].tolist() == pytest.approx(above)
            assert row["mass"] == pytest.approx(mass[np.isfinite(lift)].mean(), rel=1e-6)
            assert row["lift_position"] == pytest.approx(np.nanmean(elsewhere), rel=1e-6)
            assert row["share_above_3_position"] == pytest.approx(np.mean(elsewhere[np.isfinite(lift)] >= 3))
            assert row["n"] == len(shown)
            if concept in ("chirp", "text", "colorbar", "edge", "corner", "sink"):
                weights = finished_run.stored("attention_maps")[f"{query}_map"][:, one[0], one[1]]
                p_values[concept, one] = permutation_null(
                    weights, mask, seed=SEED, num_permutations=PERMUTATIONS
                ).p.item()
            else:
                assert np.isnan(row["p"])
    tested = {key: p for key, p in p_values.items() if np.isfinite(p)}
    q_values = dict(zip(tested, false_discovery_control(list(tested.values())), strict=True))
    for concept in dict.fromkeys(concept for concept, _ in p_values):
        for one, row in row_by_head(table, concept=concept).items():
            assert row["p"] == pytest.approx(p_values[concept, one], nan_ok=True)
            assert row["q_value"] == pytest.approx(q_values.get((concept, one), np.nan), nan_ok=True)
    assert table.groupby("concept")["lift"].nunique().tolist() == [len(PAIRS)] * len(masks)


def test_every_row_of_roles_is_what_the_rules_say_of_that_head_alone(finished_run):
    """On tables in which every head looks at something else: those of the run, with other lifts written in."""
    concepts, twins = finished_run.table("concepts"), finished_run.table("twins")
    concepts, twins = concepts.assign(q_value=0.5, p=0.5, n=PICTURES), twins.copy()
    names = ("chirp", "text", "colorbar", "edge")
    numbers = (0, 1, 2, 0, 3, 1, 0, 2, 3, 1, 2, 0)
    looks = {one: [names[number]] for one, number in zip(PAIRS, numbers, strict=True)}
    looks[1, 1], looks[2, 2] = ["chirp", "edge"], ["text", "colorbar", "edge"]
    for place, one in enumerate(PAIRS):
        at = (concepts["layer"] == one[0]) & (concepts["head"] == one[1])
        seen = at & concepts["concept"].isin(looks[one])
        concepts.loc[seen, ["lift", "share_above_2", "share_above_3", "share_above_5"]] = [4.0 + place, 0.95, 0.9, 0.1]
        concepts.loc[seen & (concepts["query"] == "cls"), "q_value"] = 0.01
        at = (twins["layer"] == one[0]) & (twins["head"] == one[1])
        middle = 0.2 if place % 3 == 1 else 0.8
        twins.loc[at, ["value", "ci_low", "ci_high"]] = [middle + place / 1000, middle - 0.1, middle + 0.15]
    shuffled = concepts.sample(frac=1, random_state=0).sort_values("concept", kind="stable")
    whole = role_table(shuffled, twins.sample(frac=1, random_state=1))
    assert len(whole) == len(PAIRS) * 2 * 3
    for one in PAIRS:
        own = [table[(table["layer"] == one[0]) & (table["head"] == one[1])] for table in (concepts, twins)]
        own = [table.assign(layer=0, head=0) for table in (own[0].sort_values("concept", kind="stable"), own[1])]
        alone = role_table(*own)
        rows = whole[(whole["layer"] == one[0]) & (whole["head"] == one[1])]
        key = ["model", "query", "tau"]
        pd.testing.assert_frame_equal(
            rows.drop(columns=["layer", "head"]).sort_values(key, ignore_index=True),
            alone.drop(columns=["layer", "head"]).sort_values(key, ignore_index=True),
        )
        main = rows[(rows["query"] == "cls") & (rows["tau"] == 3.0)].iloc[0]
        assert set(main["concepts"].split(";")) == set(looks[one])
    scorecard = with_roles(finished_run.table("head_scorecard").drop(columns=["role", "role_evidence"]), whole)
    beside = row_by_head(whole[(whole["query"] == "cls") & (whole["tau"] == 3.0)])
    for one, row in row_by_head(scorecard).items():
        assert row["role"] == beside[one]["role"]
        assert row["role_evidence"] == pytest.approx(beside[one]["evidence"], nan_ok=True)
    assert len({row["role"] for row in beside.values()}) > 4
    assert len({row["evidence"] for row in beside.values() if np.isfinite(row["evidence"])}) > 4


def test_roles_of_the_run_follow_from_its_tables(finished_run):
    concepts, twins, roles = (finished_run.table(name) for name in ("concepts", "twins", "roles"))
    expected = role_table(concepts, twins)
    assert len(roles) == len(PAIRS) * 2 * 3
    assert roles["role"].tolist() == expected["role"].tolist()
    for tau in (2.0, 3.0, 5.0):
        for query in ("cls", "mean"):
            rows = row_by_head(roles, model="finetuned", query=query, tau=tau)
            of_concept = concepts[(concepts["query"] == query) & (concepts["q_value"] < 0.05) & (concepts["n"] >= 5)]
            seen = of_concept[of_concept[f"share_above_{tau:g}"] >= 0.8]
            for one, row in rows.items():
                names = seen[(seen["layer"] == one[0]) & (seen["head"] == one[1])]["concept"]
                named = [] if pd.isna(row["concepts"]) else row["concepts"].split(";")
                assert row["semanticity"] in ("positional", "position fixed") or named == list(names)
