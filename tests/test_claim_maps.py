"""Attention on a region against what the region does through the head: by scipy and by taking heads out."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from scipy.stats import t as student

from analysis.claim_maps import correlation, maps_tell
from analysis.fragility import read_changing
from analysis.verdict_rules import (
    DISATTENUATED,
    IN_REGION,
    KNOCKED_OUT,
    KNOCKED_OUT_WHOLE,
    PATCHED,
    in_region,
    rule_of,
    word_of,
)


def by_definition(x, y, level=0.95):
    """Mean over regions of Spearman's, with the jackknife over heads on Fisher's scale, one head at a time."""
    heads = x.shape[1]

    def mean(kept):
        return np.mean([spearmanr(one[kept], other[kept])[0] for one, other in zip(x, y, strict=True)])

    value = mean(np.arange(heads))
    scale = np.arctanh([mean(np.delete(np.arange(heads), head)) for head in range(heads)])
    half = student.ppf((1 + level) / 2, heads - 1) * np.sqrt((heads - 1) * scale.var())
    return value, np.tanh(np.arctanh(value) - half), np.tanh(np.arctanh(value) + half)


def test_correlation_is_the_mean_of_spearmans_with_a_jackknife():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 24))
    y = x + rng.normal(size=(3, 24))
    assert correlation(x, y, 0.95) == pytest.approx(by_definition(x, y))
    assert correlation(x, x, 0.95)[0] == pytest.approx(1.0) and correlation(x, -x, 0.9)[2] == pytest.approx(
        -1.0, abs=1e-6
    )
    constant = correlation(np.ones((1, 9)), rng.normal(size=(1, 9)), 0.95)
    assert np.isnan(constant).all()


def test_intervals_cover():
    """Of normal pairs whose Spearman is known (6/π·asin(ρ/2)), at least 93 % at 95 %."""
    rng = np.random.default_rng(1)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)
    hits = []
    for _ in range(300):
        x = rng.normal(size=(1, 48))
        _, low, high = correlation(x, 0.6 * x + 0.8 * rng.normal(size=(1, 48)), 0.95)
        hits.append(low <= truth <= high)
    assert np.mean(hits) >= 0.93


def tables(slope, *, heads=30, seed=2):
    """Knock-out and patching of heads whose attention goes with the size of what it does as ``slope`` says."""
    rng = np.random.default_rng(seed)
    knockout, patching, concepts = [], [], []
    for region, scale in (("chirp", 100.0), ("text", 1.0)):
        mass, noise = rng.uniform(size=(2, heads))
        size = scale * (slope * mass + max(0.0, -slope) + 0.05 * noise)  # never negative
        sign = rng.choice([-1, 1], heads)
        for head in range(heads):
            place = {"layer": head // 6, "head": head % 6}
            looks = {"mass": 1 - mass[head], "mass_of_map": mass[head]}  # special tokens took the rest
            knockout.append(place | looks | {"region": region, "effect_var_pct": sign[head] * size[head], "n": 32})
            patching.append(place | {"item": region, "share": -sign[head] * size[head], "n": 30})
            for model, query in (("finetuned", "cls"), ("finetuned", "mean"), ("pretrained", "cls")):
                own = mass[head] if (model, query) == ("finetuned", "cls") else rng.uniform()
                concepts.append(place | {"concept": region, "model": model, "query": query, "mass": own})
    names = {"knockout": knockout, "patching": patching, "concepts": concepts}
    return {name: pd.DataFrame(rows).sample(frac=1, random_state=0) for name, rows in names.items()}


def of_all_regions(found, **more):
    return [row for row in maps_tell(found, "finetuned", **more) if IN_REGION not in row["quantity"]]


@pytest.mark.parametrize(
    ("slope", "word"), [(1.0, "supported"), (-0.5, "refuted"), (0.03, "undecided"), (0.0, "refuted")]
)
def test_sizes_within_regions_decide(slope, word):
    """Effects of either sign count by size; that one region does a hundred times more than another does not count."""
    found = of_all_regions(tables(slope))
    assert [row["quantity"] for row in found] == [KNOCKED_OUT, DISATTENUATED, KNOCKED_OUT_WHOLE, PATCHED]
    for row, quantity in zip(found[::3], (KNOCKED_OUT, PATCHED), strict=True):
        assert row["quantity"] == quantity and row["n_heads"] == 30
        assert word_of("C5", quantity, row["ci_low"], row["ci_high"]) == word
        assert row["unit"].endswith("mean of chirp, text")


def test_the_map_is_asked_and_the_whole_attention_stands_beside():
    """Where special tokens take what patches have, the map tells and the share of the whole says the opposite."""
    first, _, whole, _ = of_all_regions(tables(1.0))
    assert first["value"] > 0.9 and whole["value"] == pytest.approx(-first["value"])
    assert rule_of("C5", KNOCKED_OUT).part == "test" and rule_of("C5", KNOCKED_OUT_WHOLE).part == "beside"


def test_leaving_a_head_out_is_correlating_without_it():
    found = tables(0.03, heads=16)
    for row in maps_tell(found, "finetuned"):
        if "value" not in row:  # the reliability of these effects is not known
            continue
        changing = read_changing(row["changing"])
        for layer, head in {(0, 0), (1, 3), (2, 3), (int(row["left_out"][1]), int(row["left_out"][3]))}:
            rest = {name: one[(one["layer"] != layer) | (one["head"] != head)] for name, one in found.items()}
            other = next(one for one in maps_tell(rest, "finetuned") if one["quantity"] == row["quantity"])
            word, without = (word_of("C5", row["quantity"], one["ci_low"], one["ci_high"]) for one in (row, other))
            assert changing.get(f"L{layer}H{head}", word) == without
            if row["left_out"] == f"L{layer}H{head}":
                assert row["without_value"] == pytest.approx(other["value"])


def test_what_a_run_lacks_is_untested():
    found = tables(1.0)
    assert [row.get("note") for row in maps_tell({}, "finetuned")] == [
        *3 * ["the run has no table knockout"],
        "the run has no table patching",
    ]
    without_maps = of_all_regions({"patching": found["patching"], "concepts": pd.DataFrame()})[-1]
    assert "fewer than 5 heads" in without_maps["note"] and "value" not in without_maps


def test_each_region_stands_by_itself():
    found = tables(0.03)
    rows = {row["quantity"]: row for row in maps_tell(found, "finetuned")}
    for quantity, table, mass, size in (
        (KNOCKED_OUT, "knockout", "mass_of_map", "effect_var_pct"),
        (PATCHED, "patching", "mass", "share"),
    ):
        values = []
        for region in ("chirp", "text"):
            row = rows[in_region(quantity, region)]
            of = found[table]
            if table == "patching":
                own = (
                    found["concepts"]
                    .query("model == 'finetuned' and query == 'cls'")
                    .rename(columns={"concept": "item"})
                )
                of = of.merge(own, on=["layer", "head", "item"]).rename(columns={"item": "region"})
            of = of[of["region"] == region]
            values.append(spearmanr(of[mass], of[size].abs()).statistic)
            assert row["value"] == pytest.approx(values[-1]) and row["unit"].endswith(f"mean of {region}")
            assert rule_of("C5", row["quantity"]).part == "beside" and rule_of("C5", row["quantity"]).level == 0.95
        assert rows[quantity]["value"] == pytest.approx(np.mean(values))


def test_noise_in_effects_is_taken_off_by_the_root_of_their_reliability():
    found = tables(0.03)
    known = {"chirp": 0.64, "text": 0.25}
    first, clean, *_ = of_all_regions(found, reliability=known)
    rows = {row["quantity"]: row for row in maps_tell(found, "finetuned")}
    each = {region: rows[in_region(KNOCKED_OUT, region)]["value"] for region in known}
    assert clean["value"] == pytest.approx(min(1.0, (each["chirp"] / 0.8 + each["text"] / 0.5) / 2))
    assert clean["ci_low"] >= first["ci_low"] and "chirp 0.64, text 0.25" in clean["note"]
    for missing in ({"chirp": 0.64}, {"chirp": 0.64, "text": np.nan}):
        assert "not known" in of_all_regions(found, reliability=missing)[1]["note"]


def test_attention_in_the_pictures_of_patching_counts_where_it_is_known():
    found = tables(1.0)
    shown = found["patching"].rename(columns={"item": "region"})[["layer", "head", "region", "share"]]
    shown = shown.assign(mass=-shown["share"].abs()).drop(columns="share")
    assert of_all_regions(found, shown=shown)[-1]["value"] == pytest.approx(-1.0)


def test_regions_of_opposite_signs_have_no_one_factor():
    """One region's correlation is 1, the other's about −1 and far less reliable: the mean of the two turns its sign."""
    found = tables(1.0)
    table = found["knockout"]
    text = table["region"] == "text"
    noise = np.random.default_rng(0).uniform(0, 0.3, int(text.sum()))
    table.loc[text, "effect_var_pct"] = 1 - table.loc[text, "mass_of_map"] + noise
    rows = {row["quantity"]: row for row in maps_tell(found, "finetuned")}
    signs = [rows[in_region(KNOCKED_OUT, region)]["value"] for region in ("chirp", "text")]
    assert signs[0] > 0.9 and signs[1] < -0.8 and signs[0] > -signs[1]
    clean = of_all_regions(found, reliability={"chirp": 1.0, "text": 0.1})[1]
    assert "opposite signs" in clean["note"] and "value" not in clean
