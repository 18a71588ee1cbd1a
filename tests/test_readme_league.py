"""README's sentences about the league, the price test and calibration, recomputed from what the reference run stored.

A sentence is found by an anchor phrase; its numbers are compared, to the digits written, with the committed tables or,
for what no table of the run holds, with the stored scores.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.ablation_at_cost import beats_ablation
from analysis.agreement import aggregated, random_halves, spearman
from analysis.calibration import calibration_table
from analysis.differences import difference_table
from analysis.duplicates import duplicate_groups
from analysis.intervals import bootstrap_indices
from analysis.jackknife import halves_left_out, jackknife_interval, mean_over_halves
from analysis.score_files import read_scores
from analysis.scorecard import oriented
from attribution.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "reference"
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").replace("−", "-").split())
KINDS = ("zero", "mean", "resample", "counterfactual")
CONTROLS = ("random", "layer_index", "parameter_norm")
OTHERS = {"mean": "ablation_mean", "resample": "ablation_resample", "counterfactual": "ablation_counterfactual",
          "Shapley": "shapley"}  # fmt: skip


def told(pattern):
    """The groups of the one place in README that matches."""
    found = list(re.finditer(pattern, README))
    assert len(found) == 1, (pattern, len(found))
    return found[0].groups()


def as_written(value, text):
    """The number with as many digits as the text has."""
    digits = len(text.partition(".")[2])
    return f"{round(float(value), digits) + 0.0:.{digits}f}"


def check(values, texts):
    assert [as_written(value, text) for value, text in zip(values, texts, strict=True)] == list(texts)


@pytest.fixture(scope="module")
def agreement():
    table = pd.read_csv(FOLDER / "agreement.csv")
    table = table[table["estimator"] == "mean"]

    def of(method, truth="ablation_zero", statistic="spearman"):
        keys = (table["method"] == method) & (table["truth"] == truth) & (table["statistic"] == statistic)
        return table[keys].squeeze()

    return of


@pytest.fixture(scope="module")
def scores():
    found = {
        name: oriented(read_scores(FOLDER / "scores" / f"{name}.safetensors")[0]["scores"].astype(np.float64), method)
        for name, method in METHODS.items()
    }
    stands_for = duplicate_groups({name: one for name, one in found.items() if name not in CONTROLS})
    return {name: one for name, one in found.items() if stands_for.get(name, name) == name}


@pytest.fixture(scope="module")
def truths():
    return {
        f"ablation_{kind}": read_scores(FOLDER / "scores" / f"ablation_{kind}.safetensors")[0]["delta_loss"]
        for kind in KINDS
    }


@pytest.fixture(scope="module")
def different(scores, truths):
    """Differences from the best across pictures; its bootstrap of the same pictures is not looked at."""
    few = lambda count: bootstrap_indices(count, 2)  # noqa: E731
    table = difference_table(scores, truths, CONTROLS, few, 0)
    return table[table["pictures"] == "different"].set_index(["truth", "method"])


@pytest.fixture(scope="module")
def matched(agreement):
    at_cost = pd.read_csv(FOLDER / "ablation_at_cost.csv").set_index("method")
    cross = pd.Series({name: agreement(name)["value_cross"] for name in at_cost.index})
    return at_cost["spearman_matched"], beats_ablation(cross, at_cost["spearman_matched"])


def table_rows():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").replace("−", "-").splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("| method | n | price | zero"))
    cells = [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in lines[start:]]
    names = cells[0]
    rows = [dict(zip(names, row, strict=True)) for row in cells[2 : next(i for i, c in enumerate(cells) if len(c) < 3)]]
    bold = ["**" in line.rsplit("|", 2)[1] for line in lines[start + 2 : start + 2 + len(rows)]]
    return [row | {"method": row["method"].removesuffix(" (control)"), "won": won}
            for row, won in zip(rows, bold, strict=True)]  # fmt: skip


def test_the_table_of_methods(agreement, scores, truths, matched):
    league = pd.read_csv(FOLDER / "league.csv").set_index("method")
    rows = table_rows()
    assert sorted(row["method"] for row in rows) == sorted(scores)
    cross = [agreement(row["method"])["value_cross"] for row in rows]
    assert cross == sorted(cross, reverse=True)
    sweep, won = matched
    for row in rows:
        name, zero = row["method"], agreement(row["method"])
        assert int(row["n"]) == zero["n"]
        check([league.loc[name, "forwards"]], [row["price"]])
        value, low, high = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", row["zero [95 %]"]).groups()
        n = int(zero["n"])
        halves = random_halves(n, 200, 0)
        first, second = halves_left_out(*halves)
        left = spearman(aggregated(scores[name], first), aggregated(truths["ablation_zero"][:n], second))
        limits = jackknife_interval(zero["value_cross"], mean_over_halves(left, 200))
        check([zero["value_cross"], *limits], [value, low, high])
        check([zero["value"]], [row["zero, same pictures"]])
        for column, truth in OTHERS.items():
            check([agreement(name, truth)["value_cross"]], [row[column]])
        within = agreement(name, statistic="spearman_within_layers")["value_cross"]
        assert row["within layers"] == "–" if np.isnan(within) else as_written(within, row["within layers"])
        if name in CONTROLS:
            assert row["ablation at its price"] == "–" and not row["won"]
        else:
            check([sweep[name]], [row["ablation at its price"]])
            assert row["won"] == won[name]


def test_the_price_test(matched, scores):
    count, total, *names = told(
        r"\*\*The price test\*\* is passed by (\w+) of (\d+) methods: "
        r"`(\w+)`, `(\w+)`, `(\w+)`, `(\w+)` and `(\w+)` agree"
    )
    won = matched[1].reindex([name for name in scores if name not in CONTROLS])
    assert sorted(names) == sorted(won.index[won.eq(True)]) and (count, int(total)) == ("five", len(won))
    assert len(names) == 5


def test_the_first_methods_and_their_differences(agreement, different):
    low, high, ceiling = told(
        r"the first three reach (\S+) to (\S+) on other pictures than the truth's, against a ceiling of ([\d.]+), and"
    )
    first = ("gate_saliency_out", "gate_saliency", "gate_ixg_out")
    values = [agreement(name)["value_cross"] for name in first]
    check([min(values), max(values), agreement(first[0])["noise_ceiling"]], [low, high, ceiling])
    zero = different.loc["ablation_zero"]
    assert set(zero["best"]) == {"gate_saliency_out"}
    assert (zero.loc[list(first[1:]), "p_holm"] > 0.05).all()
    assert (zero["p_holm"] < 0.05).sum() == len(zero) - 2
    row = zero.loc["gate_ixg_out"]
    check(row[["difference", "difference_ci_low", "difference_ci_high", "p_holm"]], told(
        r"is ahead of `gate_ixg_out` by (\S+) \[(\S+), (\S+)\], p = (\S+) after Holm"))  # fmt: skip
    check([agreement("gate_ixg_out")["value"]], told(r"On the same pictures `gate_ixg_out` leads with (\S+):"))


def test_no_method_is_best(agreement, different):
    others = [truth for truth in OTHERS.values() if truth != "shapley"]
    assert all(set(different.loc[truth, "best"]) == {"layer_deep_lift_out"} for truth in others)
    check([agreement("layer_deep_lift_out", truth)["value_cross"] for truth in others],
          told(r"is first under the three other truths \((\S+), (\S+) and (\S+)\)"))  # fmt: skip
    rows = [different.loc[(truth, "gate_saliency_out")] for truth in others]
    assert all(row["p_holm"] > 0.05 and row["difference"] > 0 for row in rows)
    gaps = [row["difference"] for row in rows]
    check([min(gaps), max(gaps)], told(r"`gate_saliency_out` \(ahead by (\S+) to ([\d.]+)\)"))
    rows = [different.loc[(truth, "layer_ig_out")] for truth in others]
    assert all(row["p_holm"] > 0.05 and row["n"] == 32 for row in rows)
    gaps = [-row["difference"] for row in rows]
    check([min(gaps), max(gaps)], told(r"is ahead of it on its 32 pictures \(by (\S+) to ([\d.]+)\)"))


def test_depth_alone(scores, truths, agreement):
    on_trial = {name: found for name, found in scores.items() if name in ("layer_index", *METHODS)}
    known = {name: found for name, found in on_trial.items() if name not in ("random", "parameter_norm")}
    zero = {"ablation_zero": truths["ablation_zero"]}
    rest = [name for name in known if name != "layer_index"]  # depth is the one that all are held against
    table = difference_table(known, zero, rest, lambda count: bootstrap_indices(count, 2), 0)
    table = table[table["pictures"] == "different"].set_index("method")
    sure = table["p_holm"] < 0.05
    ahead, behind = (table.index[sure & (table["difference"] * sign > 0)] for sign in (1, -1))
    four = {"gate_saliency_out", "gate_saliency", "gate_ixg_out", "layer_deep_lift_out"}
    assert set(behind) == four
    told_ahead, told_others, *level = told(
        r"Depth alone is ahead of (\d+) of the other (\d+)\*\*, tested like that under zero ablation, and level with "
        r"`(\w+)`, `(\w+)` and `(\w+)` on their 32"
    )
    assert (len(ahead), len(table) - len(four)) == (int(told_ahead), int(told_others))
    assert set(level) == set(table.index[~sure]) and set(table.loc[level, "n"]) == {32}
    counterfactual = [agreement(name, "ablation_counterfactual")["value_cross"] for name in known]
    best = max(value for name, value in zip(known, counterfactual, strict=True) if name != "layer_index")
    check([agreement("layer_index", "ablation_counterfactual")["value_cross"], best],
          told(r"as well as the best method does \((\S+) against ([\d.]+)\)"))  # fmt: skip
    league = pd.read_csv(FOLDER / "league.csv").set_index("method")
    better = league["num_truths_better_than_layer_index"].drop(list(CONTROLS))
    assert set(better.index[better == 5]) == {"layer_deep_lift_out", "layer_ig_out"}
    assert set(better.index[better == 4]) == four - {"layer_deep_lift_out"} | {"layer_ig"}


def test_what_is_explained(agreement):
    value = lambda name: agreement(name)["value_cross"]  # noqa: E731
    check([value("gate_ixg"), agreement("gate_ixg")["value"]],
          told(r"tells next to nothing \((\S+), on the same pictures (\S+)\)"))  # fmt: skip
    check([value("gate_ixg_out")], told(r"is among the best \((\S+)\)"))
    pairs = (("layer_deep_lift", r"DeepLift gains likewise \((\S+) to (\S+)\)"),
             ("gate_ig", r"integrated gradients over gates \((\S+) to (\S+)\)"),
             ("layer_ig", r"and over contexts \((\S+) to (\S+)\)"))  # fmt: skip
    for name, pattern in pairs:
        check([value(name), value(f"{name}_out")], told(pattern))
    assert abs(value("internal_influence_out") - value("internal_influence")) < 0.05
    assert value("conductance_out") < value("layer_conductance") + 0.01
    assert value("layer_gradient_shap_out") < value("layer_gradient_shap")


def test_attention_and_other_questions(agreement):
    within = agreement("value_norm", statistic="spearman_within_layers")["value_cross"]
    check([agreement("value_norm")["value_cross"], within],
          told(r"`value_norm` \((\S+)\), has next to no agreement within layers \((\S+)\)"))  # fmt: skip
    for name in ("max_weight", "cls_mass"):
        assert agreement(name, statistic="spearman_within_layers")["value_cross"] < 0
    drops = [agreement("rollout_drop", f"ablation_{kind}")["value_cross"] for kind in KINDS]
    check([max(drops), min(drops)], told(r"`rollout_drop` against all four removals \((\S+) to (\S+)\)"))
    shapley = agreement("gate_ig", "shapley")
    check([agreement("gate_ig")["value_cross"], shapley["value_cross"], shapley["noise_ceiling"], shapley["n"]], told(
        r"single removals \((\S+)\), and agree best of all with Shapley values \((\S+) on other pictures, of a ceiling "
        r"of ([\d.]+); (\d+) pictures\)"))  # fmt: skip


def test_calibration_with_and_without_the_largest_head(scores, truths):
    predicted = {name: scores[name] for name in ("gate_ixg_out", "conductance_out")}
    table = calibration_table(predicted, truths["ablation_zero"], lambda count: bootstrap_indices(count, 2000))
    rows = table[table["level"] == "mean"].set_index("method")
    row = rows.loc["gate_ixg_out"]
    check(row[["slope", "slope_ci_low", "slope_ci_high", "r2"]],
          told(r"three quarters of an effect \(slope (\S+) \[(\S+), (\S+)\], R² (\S+) over heads\)"))  # fmt: skip
    names = ["largest_layer", "largest_head", "slope_without_largest", "slope_without_largest_ci_low",
             "slope_without_largest_ci_high", "r2_without_largest"]  # fmt: skip
    check(row[names], told(r"over heads\)\. L(\d+)H(\d+) carries part of that: over the 71 other heads it predicts two "
                           r"thirds \(slope (\S+) \[(\S+), (\S+)\], R² ([\d.]+)\)"))  # fmt: skip
    assert truths["ablation_zero"][0].size == 72
    assert 1 / row["slope"] == pytest.approx(3 / 4, abs=0.01)
    assert 1 / row["slope_without_largest"] == pytest.approx(2 / 3, abs=0.01)
    other = rows.loc["conductance_out"]
    assert round(1 / other["slope"]) == 7 and round(1 / other["slope_without_largest"]) == 20
    told(r"`conductance_out` predicts seven times too much, without L9H4 twenty times")


def test_what_early_layers_do_together():
    value, low, high = told(r"cost ([\d.]+) % \[([\d.]+), ([\d.]+)\] when all are removed at once")
    (summed,) = told(r"heads of layers 0 to 2 add up to ([\d.]+) % of the label variance")
    table = pd.read_csv(FOLDER / "joint_removal.csv", dtype={"layers": str})
    row = table[(table["level"] == "group") & (table["layers"] == "0-2")].squeeze()
    check([row["joint_var_pct"], row["ci_low"], row["ci_high"]], [value, low, high])
    check([row["sum_of_single_var_pct"]], [summed])
    assert row["n"] == 32
