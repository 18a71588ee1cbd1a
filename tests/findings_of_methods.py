"""README's findings about methods, and about other runs, written from the tables that they name.

As :mod:`findings_of_heads`: each function gives one paragraph, asserts what its words say, and writes every number.
"""

# ruff: noqa: E501 (sentences)

import json

from findings_of_heads import (
    ABLATIONS,
    RESULTS,
    ROOT,
    interval,
    links,
    number,
    numbers,
    span,
    table,
)

CONTROLS = ("random", "layer_index", "parameter_norm")
FOUR = ("gate_saliency_out", "gate_saliency", "gate_ixg_out", "layer_deep_lift_out")

PATHS = ("gate_ig", "gate_ig_out", "layer_conductance", "conductance_out", "internal_influence",
         "internal_influence_out", "layer_ig", "layer_ig_out")  # fmt: skip


def agreement(method, truth="zero", statistic="spearman"):
    found = table("agreement")
    truth = truth if truth == "shapley" else f"ablation_{truth}"
    keys = (found["truth"] == truth) & (found["estimator"] == "mean") & (found["statistic"] == statistic)
    return found[keys & (found["method"] == method)].squeeze()


def cross(method, truth="zero", statistic="spearman"):
    return agreement(method, truth, statistic)["value_cross"]


def on_trial():
    """Every method once, by the number of its pictures."""
    league = table("league").set_index("method")
    return league[league["same_as"].isna()]


def different(truth="zero"):
    found = table("differences")
    truth = truth if truth == "shapley" else f"ablation_{truth}"
    return found[(found["pictures"] == "different") & (found["truth"] == truth)].set_index("method")


def tested(method, truth, pictures="different"):
    """The best method under a truth less this one."""
    found = table("differences")
    keys = (found["truth"] == f"ablation_{truth}") & (found["pictures"] == pictures) & (found["method"] == method)
    return found[keys].squeeze()


def p_value(value):
    return f"p = {number(value, 3)}" if value >= 0.0005 else "p < 0.001"


def which_rank_best():
    zero, rest = different(), [kind for kind in ABLATIONS if kind != "zero"]
    first = FOUR[:3]
    assert (zero["p_holm"] > 0.05).sum() == 2 and (zero.loc[list(first[1:]), "p_holm"] > 0.05).all()
    assert set(zero["best"]) == {first[0]} and agreement("gate_ixg_out")["value"] == max(
        agreement(name)["value"] for name in on_trial().index
    )
    same = table("differences")
    behind = []
    for kind in rest:
        found = different(kind)
        assert set(found["best"]) == {FOUR[3]}
        assert (found.loc[["gate_saliency_out", "layer_ig_out"], "p_holm"] > 0.05).all()
        assert found.loc["gate_saliency_out", "difference"] > 0 > found.loc["layer_ig_out", "difference"]
        assert tested("gate_saliency_out", kind, "same")["p_holm"] < 0.05
        sure = [name for name in ("gate_saliency", "gate_ixg_out") if found.loc[name, "p_holm"] < 0.05]
        assert len(sure) == (0 if kind == "mean" else 2)
        behind += [found.loc[name, "p_holm"] for name in sure]
    ahead, lift = zero.loc["gate_ixg_out"], zero.loc[FOUR[3]]
    leads = [different(kind).loc["gate_saliency_out", "difference"] for kind in rest]
    on_same = [tested("gate_saliency_out", kind, "same")["p_holm"] for kind in rest]
    ends = [cross(name) for name in first]
    ig = tested("layer_ig_out", "counterfactual", "same")
    assert ig["p_holm"] < 0.05 and all(tested("layer_ig_out", kind, "same")["p_holm"] > 0.05 for kind in rest[:2])
    assert set(same["truth"]) > {f"ablation_{kind}" for kind in rest}
    return (
        f"**No method ranks the heads best under every truth** ({links('agreement', 'differences')}). Under zero ablation "
        f"`gate_saliency_out`, `gate_saliency` and `gate_ixg_out`, for one forward and one to three backward passes, reach "
        f"{span(ends, 2)} on other pictures than the truth's (ceiling {number(agreement(first[0])['noise_ceiling'], 2)}) and "
        f"cannot be told apart: `gate_saliency_out` is ahead of `gate_ixg_out` by {number(ahead['difference'], 3)} "
        f"{interval(ahead, 3, 'difference_ci_low', 'difference_ci_high')}, p = {number(ahead['p_holm'], 2)} after Holm, and "
        f"of `layer_deep_lift_out` by {number(lift['difference'], 3)} "
        f"{interval(lift, 3, 'difference_ci_low', 'difference_ci_high')}, {p_value(lift['p_holm'])}. On the same pictures "
        f"`gate_ixg_out` leads with {number(agreement('gate_ixg_out')['value'], 2)}: it shares their noise with the truth. "
        f"Under the three other truths `layer_deep_lift_out` is first of those on 128 pictures "
        f"({numbers([cross(FOUR[3], kind) for kind in rest], 2)}): under resample and counterfactual ahead of "
        f"`gate_saliency` and `gate_ixg_out` (p {span(behind, 3)}), of `gate_saliency_out` by {span(leads, 3)}, which on "
        f"other pictures is no certain difference and on the same ones is (p {span(on_same, 3)}). `layer_ig_out`, on its 32 "
        f"pictures, is ahead of it under all three, for certain under counterfactual alone (by "
        f"{number(-ig['difference'], 3)} on the same pictures, p = {number(ig['p_holm'], 2)})."
    )


def the_first_ten():
    def ten(name):
        return [agreement(name, kind, "top_10")["value_cross"] for kind in ABLATIONS]

    best = {kind: sorted(on_trial().index, key=lambda name: cross(name, kind, "top_10"))[-2:] for kind in ABLATIONS[1:]}
    assert {names[1] for names in best.values()} == {"value_norm"}
    close = [cross("value_norm", kind, "top_10") - cross(names[0], kind, "top_10") for kind, names in best.items()]
    gates = [ten(name) for name in FOUR[:3]]
    return (
        f"**Finding the ten heads that matter most is another contest** ({links('agreement')}, `top_10` on other "
        f"pictures; zero, mean, resample, counterfactual). The three gate methods find "
        f"{span([row[0] for row in gates], 2)}, {span([row[1] for row in gates], 2)}, "
        f"{span([row[2] for row in gates], 2)} and {span([row[3] for row in gates], 2)} of them, `value_norm` "
        f"{numbers(ten('value_norm'), 2)}, `cls_mass` {numbers(ten('cls_mass'), 2)}, depth alone "
        f"{numbers(ten('layer_index'), 2)}. Under the last three `value_norm` has the largest "
        f"share of all, by {numbers(close, 3)} over the next ({', '.join(f'`{names[0]}`' for names in best.values())}): "
        "no difference here was tested."
    )


def depth():
    found = table("differences_from_depth")
    zero = found[(found["pictures"] == "different") & (found["truth"] == "ablation_zero")].set_index("method")
    zero = zero.drop(["random", "parameter_norm"])
    ahead = zero[(zero["p_holm"] < 0.05) & (zero["difference"] > 0)]
    behind = zero[(zero["p_holm"] < 0.05) & (zero["difference"] < 0)]
    level = zero[zero["p_holm"] >= 0.05]
    assert set(behind.index) == set(FOUR) and len(ahead) + len(behind) + len(level) == len(zero)
    best = max(cross(name, "counterfactual") for name in on_trial().index.drop(list(CONTROLS)))
    assert cross("layer_index", "counterfactual") >= best
    elsewhere = found[(found["pictures"] == "different") & ~found["method"].isin(["random", "parameter_norm"])]
    elsewhere = elsewhere[(elsewhere["p_holm"] < 0.05) & (elsewhere["difference"] > 0)].groupby("truth").size()
    lift = found[(found["pictures"] == "different") & (found["truth"] == "ablation_counterfactual")]
    lift = lift.set_index("method").loc["layer_deep_lift_out"]
    assert cross("layer_deep_lift_out", "counterfactual") == best
    return (
        f"**Depth alone is ahead of {len(ahead)} of the {len(zero)} methods** under zero ablation "
        f"({links('differences_from_depth')}; other pictures, Holm's p below 0.05), the four are ahead of it, and "
        f"{', '.join(f'`{name}`' for name in level.index)} cannot be told from it (32 pictures). Under mean, "
        f"resample and counterfactual ablation it is ahead of {numbers([elsewhere[f'ablation_{kind}'] for kind in ABLATIONS[1:]], 0)}. "
        f"Under the last it reaches {number(cross('layer_index', 'counterfactual'), 2)}, the best method, "
        f"`layer_deep_lift_out`, {number(best, 2)} (depth ahead by {number(lift['difference'], 3)} "
        f"{interval(lift, 3, 'difference_ci_low', 'difference_ci_high')}): there, only agreement within layers tells "
        "methods apart."
    )


def what_is_explained():
    pairs = {"layer_deep_lift": "DeepLift", "gate_ig": "integrated gradients over gates", "layer_ig": "over contexts"}
    for name in pairs:
        assert cross(f"{name}_out") > cross(name) + 0.05
    assert cross("conductance_out") < cross("layer_conductance") + 0.01
    assert abs(cross("internal_influence_out") - cross("internal_influence")) < 0.05
    assert cross("layer_gradient_shap_out") < cross("layer_gradient_shap")
    told = ", ".join(
        f"{words} ({number(cross(name), 2)} to {number(cross(f'{name}_out'), 2)})" for name, words in pairs.items()
    )
    return (
        f"**What is explained matters, and so does the sign** ({links('agreement')}; zero ablation). The signed gradient of "
        f"the loss, `gate_ixg`, tells next to nothing ({number(cross('gate_ixg'), 2)}, on the same pictures "
        f"{number(agreement('gate_ixg')['value'], 2)}); the same gradient without its sign, `gate_saliency`, is among "
        f"the best ({number(cross('gate_saliency'), 2)}), and so is that of the outputs composed into a loss change, "
        f"`gate_ixg_out` ({number(cross('gate_ixg_out'), 2)}). Composing helps {told}; conductance and internal "
        "influence gain nothing, gradient SHAP loses."
    )


def in_units():
    found = table("calibration")
    found = found[found["level"] == "mean"].set_index("method")
    row, far = found.loc["gate_ixg_out"], found.loc["conductance_out"]
    includes = [
        name for name in found.index if found.loc[name, "slope_ci_low"] <= 1 <= found.loc[name, "slope_ci_high"]
    ]
    assert (row["largest_layer"], row["largest_head"]) == (9, 4) and "gate_ixg_out" not in includes
    rest = [found.loc[name] for name in includes]
    slopes = " and ".join(
        f"{number(one['slope_without_largest'], 2)} "
        f"{interval(one, 2, 'slope_without_largest_ci_low', 'slope_without_largest_ci_high')}"
        for one in rest
    )
    fits = numbers([one["r2_without_largest"] for one in rest], 1)
    assert all(one["r2_without_largest"] < 0 for one in rest)
    return (
        f"**In real units `gate_ixg_out` predicts three quarters of an effect** ({links('calibration')}): slope "
        f"{number(row['slope'], 2)} {interval(row, 2, 'slope_ci_low', 'slope_ci_high')}, R² {number(row['r2'], 2)} over "
        f"heads. L9H4 carries part of that: over the 71 other heads {number(row['slope_without_largest'], 2)} "
        f"{interval(row, 2, 'slope_without_largest_ci_low', 'slope_without_largest_ci_high')}, R² "
        f"{number(row['r2_without_largest'], 2)}. {' and '.join(f'`{name}`' for name in includes)} have a "
        f"slope that cannot be told from 1 (on 32 pictures); without L9H4 it is {slopes} and R² {fits}: L9H4 alone carries "
        f"it. `conductance_out` predicts {number(1 / far['slope'], 0)} times too much, without L9H4 "
        f"{number(1 / far['slope_without_largest'], 0)} times: it answers what returning to the baseline picture would do."
    )


def attention_alone():
    names = (
        "value_norm",
        "layer_activation",
        "cls_mass",
        "cls_entropy",
        "max_weight",
        "attention_distance",
        "rollout_drop",
    )
    six = [name for name in names if name != "layer_activation"]
    within = {name: cross(name, statistic="spearman_within_layers") for name in six}
    assert max(six, key=cross) == "value_norm" and within["value_norm"] < 0.1
    below = [name for name in six if within[name] < 0]
    drop = [cross("rollout_drop", kind) for kind in ABLATIONS]
    drop_within = [cross("rollout_drop", kind, "spearman_within_layers") for kind in ABLATIONS[1:]]
    assert "rollout_drop" not in below
    return (
        f"**Attention alone tells little within layers** ({links('agreement')}). The best of six over all heads, "
        f"`value_norm` ({number(cross('value_norm'), 2)} under zero ablation), has next to no agreement within layers "
        f"({number(within['value_norm'], 2)}): it has found depth. "
        f"{', '.join(f'`{name}`' for name in below)} are negative there ({span([within[name] for name in below], 2)}); "
        f"`rollout_drop` is positive under zero ({number(within['rollout_drop'], 2)}; "
        f"{numbers(drop_within, 2)} under the others), but orders the layers the wrong way round ({span(drop, 2)} over all "
        "heads)."
    )


def price():
    league, cost = on_trial().drop(list(CONTROLS)), table("ablation_at_cost").set_index("method")
    won = [name for name in league.index if str(league.loc[name, "beats_ablation_at_cost"]) == "True"]
    row = cost.loc["value_norm"]
    lift = cost.loc["layer_deep_lift_out", "spearman_matched"]
    assert row["num_pictures_matched"] == 1 and cross("value_norm") < cross("layer_index")
    told = ", ".join(f"`{name}`" for name in won[:-1])
    return (
        f"**The price test is passed by {len(won)} of {len(league)} methods** ({links('league', 'ablation_at_cost')}; point "
        f"estimates on other pictures, not tested): {told} and `{won[-1]}` agree better with the effects of the other half "
        "than zero ablation of as few pictures of their own half as their price pays for. The closest are "
        f"`layer_deep_lift_out`, {number(cross('layer_deep_lift_out'), 2)} against {number(lift, 2)}, and `value_norm`, "
        f"{number(cross('value_norm'), 2)} against {number(row['spearman_matched'], 2)} for the one picture that its price "
        f"pays for, where depth costs nothing and reaches {number(cross('layer_index'), 2)}."
    )


def another_question():
    row = agreement("gate_ig", "shapley")
    tested = different("shapley")
    assert (tested["p_holm"] > 0.05).all() and set(tested["best"]) == {"gate_ig"}
    same = table("differences")
    same = same[(same["pictures"] == "same") & (same["truth"] == "shapley")]
    assert set(same["best"]) == {"gate_ig"} and (same["p_holm"] < 0.05).all()
    within = [cross("gate_ig", kind, "spearman_within_layers") for kind in ABLATIONS]
    return (
        f"**A method can be right about another question** ({links('agreement', 'differences')}). Integrated gradients over "
        f"gates, `gate_ig`, remove all heads together: over heads they know nothing of single removals "
        f"({number(cross('gate_ig'), 2)} under zero ablation; within layers {span(within, 2)} over the four truths), and "
        f"agree best of all with Shapley values: {number(row['value'], 2)} on the same {int(row['n'])} pictures, ahead of "
        f"every other (largest p {number(same['p_holm'].max(), 3)} after Holm), {number(row['value_cross'], 2)} "
        f"{interval(row, 2, 'cross_ci_low', 'cross_ci_high')} of a ceiling of {number(row['noise_ceiling'], 2)} on other "
        f"ones, where so few pictures tell it from no other, `random` included (smallest p "
        f"{number(tested['p_holm'].min(), 2)})."
    )


def completeness():
    found = table("methods").set_index("method")["completeness_delta"]
    return (
        f"**Completeness** ({links('methods')}): `gate_ig` is off by {number(100 * found['gate_ig'], 1)} % in the median at "
        f"16 steps; DeepLift, down to the pixels, by {number(100 * found['layer_deep_lift'], 0)} % of the difference it "
        "should explain: it has no rule for LayerNorm, GELU and softmax."
    )


def known_answers():
    found = table("planted")
    failed = {plant: set(rows.loc[~rows["passes"], "method"]) for plant, rows in found.groupby("plant")}
    attention = {"cls_mass", "cls_entropy", "max_weight", "attention_distance"}
    assert failed["silenced"] == attention | {"layer_activation", "rollout_drop"}
    assert failed["wired"] == attention | {"rollout_drop"} and not failed["halves"] and not failed["permuted"]
    one = found.set_index(["plant", "method"])
    counts = found.groupby("plant")["n"].max()
    return (
        f"**Known answers** ({links('planted')}; {counts['silenced']} pictures, the wired model {counts['wired']}): every "
        "method gives two equal halves the same and follows reordered heads. All that use gradients give a silenced head 0 "
        "and put the one working head of a wired model first, and so does `value_norm`. `cls_mass`, `cls_entropy`, "
        "`max_weight` and `attention_distance` can tell neither (`cls_mass` gives the silenced head "
        f"{number(100 * one.loc[('silenced', 'cls_mass'), 'value'], 1)} % of the largest score; all heads of the wired "
        "model tie), `layer_activation` and "
        f"`rollout_drop` ({number(100 * one.loc[('silenced', 'rollout_drop'), 'value'], 1)} %) not the silenced head; "
        "`rollout_drop` has no scores on the wired model."
    )


def never_learnt():
    found = table("randomised").set_index(["model", "method"])["spearman_with_own"]
    blank, drawn = (
        found.loc["not_finetuned"].drop(["attention_ixg", *CONTROLS], errors="ignore"),
        found.loc["reinitialised"],
    )
    kept = blank[blank > 0.3].sort_values(ascending=False)
    rest = blank.drop(kept.index)
    turned = [drawn["gate_saliency"], drawn["gate_saliency_out"]]
    assert drawn.drop(CONTROLS, errors="ignore").idxmax() == "rollout_drop"
    return (
        f"**What is left when the model never learnt** ({links('randomised')}; 16 pictures, `layer_ig` and `layer_ig_out` "
        "4; rank correlation of scores with the method's own on the trained model). On the backbone without fine-tuning "
        f"{', '.join(f'`{name}` keeps {number(value, 2)}' if at == 0 else f'`{name}` {number(value, 2)}' for at, (name, value) in enumerate(kept.items()))}; "
        f"the others {span(rest, 2)}. On weights drawn anew `rollout_drop` keeps {number(drawn['rollout_drop'], 2)}: it "
        f"ranks an architecture; `gate_saliency` and `gate_saliency_out` turn round ({numbers(turned, 2)})."
    )


def settings():
    found = table("sensitivity").set_index(["method", "variant"])
    steps = found[[variant.startswith("steps") for _, variant in found.index]]
    bases = found.drop(steps.index)
    swing = found.loc["internal_influence_out"]["spearman_with_truth"]
    usual = found.loc[("internal_influence_out", "steps_half"), "spearman_with_truth_default"]
    kept = steps["top_10_kept"]
    assert kept.idxmin() == ("layer_conductance", "steps_half")
    return (
        f"**Steps and baselines** ({links('sensitivity')}; 16 pictures, `layer_ig` and `layer_ig_out` 4). With half or twice "
        f"the steps rankings agree with the usual ones by {span(steps['spearman_with_default'], 2)}, from a black picture or "
        f"the chirp-free twin by {span(bases['spearman_with_default'], 2)}. That is more than it sounds: conductance keeps "
        f"{number(10 * kept.min(), 0)} of its first ten heads at half the steps, and `internal_influence_out` agrees with "
        f"the truth by {number(swing['steps_half'], 2)}, {number(usual, 2)} and {number(swing['steps_double'], 2)} at half, "
        f"the usual and twice the steps, by {number(swing['baseline_black'], 2)} from black and "
        f"{number(swing['baseline_counterfactual'], 2)} from the twin."
    )


def what_would_change_this():
    record = json.loads((RESULTS / "reference" / "manifest.json").read_text())["settings"]
    fewest = table("randomised")["n"].min()
    assert record["curve_pictures"] == record["path_pictures"] and fewest < record["check_pictures"]
    return (
        f"What would change this: more pictures for what rests on {record['path_pictures']}, {record['check_pictures']} or "
        f"{fewest} of them, models tuned otherwise than by LoRA on query and value, or a task whose answer is spread over "
        "more heads."
    )


def one_after_the_other():
    found = table("curves")
    found = found[~found["method"].str.match(r"random_\d+$")].drop_duplicates("method").set_index("method")
    own = found["area_gap"]
    share = found["above_random"]
    orders = [f"ablation_{kind}" for kind in ABLATIONS if f"ablation_{kind}" in found.index]
    beyond = [name for name in found.index if share[name] == 1]
    assert own.idxmax() == "gate_ig" and share["ablation_zero"] < 1 and share["gate_ixg_out"] < 1
    assert own["random"] == own.min()
    single = [name for name in orders if name in beyond]
    best = found.loc["gate_ig"]
    methods = [name for name in beyond if name not in orders]
    wrong = found[(found["area_gap_ci_high"] < 0) & (found.index != "random")].sort_values("area_gap")
    told = ", ".join(
        f"`{name}` ({number(row['area_gap'], 0)} {interval(row, 0, 'area_gap_ci_low', 'area_gap_ci_high')})"
        for name, row in wrong.iterrows()
    )
    return (
        f"**One after the other** ({links('curves')}, 32 pictures): where heads leave in a method's order, from either end, "
        "the area between the two curves is largest for `gate_ig` "
        f"({number(own['gate_ig'], 0)} {interval(best, 0, 'area_gap_ci_low', 'area_gap_ci_high')}), which knows of joint "
        f"removals. Zero ablation's own order ({number(own['ablation_zero'], 0)}) and `gate_ixg_out`'s "
        f"({number(own['gate_ixg_out'], 0)}) are beyond {number(100 * share['ablation_zero'], 1)} and "
        f"{number(100 * share['gate_ixg_out'], 1)} % of 20 random orders taken from either end (column `above_random`: the "
        f"share that an order surpasses); beyond all of them are "
        f"{', '.join(f'`{name}`' for name in (*single, *methods))}. Below 0, so that heads "
        f"they call important may stay longer, are {told}. The one random order of the method `random` lies "
        f"{number(-own['random'], 0)} below 0, beyond all 20 as well: so few orders are a coarse yardstick."
    )


def many_at_once():
    found = table("infidelity").set_index("method")["infidelity"]
    return (
        f"**Many heads at once** ({links('infidelity')}; random gates, 16 pictures): added up, scores of `gate_ixg_out` leave "
        f"{number(100 * found['gate_ixg_out'], 0)} % of the change of the loss unexplained, single ablations themselves "
        f"{number(100 * found['ablation_zero'], 0)} %, random scores {number(100 * found['random'], 0)} %, `gate_ixg` "
        f"{number(100 * found['gate_ixg'], 0)} %."
    )


def other_pictures_and_tunings():
    found = table("role_changes", RESULTS / "role-changes")
    found = found[(found["query"] == "cls") & (found["tau"] == 3) & (found["model"] == "finetuned")]
    found = found[found["run_a"] == "reference"].set_index("run_b")
    pictures, seeds = found.loc["other-pictures"], found.loc[["seed-1", "seed-2"]]
    by_run = table("roles_by_run", RESULTS / "role-changes")
    by_run = by_run[(by_run["query"] == "cls") & (by_run["tau"] == 3) & (by_run["model"] == "finetuned")]
    of = {run: by_run[by_run[f"role_{run}"].str.startswith("chirp detector")] for run in ("seed-1", "seed-2")}
    assert all(set(by_run[f"role_{run}"]) <= {"diffuse", "chirp detector", "chirp detector, among others", "polysemantic"}
               for run in of)  # fmt: skip
    first = min(int(rows["layer"].min()) for rows in of.values())
    return (
        f"**Other pictures, other fine-tunings** ({links('role_changes', 'roles_by_run', folder='results/role-changes')}; 128 "
        f"pictures). On 128 pictures of another seed {int(pictures['changed'])} of {int(pictures['confident'])} confident "
        f"roles differ ({number(100 * pictures['share_changed'], 0)} %), {int(pictures['changed_concept'])} in its concept; "
        f"Cohen's κ over all heads {number(pictures['kappa'], 2)}. In two other fine-tunings of the same backbone, as "
        "long as the bundled one, "
        f"{len(of['seed-1'])} and {len(of['seed-2'])} heads are chirp detectors, from layer {first} on, and nothing else "
        f"is detected alone; {numbers(100 * seeds['share_changed'], 0)} % of the confident roles differ, "
        f"{numbers(100 * seeds['share_changed_concept'], 0)} % in their concept (κ {numbers(seeds['kappa'], 2)})."
    )


def the_other_task():
    folder = RESULTS / "role-swap"
    found = table("role_swap", folder)
    found = found[found["query"] == "cls"].set_index(["run", "region"])
    swapped, chirp = found.loc["colorbar"], found.loc["chirp-on-colorbar-pictures"]
    told = table("roles", RESULTS / "colorbar")
    told = told[(told["query"] == "cls") & (told["tau"] == 3) & (told["model"] == "finetuned")]
    text = told[told["role"].str.startswith("text box detector")]
    bar = told[told["role"].str.startswith("colorbar detector")]
    assert not told["role"].str.startswith("chirp").any()
    among = [rows["role"].str.endswith("among others").sum() for rows in (text, bar)]
    r = table("training_log", ROOT / "attribution" / "models" / "colorbar")["r_colorbar_max"].iloc[-1]
    card = table("head_scorecard", RESULTS / "colorbar").set_index(["layer", "head"]).loc[(0, 4)]
    column = "ablation_zero_var_pct"
    ticks = swapped.loc["colorbar_ticks"]
    return (
        f"**Another question moves it** ({links('role_swap', folder='results/role-swap')}, "
        f"{links('roles', folder='results/colorbar')}; 128 pictures, one model). Asked for the colour bar's maximum off "
        "the same pictures, a model of the same backbone ([`colorbar`](attribution/models/colorbar), r = "
        f"{number(r, 2)}; tuned on queries, keys and values, the bundled one on queries and values) has no chirp detector: "
        f"{len(text)} heads detect text boxes, {len(bar)} the colour bar ({among[0]} and {among[1]} of them among other "
        "things). Of the ten heads that matter most "
        f"{ticks['num_top_10_above_3']} attend to the bar's ticks more than three times chance, "
        f"{swapped.loc['colorbar', 'num_top_10_above_3']} to the bar, {swapped.loc['chirp', 'num_top_10_above_3']} to the "
        f"chirp; of the chirp's model on these pictures {chirp.loc['chirp', 'num_top_10_above_3']} to the chirp, "
        f"{chirp.loc['colorbar', 'num_top_10_above_3']} to bar and ticks. But heads that matter look at the ticks no more "
        f"than all of its heads do ({number(ticks['lift_of_what_matters'], 1)} against {number(ticks['lift_of_all'], 1)} "
        f"times chance), and its effects begin early: L0H4 {number(card[column], 1)} % "
        f"{interval(card, 1, f'{column}_ci_low', f'{column}_ci_high')}, without the outer tenths of the pictures "
        f"{number(card[f'{column}_trimmed'], 1)}."
    )


def fine_tunings():
    folder = RESULTS / "seeds"
    found = table("statements", folder)
    found = found[found["estimator"] == "mean"].set_index(["statement", "model"])
    models = ("bundled", "seed-1", "seed-2")
    rise = [found.loc[("effect_rises_with_depth", name), "value"] for name in models]
    assert bool(found.loc[("last_above_first_quarter", "every"), "holds"]) and not bool(
        found.loc[("largest_layer", "every"), "holds"]
    )
    orders = table("method_order_by_seed", folder)
    heads = table("seed_agreement", folder)
    heads = heads[(heads["estimator"] == "mean") & (heads["statistic"] == "spearman")]
    methods = table("methods_by_seed", folder)
    methods = methods[methods["truth"] == "ablation_zero"]
    firsts = [set(rows.nsmallest(4, "rank")["method"]) for _, rows in methods.groupby("model")]
    assert all(one == set(FOUR) for one in firsts)
    each = table("heads_by_seed", folder).set_index(["layer", "head"])
    first, second = (
        each.loc[head, [f"rank_{name}" for name in models]].astype(int).tolist() for head in ((9, 4), (3, 4))
    )
    assert first == [1, 2, 1] and second == [2, 6, 2]
    return (
        f"**In three fine-tunings of one backbone** ([`results/seeds`](results/seeds); each over 21,456 pictures; 128 pictures, zero ablation, "
        f"{int(orders['num_methods'].max())} methods, the same pictures): heads of layers 9 to 11 matter more than those of "
        f"0 to 2, effects rise with depth (Spearman {span(rise, 2)} over layers), and the same four methods come first "
        f"(Kendall of the order of methods {span(orders['value'], 2)}). Single heads agree less (Spearman "
        f"{span(heads['value'], 2)}; ceiling {number(heads['noise_ceiling'].max(), 2)}), and the layer that matters most "
        f"differs. L9H4 is the first head of two of them and the second of the third, L3H4 the second of two "
        f"({numbers([each.loc[(3, 4), f'effect_var_pct_{name}'] for name in models[::2]], 1)} %) and the sixth of the third, "
        "which by what is said above may be its constant alone."
    )
