"""README's findings about heads of the bundled model, written from the tables that they name.

Each function gives one paragraph. It asserts what its words say and writes every number from the table.
"""

# ruff: noqa: E501 (sentences)

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from analysis.agreement import rank_scores, spearman_within_layers

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "attribution" / "models" / "default"
RESULTS = ROOT / "results"
REFERENCE = ROOT / "results" / "reference"
ABLATIONS = ("zero", "mean", "resample", "counterfactual")
KEPT = ("chirp", "text", "colorbar")


@cache
def table(name, folder=REFERENCE):
    return pd.read_csv(folder / f"{name}.csv", keep_default_na=False, na_values=[""])


def number(value, digits):
    """As README writes it: so many digits, a true minus sign, none before a zero."""
    return f"{round(float(value), digits) + 0.0:.{digits}f}".replace("-", "−")


def numbers(values, digits):
    """`a, b and c`."""
    *first, last = (number(value, digits) for value in values)
    return f"{', '.join(first)} and {last}"


def interval(row, digits, low="ci_low", high="ci_high"):
    return f"[{number(row[low], digits)}, {number(row[high], digits)}]"


def span(values, digits):
    """`a to b`, or one number where both are written alike."""
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low} to {high}"


def head(name):
    return tuple(int(part) for part in name.removeprefix("L").split("H"))


@cache
def card():
    return table("head_scorecard").set_index(["layer", "head"])


def effect(name, truth, digits=1, with_interval=True):
    column, row = f"ablation_{truth}_var_pct", card().loc[head(name)]
    limits = interval(row, digits, f"{column}_ci_low", f"{column}_ci_high")
    return number(row[column], digits) + (f" {limits}" if with_interval else "")


def links(*names, folder="results/reference"):
    return ", ".join(f"[`{name}.csv`]({folder}/{name}.csv)" for name in names)


def the_model():
    quality = table("model_quality", MODEL).set_index(["target", "statistic"])
    targets = ("start_time_s", "start_freq_hz", "end_freq_hz")
    r = [quality.loc[(name, "pearson_r"), "value"] for name in targets]
    rmse = [quality.loc[(name, "rmse"), "value"] for name in targets]
    leak, moved = table("leak", MODEL), table("distractors", MODEL)
    moved = moved[moved["item"] != "chirp"]
    signed = (moved["shift_ci_low"] > 0) | (moved["shift_ci_high"] < 0)
    signed_hertz = moved[signed & (moved["target"] != "start_time_s")]["shift"].abs().max()
    missed = leak["ci_high"] > 0.02
    assert missed.sum() == 2 and (leak["probe_test_r2"] < 0).all() and set(quality["n"]) == {500}
    assert ((moved["squared_error_change_ci_low"] <= 0) & (moved["squared_error_change_ci_high"] >= 0)).all()
    seconds = moved[moved["target"] == "start_time_s"]["abs_shift"].max()
    hertz = moved[moved["target"] != "start_time_s"]["abs_shift"].max()
    sweep = quality.loc[[key for key in quality.index if key[0].startswith("sweep") and "r2" in key[1]], "value"]
    return (
        "**The model reads its pictures well.** On 500 test pictures whose layouts it never saw Pearson r is "
        f"{numbers(r, 3)} for start time, start frequency and end frequency (RMSE {number(rmse[0], 2)} s, "
        f"{number(rmse[1], 2)} Hz, {number(rmse[2], 2)} Hz), and R² of the sweep {number(sweep.squeeze(), 3)} "
        f"({links('model_quality', folder='attribution/models/default')}). With the chirp taken out next to nothing can "
        f"be read: squared correlations of at most {number(leak['squared_correlation'].max(), 3)}, ridge probes below 0; "
        f"but the upper 95 % limits, {numbers(leak['ci_high'], 3)}, miss the 0.02 asked for in two of three "
        f"({links('leak', folder='attribution/models/default')}). Taking out, moving or replacing text, colour bar or "
        f"frame moves predictions by at most {number(seconds, 2)} s and {number(hertz, 2)} Hz (mean size; "
        f"{signed.sum()} of {len(moved)} signed means exclude 0, the largest {number(signed_hertz, 2)} Hz), and changes "
        f"the squared error by nothing that can be told from zero ({links('distractors', folder='attribution/models/default')})."
    )


def replacements():
    ranks_of = [card().loc[head("L3H4"), f"ablation_{kind}_rank"] for kind in ABLATIONS]
    assert all(card()[f"ablation_{kind}_rank"].idxmin() == head("L9H4") for kind in ABLATIONS) and ranks_of[0] == 2
    medians = [card()[f"ablation_{kind}_var_pct"].median() for kind in ABLATIONS[1:]]
    lows = [card().loc[head("L3H4"), f"ablation_{kind}_var_pct_ci_low"] for kind in ABLATIONS]
    assert min(lows) > 0
    found = table("truths")
    found = found[found["estimator"] == "mean"].set_index(["truth_a", "truth_b", "statistic"])
    names = [f"ablation_{kind}" for kind in ABLATIONS]

    def two_by_two(statistic):
        pairs = [(a, b) for a in names for b in names if a != b and (a, b, statistic) in found.index]
        return [found.loc[(*pair, statistic), "value"] for pair in pairs]

    def itself(statistic):
        return [found.loc[(name, name, statistic), "value"] for name in names]

    return (
        "**Which heads matter depends on what stands in for a head** "
        f"({links('head_scorecard')}; % of the label variance, the intact error is 0.4). L9H4 comes first whatever "
        f"replaces it: {effect('L9H4', 'zero')} at zero, {effect('L9H4', 'mean')} at its mean, "
        f"{effect('L9H4', 'resample')} at its context in other pictures, {effect('L9H4', 'counterfactual')} at its "
        f"context without the chirp. L3H4 is second at zero, {effect('L3H4', 'zero')}, and "
        f"{number(ranks_of[1], 0)}st, {number(ranks_of[2], 0)}th and {number(ranks_of[3], 0)}th at the others, "
        f"{effect('L3H4', 'mean', 2)}, {effect('L3H4', 'resample', 2)} and {effect('L3H4', 'counterfactual', 2)}: nearly "
        "all that is missed at zero is a constant, and what it reads off the picture is worth as much as in the median "
        f"head ({numbers(medians, 2)}) or somewhat more. Over all heads the four truths agree by "
        f"{span(two_by_two('spearman'), 2)} (Spearman, two by two; each with itself between halves of the pictures by "
        f"{span(itself('spearman_split_half'), 2)}), within layers by {span(two_by_two('spearman_within_layers'), 2)} "
        f"({links('truths')})."
    )


def shapley():
    found = table("truths")
    found = found[found["estimator"] == "mean"].set_index(["truth_a", "truth_b", "statistic"])

    def with_it(statistic):
        rows = [found.loc[key] for key in found.index if key[2] == statistic and "shapley" in key[:2]
                and key[0] != key[1]]  # fmt: skip
        return [row["value"] for row in rows]

    itself = found.loc[("shapley", "shapley", "spearman_split_half")]
    wanted = found.loc[("shapley", "shapley", "pictures_for_reliability_0_9")]
    values = card()["shapley_var_pct"]
    single = card()["ablation_zero_var_pct"]
    early = values.loc[0:2].sum() / values.sum()
    assert values.loc[11].mean() < 0 and card().loc[head("L2H4"), "shapley_var_pct_ci_low"] < 0
    assert values.sort_values().index[-2] == head("L2H4")
    return (
        "**Shapley values ask another question**, what a head is worth when many others are gone too "
        f"({links('truths', 'head_scorecard')}; {number(itself['n'], 0)} pictures, indicative). They agree with the four "
        f"ablations by {span(with_it('spearman'), 2)} over heads and {span(with_it('spearman_within_layers'), 2)} within "
        f"layers, with themselves between halves by {number(itself['value'], 2)}. By them layers 0 to 2 carry "
        f"{number(100 * early, 0)} % of the sum of all heads, by zero ablation "
        f"{number(100 * single.loc[0:2].sum() / single.sum(), 1)} %; the mean of layer 11 is "
        f"{number(values.loc[11].mean(), 1)} %, and L2H4 comes second (its interval reaches 0). "
        f"For a reliability of 0.9 they would need about "
        f"{number(wanted['value'], 0)} pictures {interval(wanted, 0)}."
    )


def looking():
    looks = card()["iou_chirp_adjusted"]
    effects = {kind: card()[f"ablation_{kind}_var_pct"] for kind in ABLATIONS}
    over = [spearmanr(looks, effects[kind]).statistic for kind in ABLATIONS]
    shape = (len(looks.unstack()), -1)
    grids = {kind: rank_scores(found.to_numpy().reshape(1, *shape)) for kind, found in effects.items()}
    own = rank_scores(looks.to_numpy().reshape(1, *shape))
    within = [float(spearman_within_layers(own, grids[kind])[0]) for kind in ABLATIONS]
    middle = [single for layer in (7, 8) for single in effects["zero"].loc[layer]]
    return (
        "**Looking at the chirp and mattering go together over layers, not within them** "
        f"({links('head_scorecard')}). Over heads the adjusted IoU of the CLS query's attention with the chirp agrees with "
        f"the four truths by {span(over, 2)} (Spearman), within layers by {span(within, 2)}. L9H4 and L11H4 look at the "
        f"chirp ({number(looks[head('L9H4')], 2)} and {number(looks[head('L11H4')], 2)}); L11H3 does not "
        f"({number(looks[head('L11H3')], 2)}) and matters too, "
        f"{numbers([effects[kind][head('L11H3')] for kind in ABLATIONS], 1)} % where L11H4 costs "
        f"{numbers([effects[kind][head('L11H4')] for kind in ABLATIONS], 1)} % (zero, mean, resample, counterfactual). "
        f"Most heads of layers 7 and 8 sit on the chirp (means {number(looks.loc[7].mean(), 2)} and "
        f"{number(looks.loc[8].mean(), 2)}) and matter no more than heads do: {number(np.mean(middle), 1)} % on average, "
        f"{span(middle, 1)} head by head, where the mean head has {number(effects['zero'].mean(), 1)} and the median head "
        f"{number(effects['zero'].median(), 1)} %."
    )


def hiding():
    hidden = table("knockout").set_index(["region", "layer", "head"])
    chirp = hidden.loc["chirp"]
    order = chirp["effect_var_pct"].sort_values(ascending=False)
    assert list(order.index[:3]) == [head("L11H4"), head("L11H5"), head("L11H2")]
    others = {kind: hidden.loc[kind] for kind in ("text", "colorbar")}
    sure = {kind: ((rows["ci_low"] > 0) | (rows["ci_high"] < 0)) for kind, rows in others.items()}
    size = max(rows["effect_var_pct"].abs().max() for rows in others.values())
    up = ((chirp["ci_low"] > 0).sum(), (chirp["ci_high"] < 0).sum())
    l9h4 = chirp.loc[head("L9H4")]
    low, high = (chirp.loc[head("L11H4"), name] for name in ("ci_low", "ci_high"))
    assert l9h4["ci_low"] < 0 < l9h4["ci_high"]
    return (
        f"**Hiding a region from one head's CLS query costs little** ({links('knockout')}; the chirp on "
        f"{number(chirp['n'].max(), 0)} pictures, text on {number(others['text']['n'].max(), 0)}, colour bar on "
        f"{number(others['colorbar']['n'].max(), 0)}). Without the chirp L11H4 loses "
        f"{number(order.iloc[0], 1)} % [{number(low, 1)}, {number(high, 1)}], "
        f"{number(100 * chirp.loc[head('L11H4'), 'share_of_ablation'], 0)} % of its effect, L11H5 "
        f"{number(order.iloc[1], 2)} and L11H2 {number(order.iloc[2], 2)}; of 72 heads {up[0]} lose and {up[1]} gain "
        f"where 0 is outside the interval. L9H4 has {number(100 * l9h4['mass'], 0)} % of that query's attention on the "
        f"chirp and loses {number(l9h4['effect_var_pct'], 2)} {interval(l9h4, 2)} of its "
        f"{number(l9h4['ablation_zero_var_pct'], 0)} %; whether it works for other tokens this does not test. Hiding "
        f"text or colour bar changes no head's effect by more than {number(size, 3)} % ({sure['text'].sum()} and "
        f"{sure['colorbar'].sum()} of 72 intervals exclude 0)."
    )


@cache
def roles(query="cls", tau=3.0, model="finetuned"):
    found = table("roles")
    found = found[(found["query"] == query) & (found["tau"] == tau) & (found["model"] == model)]
    return found.set_index(["layer", "head"])


def detectors(of="chirp", **chosen):
    found = roles(**chosen)
    named = found["concepts"].fillna("").str.split(";").map(lambda names: of in names)
    return found[named & (found["verdict"] == "detector")]


def what_heads_are():
    chirp, own = detectors(), detectors()["semanticity"].eq("monosemantic").sum()
    diffuse = roles()["semanticity"].eq("diffuse").sum()
    assert len(chirp) + diffuse == len(roles()) == 72 and chirp["evidence"].min() > 0.8
    layers = sorted({layer for layer, _ in chirp.index})
    assert all(not len(detectors(of, query=query)) for of in ("text", "colorbar", "edge", "corner")
               for query in ("cls", "mean"))  # fmt: skip
    two = roles(tau=2.0)
    both = two[two["semanticity"] == "polysemantic"]
    assert list(both.index) == [(2, 0), (4, 2)] and set(both["concepts"]) == {"text;colorbar"}
    assert both["verdict"].isna().all() and not any(len(detectors(of, tau=2.0)) for of in ("text", "colorbar"))
    mean = roles(query="mean")
    text = mean[mean["concepts"].fillna("").str.contains("text")]
    assert list(text.index) == [(0, 5)] and set(text["verdict"]) == {"undecided"}
    concepts = table("concepts")
    row = concepts[(concepts["model"] == "finetuned") & (concepts["query"] == "cls") & (concepts["concept"] == "text")]
    row = row.sort_values("lift", ascending=False).iloc[0]
    assert (row["layer"], row["head"]) == (0, 5)
    return (
        f"**What a head is** ({links('roles', 'twins')}; CLS query, τ = 3, 128 pictures). {len(chirp)} of 72 heads are "
        f"chirp detectors, {own} of them of nothing else, all in layers {layers[0]} to {layers[-1]}; every one lets go "
        f"of the chirp when it is taken out and follows it elsewhere (evidence {span(chirp['evidence'], 2)} of 1). The "
        f"other {diffuse} are diffuse: none is told to detect text, colour bar, edges or corners. At τ = 2 two heads, "
        "L2H0 and L4H2, attend to text and colour bar together, which twins did not judge; under the mean of the patch "
        "queries L0H5 attends to text, and twins leave it undecided. By the CLS query L0H5 attends to text "
        f"{number(row['lift'], 0)} times chance, more than three times chance in "
        f"{number(100 * row['share_above_3'], 0)} % of the pictures (80 make a role; {links('concepts')})."
    )


def fine_tuning():
    before, after = set(detectors(model="pretrained").index), set(detectors().index)
    assert all(roles(model="pretrained").loc[pair, "semanticity"] != "monosemantic" for pair in before)
    assert head("L11H4") in after - before
    lifts = table("concepts")
    lifts = lifts[lifts["query"] == "cls"].pivot_table("lift", ["concept", "layer", "head"], "model")
    agree = [spearmanr(*lifts.loc[of].dropna().to_numpy().T).statistic for of in KEPT]
    late = lifts.loc[["text", "colorbar"]].groupby(level=["concept", "layer"]).mean()
    shares = (late["finetuned"] / late["pretrained"])[late.index.get_level_values("layer") >= 7]
    mine = lifts.loc[("chirp", 11, 4)]
    return (
        "**Fine-tuning sharpened heads that were there, and made new ones** "
        f"({links('roles', 'concepts')}; the backbone is DINOv2-small by architecture and most likely by weights, "
        "possibly tuned for saliency by those who packed it, see [`NOTICE`](NOTICE)). Before it "
        f"{len(before)} heads detect chirps, all among other things, after it {len(after)}: {len(before & after)} of "
        f"the same, {len(after - before)} new ones, {len(before - after)} lost. Among the new ones is L11H4, whose lift "
        f"on the chirp goes from {number(mine['pretrained'], 1)} to {number(mine['finetuned'], 0)}. Lifts before and "
        f"after agree over heads by {number(agree[0], 2)} for the chirp, {number(agree[1], 2)} for text and "
        f"{number(agree[2], 2)} for the colour bar. In layers 7 to 11 the mean lift on text and colour bar falls to "
        f"{span(shares, 2)} of what it was."
    )


def in_depth():
    found = table("distraction")
    slopes = found[found["level"] == "slope"].set_index("item")
    layers = found[found["level"] == "layer"]
    sure = (layers["ci_low"] > 0) | (layers["ci_high"] < 0)
    up = int((layers.loc[sure, "difference_var_pct"] > 0).sum())
    above, below = slopes[slopes["ci_low"] > 0], slopes[slopes["ci_high"] < 0]
    assert list(above.index) == ["colorbar"] and "text" in below.index and len(slopes) == 7
    there = table("claims", RESULTS / "claims")
    there = there[(there["claim"] == "C6") & there["part"].isin(["test", "beside"])]
    counts = {
        run: (int((rows["ci_low"] > 0).sum()), int((rows["ci_high"] < 0).sum()), len(rows))
        for run, rows in there.groupby("run")
    }
    assert all(total == 7 for _, _, total in counts.values()) and counts["reference"][:2] == (len(above), len(below))
    reach = max(layers["ci_high"].max(), -layers["ci_low"].min())

    def slope(item):
        row = slopes.loc[item]
        return f"{number(row['difference_var_pct'], 4)} {interval(row, 4)}"

    return (
        "**Irrelevant content matters a little more in depth, or less, by what it is** "
        f"({links('distraction')}; {found['n'].min()} to {found['n'].max()} pictures; "
        "[`claims.csv`](results/claims/claims.csv)). Of seven slopes over layers "
        f"{len(above)} is above 0 (colour bar {slope('colorbar')} % per layer) and {len(below)} below (text among them, "
        f"{slope('text')}). In the two other fine-tunings {counts['seed-1'][0]} and {counts['seed-2'][0]} of 7 are above and "
        f"{counts['seed-1'][1]} and {counts['seed-2'][1]} below, on `published` pictures {counts['published'][0]} above and "
        f"{counts['published'][1]} below. With and without text, title, labels, ticks or colour bar the mean effect of a layer's "
        f"heads, removed one at a time, differs by {span(layers['difference_var_pct'], 3)} % (intervals reach "
        f"{number(reach, 2)}); of {len(layers)} such differences {sure.sum()} exclude 0, {up} above and {sure.sum() - up} below."
    )


def looking_at_text():
    found = table("necessity").set_index(["item", "heads"])
    away = {item: found.loc[item] for item in ("text", "colorbar")}
    counts = list(away["text"].index)
    assert counts == [1, 5, 10] == list(away["colorbar"].index)

    def ratios(item):
        rows = [row for _, row in away[item].iterrows()]
        return " , ".join(
            f"{number(row['ratio'], 2)} {interval(row, 2, 'ratio_ci_low', 'ratio_ci_high')}" for row in rows
        ).replace(" ,", ",")

    sure = found[(found["ci_low"] > 0) | (found["ci_high"] < 0)]
    told = "; ".join(
        f"{count} heads that look at {'text' if item == 'text' else 'the colour bar'}: "
        f"{number(row['effect_with_var_pct'], 2)} with it, {number(row['effect_without_var_pct'], 2)} without "
        f"(difference {number(row['difference_var_pct'], 2)} {interval(row, 2)})"
        for (item, count), row in sure.iterrows()
    )
    others = (found["ratio_ci_low"] > 1) | (found["ratio_ci_high"] < 1)
    patches = table("patching")
    text = patches[patches["item"] == "text"]
    largest = text.loc[text["share"].idxmax()]
    assert (largest["layer"], largest["head"]) == head("L9H4")
    return (
        "**Heads that look at text move predictions without it too** "
        f"({links('necessity', 'patching')}; text on {int(away['text']['n'].iloc[0])} pictures, colour bar on "
        f"{int(away['colorbar']['n'].iloc[0])}). Without the 1, 5 or 10 heads that attend to text most, predictions move "
        f"{ratios('text')} times as far where there is text as where there is none; for the colour bar "
        f"{ratios('colorbar')}. {number(others.sum(), 0)} of the six differ from 1, by at most "
        f"{number(100 * (found['ratio'] - 1).abs()[others].max(), 0)} %. Their effects on the loss (% of the label "
        f"variance) differ in {len(sure)} of six: {told}. What little text does to predictions "
        f"({number(text['twin_shift'].iloc[0], 3)} standard deviations) is taken back by L9H4 most "
        f"({number(largest['share'], 2)} of it); over all heads such numbers add up to {number(text['share'].sum(), 1)}, "
        "so that none is a part of one whole."
    )


def together():
    pairs = table("redundancy")
    pairs = pairs.set_index(["layer_a", "head_a", "layer_b", "head_b"])
    first, second = pairs.loc[(*head("L9H4"), *head("L9H0"))], pairs.loc[(*head("L9H4"), *head("L10H2"))]
    joint = table("joint_removal").set_index(["level", "layers"])
    row = joint.loc[("group", "0-2")]
    return (
        f"**Small one at a time is not small together** ({links('redundancy', 'joint_removal')}; "
        f"{int(row['n'])} pictures). Of the {len(pairs)} pairs among the 20 heads that matter most "
        f"{pairs['is_backup'].sum()} do more harm together than outputs that add up would, and "
        f"{pairs['is_shared'].sum()} less. L9H0 alone costs {number(first['effect_b_var_pct'], 1)} %, L9H4 "
        f"{number(first['effect_a_var_pct'], 1)} %, both {number(first['effect_pair_var_pct'], 1)} %; L10H2 alone "
        f"{number(second['effect_b_var_pct'], 1)} %, with L9H4 {number(second['effect_pair_var_pct'], 1)} %. The heads "
        f"of layers 0 to 2 add up to {number(row['sum_of_single_var_pct'], 2)} % of the label variance one by one, and "
        f"cost {number(row['joint_var_pct'], 1)} % {interval(row, 1)} when all are removed at once (without the outer "
        f"tenths of the pictures {number(row['trimmed_var_pct'], 1)} %; one picture is "
        f"{number(100 * row['largest_picture_share'], 0)} % of it)."
    )


def what_they_rest_on():
    counts = {name: table(name)["n"] for name in ("curves", "redundancy", "joint_removal", "randomised", "infidelity")}
    assert all(counts[name].eq(32).all() for name in ("curves", "redundancy", "joint_removal"))
    assert counts["randomised"].max() == counts["infidelity"].max() == 16 and table("planted")["n"].max() == 16
    shown = [table(name)["n"] for name in ("distraction", "patching", "necessity")]
    low, high = min(found.min() for found in shown), max(found.max() for found in shown)
    league = table("league")
    paths = set(league["n"]) - {128}
    assert paths == {32} and card()["n"].eq(128).all() and card()["shapley_n"].eq(16).all()
    return (
        "What follows comes from [`results/reference`](results/reference) (128 test pictures of the preset `default`; path "
        "methods, curves, pairs of heads, joint removal and the hiding of the chirp on the first 32, what needs twins "
        f"without an item on the {low} to {high} of those that show it, Shapley values and the other checks on 16 or "
        "fewer: column n) and from the files named. It holds for these models, not for vision transformers. Layers and "
        "heads count from 0."
    )
