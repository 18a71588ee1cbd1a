"""README's findings about the published study, about intervals and about estimates, written from the tables that they name.

As :mod:`findings_of_heads`: each function gives one paragraph, asserts what its words say, and writes every number.
"""

# ruff: noqa: E501 (sentences)

import numpy as np
from findings_of_heads import RESULTS, ROOT, interval, links, number, numbers, span, table
from scipy.stats import ttest_1samp

from analysis.score_files import read_scores

AUDIT = RESULTS / "published-audit"
GROUPS = ("early_var_pct", "sixth_var_pct", "late_var_pct")
BENCH = RESULTS / "bench"


def trend():
    return table("trend", AUDIT).set_index(["configuration", "order"])


def order_of_scenarios():
    found = trend()
    released = found.loc["as_released"]
    first, shuffled = released.loc["original"], released.drop("original")
    restored = found.loc[("without_never_restore", "original")]
    scenarios = table("scenarios", AUDIT)
    single = scenarios[scenarios["configuration"] == "without_never_restore"]["increase_pct"].abs().max()
    assert len(shuffled) == 5 and all(abs(restored[name]) < 0.005 for name in ("early_pct", "sixth_pct", "late_pct"))
    return (
        f"**The released procedure's layer trend is the order of its scenarios** "
        f"({links('trend', 'scenarios', folder='results/published-audit')}; 64 pictures, batches of 32). Run as released, "
        "over layers from first to last, its increases of the loss go with the layer by a rank correlation of "
        f"{number(first['spearman_layer'], 2)}: {number(first['early_pct'], 2)} % of the baseline in layers 1 to 3, "
        f"{number(first['sixth_pct'], 2)} % in layer 6, {number(first['late_pct'], 2)} % in layers 6 to 12, where the study "
        "published a rise from 0.11 to 0.34 %. In five shuffled orders the correlation with the layer is "
        f"{span(shuffled['spearman_layer'], 2)}, that with the place in the order {span(shuffled['spearman_position'], 2)}: "
        "damage of earlier scenarios is never undone. With weights restored after each scenario nothing is left in any "
        f"group of layers (0.00 %; no single scenario above {number(single, 3)} %). True ablation of the same model on the "
        f"same pictures gives {numbers([found.loc[('true_ablation', 'original'), name] for name in GROUPS], 2)} % of the "
        "label variance."
    )


def fault_by_fault():
    found = trend()

    def alone(name, digits=2):
        row = found.loc[(f"only_{name}", "original")]
        return ", ".join(number(row[group], digits) for group in GROUPS)

    true = found.loc[("true_ablation", "original")]

    def without(name):
        return found.loc[(f"without_{name}", "original")]

    assert all(without(name)["spearman_layer"] > 0.5 for name in ("one_row", "raw_labels"))
    kept = [found.loc[("only_after_forward", "original"), group] / true[group] for group in GROUPS]
    lost = found.loc[("only_never_restore", "original")]
    return (
        f"**Fault by fault** ({links('trend', folder='results/published-audit')}), each alone against true ablation "
        f"({numbers([true[group] for group in GROUPS], 2)} % of the label variance in layers 1 to 3, 6, and 6 to 12): weights "
        f"changed after the pass leave {span(kept, 2)} of it, as one batch of two stays intact "
        f"({alone('after_forward')}); one row in a head's place leaves nothing ({alone('one_row')}); heads never put back "
        f"make it {number(lost['early_var_pct'], 1)}, {number(lost['sixth_var_pct'], 0)} and "
        f"{number(lost['late_var_pct'], 0)}; the fine-tuned transformer left out {alone('drop_finetuned', 1)}; labels in "
        f"units {alone('raw_labels')}; the other preprocessing {alone('other_preprocessing')}. With all faults "
        f"but one, the sign of its correlation with the layer turns where a head's whole part is removed instead "
        f"of one row ({number(without('one_row')['spearman_layer'], 2)}; {numbers([without('one_row')[group] for group in GROUPS], 2)} %) "
        f"and where labels are standardised ({number(without('raw_labels')['spearman_layer'], 2)}; "
        f"{numbers([without('raw_labels')[group] for group in GROUPS], 2)} %), so that a rise with depth as the published one "
        "comes of the same procedure by another choice. All of these are single runs on 64 pictures, without intervals."
    )


def wrong_units():
    baseline = trend().loc[("as_released", "original"), "baseline_loss"]
    return (
        f"**Its baseline is that of wrong units** ({links('trend', folder='results/published-audit')}): standardised "
        f"predictions against labels in units, {number(baseline, 0)} here (2465.65 in its usage example). Nearly all of it "
        "is the labels' own size, so that any effect is a small share of it."
    )


def maps_as_released():
    found = table("maps", AUDIT)
    counts = {name: int((rows["share_above_3"] >= 0.8).sum()) for name, rows in found.groupby("map")}
    mine = found[found["map"] == "as_released"]
    return (
        f"**Maps as released look elsewhere** ({links('maps', folder='results/published-audit')}). The released maps average "
        "patch queries and drop the row the prediction is read from: over heads they correlate with it by "
        f"{number(mine['spearman_cls'].mean(), 2)} in the mean (Spearman over patches), and {counts['as_released']} of "
        f"{len(mine)} heads attend to the chirp more than three times chance in 80 % of the pictures, against "
        f"{counts['cls']} by the CLS query."
    )


def covers():
    found = table("interval_coverage", RESULTS / "estimate")
    mean = found[(found["estimator"] == "mean") & (found["run"] == "estimate")]

    def of(kind, column, size, run=mean):
        return run[(run["interval"] == kind) & (run["num_pictures"] == size)][column]

    sizes = (16, 64, 128, 512)
    median = [of("student_t", "coverage_median", size).min() for size in sizes]
    worst = [of("student_t", "coverage_min", size).min() for size in sizes]
    bca = [of("bca", "coverage_median", size) for size in sizes]
    below = of("student_t", "below_share", 16)
    stored, stored_published = (
        len(read_scores(RESULTS / run / "scores" / "ablation_zero.safetensors")[0]["delta_loss"])
        for run in ("estimate", "published")
    )
    heavy = found[(found["estimator"] == "mean") & (found["run"] == "published")]
    cut = found[(found["estimator"] == "trimmed") & (found["run"] == "published") & found["in_use"]]

    def both(kind, size, column="coverage_median"):
        return span(100 * of(kind, column, size, heavy), 0)

    return (
        f"Intervals are over pictures. Those of means are Student's t, which covers best in trials on the bundled model's "
        f"effects at every number of pictures tried ({links('interval_coverage', folder='results/estimate')}; pictures drawn from the "
        f"{stored} stored ones, or with fitted tails beyond them; ranges are over both). Of 95 % intervals in the median head "
        f"{numbers(100 * np.array(median), 0)} % cover at 16, 64, 128 and 512 pictures (BCa "
        f"{', '.join(span(100 * one, 0) for one in bca)}), in the worst head {numbers(100 * np.array(worst), 0)} %; what they "
        f"miss is mostly larger than they say ({span(100 * below, 0)} % of the misses at 16 pictures). On effects like those "
        "of `published` pictures, where one picture can make a mean, they cover less: in the median head "
        f"{both('student_t', 16)} % at 16 pictures, {both('student_t', 128)} % at 128 and {both('student_t', 512)} % at 512 "
        f"(BCa {both('bca', 512)} %), in the worst head {both('student_t', 16, 'coverage_min')}, "
        f"{both('student_t', 128, 'coverage_min')} and {both('student_t', 512, 'coverage_min')} %. There the trimmed mean is "
        f"to be read, whose interval covers {span(100 * cut['coverage_median'], 0)} % in the median head and "
        f"{span(100 * cut['coverage_min'], 0)} % in the worst. How heavy tails really are, {stored_published} pictures cannot tell."
    )


def estimates_cost():
    precision = table("estimate_precision", RESULTS / "estimate").set_index(["estimator", "num_pictures", "num_swept"])
    row = precision.loc[("outputs", 128, 48)]
    cover = table("estimate_coverage", RESULTS / "estimate")
    cover = cover[(cover["num_pictures"] == 128) & (cover["interval"] == "student_t")].set_index(
        ["estimator", "num_swept"]
    )
    mine, exact = cover.loc[("outputs", 48)], cover.xs("exact", level="estimator").iloc[0]
    cost = table("estimate_cost", RESULTS / "estimate")
    cost = cost[(cost["estimator"] == "outputs") & (cost["rule"] == "poor_heads_swept") & (cost["num_swept"] == 48)]
    best = [cost[cost["predictor_forwards"] == passes]["times_cheaper"] for passes in (2, 3, 4)]
    bench = table("estimate", BENCH).iloc[0]
    assert row["bias_z_max"] < 3
    return (
        "In trials on the effects of 128 swept pictures, with 48 swept, the predictor explains "
        f"{number(100 * row['r2_median'], 0)} % of the variance in the median head (10 to 90 % of the heads: "
        f"{number(100 * row['r2_q10'], 0)} to {number(100 * row['r2_q90'], 0)} %), no head's bias can be told from zero, and "
        f"{number(100 * mine['coverage_median'], 0)} % of the median head's intervals cover (worst head "
        f"{number(100 * mine['coverage_min'], 0)} %; the exact sweep's {number(100 * exact['coverage_median'], 0)} and "
        f"{number(100 * exact['coverage_min'], 0)} %; rows `student_t`). For intervals of equal width it costs "
        f"{', '.join(f'{span(one, 1)} times less at {passes}' for one, passes in zip(best, ('2', '3', '4 forward passes a prediction'), strict=True))}"
        f" ({links('estimate_cost', folder='results/estimate')}, rows `poor_heads_swept`, {number(cost['num_pictures'].min(), 0)} "
        f"to {number(cost['num_pictures'].max(), 0)} pictures). In float32 a prediction takes "
        f"{number(1 / bench['ratio_to_baseline'], 2)} of the sweep's time ({links('estimate', folder='results/bench')})."
    )


def the_sweep():
    found = table("sweep", BENCH).set_index(["contender", "baseline"])
    mine = "sweep, blocks taken apart"
    passes, captum = found.loc[(mine, "one forward per head")], found.loc[(mine, "Captum LayerFeatureAblation")]
    whole = found.loc[("sweep, whole blocks", "one forward per head")]
    return (
        f"On two cores it takes {number(passes['seconds_median'] / passes['pictures'], 1)} s per picture for the 72 heads of "
        f"the bundled model: {number(passes['ratio_to_baseline'], 1)} times faster than one forward pass per head, "
        f"{number(captum['ratio_to_baseline'], 1)} times faster than Captum's `LayerFeatureAblation`, at "
        f"{number(100 * passes['share_of_matmul_rate'], 0)} % of the rate of a large float32 matrix product, and equal to "
        f"full passes within 1.2e-6 of the largest loss ({links('sweep', folder='results/bench')}; whole blocks, for models "
        f"that are not taken apart, {number(whole['ratio_to_baseline'], 1)} times faster)."
    )


def which_models():
    """What was judged, and what stands beside it."""
    found = table("claims", RESULTS / "claims")
    items = found[(found["claim"] == "C6") & ~found["quantity"].str.contains("version 1")]
    pictures = found[found["claim"] == "C1"].groupby(["preset", "run"])["n_pictures"].max()
    shown = items.groupby("preset")["n_pictures"].agg(["min", "max"]).astype(int)
    read = {}
    for name in ("default", "seed-1", "seed-2", "published"):
        log = table("training_log", ROOT / "attribution" / "models" / name)
        read[name] = int(log["pictures"].iloc[-1])
    assert set(pictures["default"].index) == {"reference", "seed-1", "seed-2"} and set(pictures["default"]) == {128}
    assert set(pictures["published"].index) == {"published"} and len(set(read.values())) == 1
    v1 = table("claims", RESULTS / "claims-v1").drop_duplicates("run").groupby("preset")["run"].count()
    said = table("verdicts", RESULTS / "claims-v1").set_index(["preset", "claim"])["verdict"]
    assert [name for name in "C1 C2 C3 C4 C5 C6".split() if said["default", name] == "supported"] == ["C1", "C5"]
    assert [name for name in "C1 C2 C3 C4 C5 C6".split() if said["published", name] == "supported"] == ["C5"]
    return (
        "Version 2 has judged four models, each of which read "
        f"{read['default']:,} pictures: three on `default` ones (the bundled model, [`seed-1`](attribution/models/seed-1) and "
        "[`seed-2`](attribution/models/seed-2); 128 pictures each, with irrelevant items on "
        f"{shown.loc['default', 'min']} to {shown.loc['default', 'max']} of them) and one on `published` ones "
        f"([`published`](attribution/models/published); {int(pictures['published'].iloc[0])} pictures, with irrelevant items on "
        f"{shown.loc['published', 'max']} of them). Version 1 judged {v1['default']} models of `default` and {v1['published']} of "
        "`published` pictures ([`claims-v1/verdicts.md`](results/claims-v1/verdicts.md)), shorter fine-tunings but for the "
        "bundled one: on `default` pictures C1 and C5 were supported, on `published` ones C5 alone. The released procedure "
        "was run on that model of `published` pictures, [`published-shorter`](attribution/models/published-shorter), which read "
        "half as many."
    )


def one_picture():
    found = table("claims", RESULTS / "claims")
    mean = found[found["quantity"] == "mean effect of layers 1-3"].set_index("run")
    mine, others = mean.loc["published"], mean.drop("published")
    stored = read_scores(RESULTS / "published" / "scores" / "ablation_zero.safetensors")[0]
    of_picture, intact = 100 * stored["delta_loss"][:, :3].mean(axis=(1, 2)), 100 * stored["intact_loss"]
    first, second = np.argsort(-np.abs(of_picture))[:2]
    assert {first, second} == set(np.argsort(-intact)[:2]) and set(others["preset"]) == {"default"}
    assert abs(of_picture.mean() - mine["value"]) < 1e-9 and mine["level"] == 0.9

    def told(values):
        limits = ttest_1samp(values, 0).confidence_interval(0.9)
        return f"{number(values.mean(), 2)} [{number(limits.low, 2)}, {number(limits.high, 2)}]"

    v1 = table("claims", RESULTS / "claims-v1")
    v1 = v1[(v1["quantity"] == "mean effect of layers 1-3") & (v1["run"] == "published")].iloc[0]
    return (
        f"**A few pictures can make a mean** ({links('claims', folder='results/claims')}, "
        "[`ablation_zero.safetensors`](results/published/scores); % of the label variance, 90 % intervals). On `published` "
        f"pictures the mean effect of layers 1 to 3 is {told(of_picture[:128])} over the first 128 and {told(of_picture)} over "
        f"all {len(of_picture)}; without the two pictures that move it most (numbers {first} and {second}, which the model "
        f"reads worst: errors of {number(intact[first], 0)} and {number(intact[second], 0)} where the mean is "
        f"{number(intact.mean(), 1)}) it is {told(np.delete(of_picture, [first, second]))}, without the lowest and highest "
        f"tenth of all {number(mine['trimmed_value'], 2)}. The {number(v1['value'], 2)} {interval(v1, 2)} that version 1 had of "
        f"128 pictures and a model of half the training is the study's own figure. On `default` pictures the mean is "
        f"{span(others['value'], 2)} over {len(others)} models."
    )


def irrelevant_heads():
    """What C4's word on `published` pictures rests on."""
    found = table("claims", RESULTS / "claims")
    found = found[(found["claim"] == "C4") & (found["preset"] == "published")].set_index("quantity")
    first, named = found.iloc[0], found.filter(like="monosemantic", axis=0).iloc[0]
    others = {end: found.filter(like=end, axis=0).iloc[0] for end in ("by the mean query", "at tau 2", "at tau 5")}
    roles = table("roles", RESULTS / "published")
    roles = roles[(roles["model"] == "finetuned") & (roles["tau"] == 3) & roles["layer"].isin(range(4))]
    told = roles[(roles["verdict"] == "detector") & (roles["concepts"] != "chirp")]
    assert set(told["query"]) == {"cls"} and found["run"].nunique() == 1
    assert [f"L{row.layer}H{row.head} {row.concepts}" for row in told.itertuples()] == ["L0H3 colorbar", "L0H5 text"]
    text = told[told["concepts"] == "text"].iloc[0]
    other = roles[(roles["layer"] == 0) & (roles["head"] == 5) & (roles["query"] == "mean")].iloc[0]
    assert text["semanticity"] == "unclassified" and other["verdict"] == "position prior"
    default = table("claims", RESULTS / "claims")
    default = default[(default["claim"] == "C4") & default["quantity"].str.startswith("monosemantic")]
    assert len(default) == 4 and (default["value"] == 0).all()
    assert (first["verdict"], named["word"], others["at tau 5"]["word"]) == ("supported", "refuted", "refuted")
    return (
        "**What supports C4 on `published` pictures is little** ([`claims.csv`](results/claims/claims.csv), "
        "[`roles.csv`](results/published/roles.csv)): by the CLS query one head of the colour bar, L0H3, which the study "
        f"does not name, and one of text among other things, L0H5, whose attention lets go of text by {number(text['evidence'], 2)}; "
        f"by the mean query, which the study's maps are of, L0H5 stays ({number(other['evidence'], 2)}) and none is left. On these "
        "pictures twins take text and colour bar out and move neither. At τ = 2 there are "
        f"{int(others['at tau 2']['value'])} such heads, at τ = 5 {int(others['at tau 5']['value'])}; monosemantic detectors of "
        f"text, edges or corners, as the study words it, there are {int(named['value'])} in any of the four models."
    )
