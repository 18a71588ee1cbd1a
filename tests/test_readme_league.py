"""README's table of methods, recomputed from tables and stored scores of the reference run, to the digits written."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.ablation_at_cost import beats_ablation
from analysis.agreement import aggregated, random_halves, spearman
from analysis.duplicates import duplicate_groups
from analysis.jackknife import halves_left_out, jackknife_interval, mean_over_halves
from analysis.score_files import read_scores
from analysis.scorecard import oriented
from attribution.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "reference"
KINDS = ("zero", "mean", "resample", "counterfactual")
CONTROLS = ("random", "layer_index", "parameter_norm")
OTHERS = {"mean": "ablation_mean", "resample": "ablation_resample", "counterfactual": "ablation_counterfactual",
          "Shapley": "shapley"}  # fmt: skip


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
