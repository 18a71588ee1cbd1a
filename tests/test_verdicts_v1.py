"""Version 1 of the plan gives the verdicts it gave: on the values measured for it (four models, both presets)."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.plan import CLAIMS
from analysis.verdicts_v1 import ENDING, over_models_v1, verdict_v1

VALUES = pd.read_csv(Path(__file__).parent / "data" / "claims_v1.csv", keep_default_na=False, na_values=[""])
DIVISOR = "effect of layers 1-3, by which is divided"


def as_measured_now(rows):
    """Old rows under the names of today: means and ratios had the interval of version 1, its guard stood in a sentence
    alone."""
    ratio = rows["quantity"].str.startswith("effect of layer")
    old = ratio | (rows["quantity"] == "mean effect of layers 1-3") | rows["quantity"].str.startswith("slope over")
    named = rows.assign(quantity=rows["quantity"].where(~old, rows["quantity"] + ENDING))
    by_cls = rows["quantity"].str.startswith("detectors")
    named["quantity"] = named["quantity"].where(~by_cls, named["quantity"] + ", by the cls query")
    about_zero = rows["why"].fillna("").str.contains("cannot be told from 0").any()
    guard = {
        "claim": "C2",
        "quantity": DIVISOR + ENDING,
        "value": 0.4,
        "ci_low": -0.1 if about_zero else 0.1,
        "ci_high": 1.0,
    }
    return pd.concat([named, pd.DataFrame([guard])], ignore_index=True) if ratio.any() else named


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("run", ["reference", "seed-1", "seed-2", "published"])
def test_its_verdicts_are_reproduced(claim, run):
    rows = VALUES[(VALUES["claim"] == claim) & (VALUES["run"] == run)]
    assert len(rows) and verdict_v1(claim, as_measured_now(rows)) == rows["verdict"].iloc[0]


def test_all_its_words_occur():
    """So that the test above can fail."""
    assert set(VALUES["verdict"]) == {"supported", "not supported"}
    for claim, change in (
        ("C1", {"ci_high": 0.6}),
        ("C2", {"ci_low": 2.0, "ci_high": 4.0}),
        ("C3", {"value": 0.9, "ci_low": 0.7}),
        ("C4", {"value": 1}),
        ("C5", {"value": 0.5}),
        ("C6", {"ci_low": 0.01}),
    ):
        rows = as_measured_now(VALUES[(VALUES["claim"] == claim) & (VALUES["run"] == "reference")])
        changed = rows.assign(**{name: value for name, value in change.items()})
        if claim == "C3":
            changed.loc[changed["quantity"].str.startswith("the same"), "value"] = 0.1
        assert verdict_v1(claim, changed) != verdict_v1(claim, rows), claim
        nothing = rows.assign(value=np.nan, ci_low=np.nan, ci_high=np.nan)
        assert verdict_v1(claim, nothing) == "untestable"


def test_its_share_of_chirp_heads_and_the_lower_limit_are_two_things():
    """The share is held against 0.8, the lower limit against the earlier layers' share, and neither for the other."""

    def verdict(share, low, earlier):
        rows = [
            ("share of layers 6-11 that is monosemantic for the chirp", share, low),
            ("the same share of layers 1-5", earlier, 0.0),
        ]
        return verdict_v1("C3", pd.DataFrame(rows, columns=["quantity", "value", "ci_low"]))

    assert verdict(0.85, 0.7, 0.5) == "supported"  # a lower limit below 0.8 is no matter
    assert verdict(0.75, 0.7, 0.5) == "not supported"  # the share below 0.8
    assert verdict(0.85, 0.7, 0.8) == "not supported"  # the lower limit below the earlier share, which the share is not
    assert verdict(0.8, 0.71, 0.7) == "supported"


def test_a_ratio_to_nothing_was_untestable():
    rows = as_measured_now(VALUES[(VALUES["claim"] == "C2") & (VALUES["run"] == "reference")])
    rows.loc[rows["quantity"] == DIVISOR + ENDING, "ci_low"] = -0.1
    assert verdict_v1("C2", rows) == "untestable"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["not supported", "untestable"], "not supported"),
        (["untestable", "untestable"], "untestable"),
        (["supported", "untestable", "not supported"], "not in every model (1 of 3)"),
    ],
)
def test_over_models(verdicts, expected):
    assert over_models_v1(pd.Series(verdicts)) == expected
