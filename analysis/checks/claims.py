"""The claims of the published study (arXiv 2503.18762), measured on this run and judged by the plan.

Takes the truth and the tables of ``roles``, ``role_halves`` and ``distraction``; has no passes of its own and gives one
row a measured quantity, with the verdict on its claim. Thresholds are those of `analysis/configs/plan.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from analysis.checks.concepts import FINETUNED
from analysis.checks.evidence import Evidence, Orders
from analysis.intervals import Interval, bootstrap_interval, interval_over_images, weighted_ratio
from analysis.models import OpenedModel
from analysis.passes import Pass
from analysis.pictures import PictureSource
from analysis.plan import read_plan
from analysis.settings import CompareSettings
from attribution.method import Method

NEEDS = ("roles", "role_halves", "distraction")
SUPPORTED, NOT_SUPPORTED, UNTESTABLE = "supported", "not supported", "untestable"
COLUMNS = (
    *("claim", "quantity", "unit", "value", "ci_low", "ci_high", "level", "value_pct_of_baseline"),
    *("n_pictures", "n_heads", "test", "met", "verdict", "why"),
)
VAR_PCT = "% of the label variance"
TAU = 3.0

Floats = NDArray[np.float64]


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """None."""
    return []


def table(evidence: Evidence) -> pd.DataFrame:
    """Rows of all claims (`COLUMNS`). ``met``: whether the quantity meets its test (empty: it has none, or cannot be
    tested); a claim is supported where all of its tests are met, untestable where one cannot be made."""
    effects = 100 * evidence.truth.delta_loss
    baseline = float(100 * evidence.truth.intact_loss.mean())
    roles = evidence.tables.get("roles", pd.DataFrame())
    if len(roles):
        roles = roles[(roles["model"] == FINETUNED) & (roles["query"] == "cls") & (roles["tau"] == TAU)]
    halves = evidence.tables.get("role_halves", pd.DataFrame())
    distraction = evidence.tables.get("distraction", pd.DataFrame())
    indices = evidence.indices(len(effects))
    return pd.concat(
        [
            judged("C1", early_heads(effects, indices, baseline)),
            judged("C2", deeper_heads(effects, indices)),
            judged("C3", chirp_alone(roles, effects.shape[1])),
            judged("C4", irrelevant_detectors(roles, effects, indices)),
            judged("C5", maps_tell(roles, halves)),
            judged("C6", distraction_over_depth(distraction)),
        ],
        ignore_index=True,
    )


def judged(claim: str, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of a claim with its verdict; `met` None is a quantity without a test, NaN a test that cannot be made."""
    found = pd.DataFrame([{"claim": claim, "why": ""} | dict(row) for row in rows]).reindex(columns=list(COLUMNS))
    tests = [row["met"] for row in rows if row["met"] is not None]
    if not tests or any(met is np.nan for met in tests):
        verdict = UNTESTABLE
    else:
        verdict = SUPPORTED if all(tests) else NOT_SUPPORTED
    told = {True: "yes", False: "no"}
    found["met"] = [told[met] if isinstance(met, bool) else "" for met in (row["met"] for row in rows)]
    return found.assign(verdict=verdict)


def early_heads(effects: Floats, indices: NDArray[np.integer], baseline: float) -> list[dict[str, Any]]:
    """C1 from effects [image layer head] in % of the label variance; `baseline` is the intact loss in the same unit."""
    plan = read_plan()["C1"]
    margin, level = plan["margin_var_pct"], plan["level"]
    test = f"two one-sided tests: the {100 * level:.0f} % interval lies within ±{margin} %"
    if not _has(effects, plan["layers"]):
        return [_untested("mean effect of layers 1-3", test, _layers_missing(effects))]
    of_picture = effects[:, plan["layers"]].mean(axis=(1, 2))
    found = interval_over_images(of_picture[:, None], indices, level=level)
    spread = effects[:, plan["layers"]].mean(axis=0).std(ddof=1)
    inside = bool(-margin < found.low[0] and found.high[0] < margin)
    mean = _row("mean effect of layers 1-3", VAR_PCT, found, level, test, inside, effects, plan["layers"])
    mean["value_pct_of_baseline"] = 100 * mean["value"] / baseline
    inner = interval_over_images(of_picture[:, None], indices, estimator="trimmed", level=level)
    trimmed = _row("the same without the lowest and highest tenth of the pictures", VAR_PCT, inner, level, "", None,
                   effects, plan["layers"])  # fmt: skip
    trimmed["value_pct_of_baseline"] = 100 * trimmed["value"] / baseline
    sd = mean | {"quantity": "sd over their heads", "value": spread, "ci_low": np.nan, "ci_high": np.nan}
    sd |= {"value_pct_of_baseline": 100 * spread / baseline, "test": "", "met": None, "level": np.nan}
    return [mean, trimmed, sd]


def deeper_heads(effects: Floats, indices: NDArray[np.integer]) -> list[dict[str, Any]]:
    """C2: mean effect of layer 6, and of layers 6 to 12, over that of layers 1 to 3."""
    plan, early = read_plan()["C2"], read_plan()["C1"]["layers"]
    test = f"the {100 * plan['level']:.0f} % interval of the ratio holds {plan['ratio']:g} and not {plan['excluded']:g}"
    rows = []
    for name, layers in (("layer 6", plan["layers"]), ("layers 6-12", plan["deeper_layers"])):
        quantity = f"effect of {name} over that of layers 1-3"
        if not _has(effects, [*early, *layers]):
            rows.append(_untested(quantity, test, _layers_missing(effects)))
            continue
        above = effects[:, layers].mean(axis=(1, 2))[:, None]
        below = effects[:, early].mean(axis=(1, 2))[:, None]
        ratio = bootstrap_interval(partial(weighted_ratio, above, below), indices, level=plan["level"])
        # By percentiles: how often resamples of the pictures leave nothing to divide by.
        of_early = interval_over_images(below, indices, method="percentile", level=plan["level"])
        met: Any = bool(
            ratio.low[0] <= plan["ratio"] <= ratio.high[0] and not ratio.low[0] <= plan["excluded"] <= ratio.high[0]
        )
        row = _row(quantity, "ratio", ratio, plan["level"], test, met, effects, layers)
        if of_early.low[0] <= 0 <= of_early.high[0]:
            row |= {
                "met": np.nan,
                "why": "the effect of layers 1-3 cannot be told from 0, so a ratio to it says nothing",
            }
        rows.append(row)
    return rows


def chirp_alone(roles: pd.DataFrame, num_layers: int) -> list[dict[str, Any]]:
    """C3: share of monosemantic chirp heads, deeper against earlier layers; intervals over heads."""
    plan = read_plan()["C3"]
    level = plan["level"]
    test = (
        f"share ≥ {plan['least_share']:g} and lower {100 * level:.0f} % limit (Clopper-Pearson over heads) above the "
        "share in layers 1-5"
    )
    deeper, earlier = "share of layers 6-11 that is monosemantic for the chirp", "the same share of layers 1-5"
    if not len(roles):
        return [_untested(deeper, test, "pictures without masks have no roles")]
    if num_layers <= max(plan["layers"]):
        return [_untested(deeper, test, f"the model has {num_layers} layers")]
    rows, shares = [], []
    for name, layers in ((deeper, plan["layers"]), (earlier, plan["earlier_layers"])):
        here = roles[roles["layer"].isin(layers)]
        number = int(((here["semanticity"] == "monosemantic") & (here["concepts"] == "chirp")).sum())
        limits = binomtest(number, len(here)).proportion_ci(level, method="exact")
        shares.append((number / len(here), limits.low))
        row = {"quantity": name, "unit": "share of heads", "value": number / len(here), "level": level}
        row |= {"ci_low": limits.low, "ci_high": limits.high, "n_heads": len(here), "n_pictures": int(here["n"].max())}
        rows.append(row | {"test": "", "met": None})
    rows[0] |= {"test": test, "met": bool(shares[0][0] >= plan["least_share"] and shares[0][1] > shares[1][0])}
    return rows


def irrelevant_detectors(roles: pd.DataFrame, effects: Floats, indices: NDArray[np.integer]) -> list[dict[str, Any]]:
    """C4: how many heads of layers 1 to 4 detect an irrelevant thing, by twins, and do not matter."""
    plan, margin, level = read_plan()["C4"], read_plan()["C1"]["margin_var_pct"], read_plan()["C1"]["level"]
    quantity = "detectors of text, colour bar, edges or corners in layers 1-4 that do not matter"
    test = (
        f"≥ {plan['least_heads']} head(s) that twins confirm, with the {100 * level:.0f} % interval of the effect "
        f"within ±{margin} %"
    )
    if not len(roles):
        return [_untested(quantity, test, "pictures without masks have no roles")]
    if not (roles["verdict"] != "untested").any() and (roles["verdict"] != "").any():
        return [_untested(quantity, test, "pictures without twins confirm no detector")]
    here = roles[roles["layer"].isin(plan["layers"]) & (roles["verdict"] == "detector")]
    here = here[here["concepts"].isin(plan["concepts"])]
    found = interval_over_images(effects, indices, level=level)
    small = (found.low > -margin) & (found.high < margin)
    number = int(sum(small[layer, head] for layer, head in zip(here["layer"], here["head"], strict=True)))
    looking = roles[roles["layer"].isin(plan["layers"]) & roles["concepts"].isin(plan["concepts"])]
    row = {"quantity": quantity, "unit": "heads", "value": number, "test": test, "met": number >= plan["least_heads"]}
    row |= {"n_heads": int(roles["layer"].isin(plan["layers"]).sum()), "n_pictures": len(effects)}
    row["why"] = f"{len(looking)} head(s) of these layers attend to such a thing, {len(here)} are confirmed"
    return [row]


def maps_tell(roles: pd.DataFrame, halves: pd.DataFrame) -> list[dict[str, Any]]:
    """C5: do roles repeat in other pictures, and do twins confirm the monosemantic ones?"""
    plan = read_plan()["C5"]
    first, second = (
        "kappa of roles between two halves of the pictures",
        "share of monosemantic heads that twins confirm",
    )
    tests = [f"≥ {plan['least_kappa']:g}", f"≥ {plan['least_confirmed']:g}"]
    if not len(roles) or not len(halves):
        why = "pictures without masks have no roles"
        return [_untested(first, tests[0], why), _untested(second, tests[1], why)]
    same = bool((halves["role_a"] == halves["role_b"]).all())
    kappa = 1.0 if same else float(cohen_kappa_score(halves["role_a"], halves["role_b"]))
    row = {"quantity": first, "unit": "Cohen's kappa", "value": kappa, "test": tests[0]}
    row |= {"n_heads": len(halves), "n_pictures": int(halves["n_a"].max()), "met": bool(kappa >= plan["least_kappa"])}
    if same and halves["role_a"].nunique() == 1:
        row |= {"met": np.nan, "why": "every head has the same role: there is nothing to tell apart"}
    mono = roles[roles["semanticity"] == "monosemantic"]
    if not len(mono):
        return [row, _untested(second, tests[1], "no head is monosemantic")]
    if (mono["verdict"] == "untested").all():
        return [row, _untested(second, tests[1], "pictures without twins confirm no head")]
    confirmed = int((mono["verdict"] == "detector").sum())
    limits = binomtest(confirmed, len(mono)).proportion_ci(0.95, method="exact")
    share = {"quantity": second, "unit": "share of heads", "value": confirmed / len(mono), "test": tests[1]}
    share |= {"ci_low": limits.low, "ci_high": limits.high, "level": 0.95, "n_heads": len(mono)}
    share |= {"n_pictures": int(mono["n"].max()), "met": bool(confirmed / len(mono) >= plan["least_confirmed"])}
    return [row, share]


def distraction_over_depth(distraction: pd.DataFrame) -> list[dict[str, Any]]:
    """C6: the slope over depth of what an irrelevant item adds to the effect of removing heads, item by item."""
    plan = read_plan()["C6"]
    slopes = distraction[distraction["level"] == "slope"] if len(distraction) else distraction
    known = list(slopes["item"]) if len(slopes) else []
    rows = []
    for item in [*plan["items"], *(item for item in known if item not in plan["items"])]:
        tested = item in plan["items"]
        quantity = f"slope over layers of the effect with minus without {item}"
        test = f"the {100 * plan['level']:.0f} % interval lies above 0" if tested else ""
        if item not in known:
            rows.append(_untested(quantity, test, "pictures without twins, or without the item"))
            continue
        found = slopes[slopes["item"] == item].iloc[0]
        row = {"quantity": quantity, "unit": f"{VAR_PCT} per layer", "value": found["difference_var_pct"], "test": test}
        row |= {"ci_low": found["ci_low"], "ci_high": found["ci_high"], "level": plan["level"]}
        rows.append(row | {"n_pictures": int(found["n"]), "met": bool(found["ci_low"] > 0) if tested else None})
    return rows


def _row(
    quantity: str, unit: str, found: Interval, level: float, test: str, met: Any, effects: Floats, layers: Sequence[int]
) -> dict[str, Any]:
    row = {
        "quantity": quantity,
        "unit": unit,
        "value": found.value[0],
        "ci_low": found.low[0],
        "ci_high": found.high[0],
    }
    count, heads = len(effects), len(layers) * effects.shape[2]
    return row | {"level": level, "n_pictures": count, "n_heads": heads, "test": test, "met": met}


def _untested(quantity: str, test: str, why: str) -> dict[str, Any]:
    return {"quantity": quantity, "test": test, "met": np.nan, "why": why}


def _has(effects: Floats, layers: Sequence[int]) -> bool:
    return effects.shape[1] > max(layers)


def _layers_missing(effects: Floats) -> str:
    return f"the model has {effects.shape[1]} layers"
