"""The claims of the published study (arXiv 2503.18762), measured on this run and judged by the plan.

Takes the truth, the tables of ``roles``, ``role_halves`` and ``distraction``, and those of ``knockout``, ``patching``
and ``joint_removal`` where the run has them; has no passes of its own and gives one row a measured quantity, with the
verdict on its claim. What is claimed stands in `analysis/configs/plan.yaml`, what a row is asked in
:mod:`analysis.verdict_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from analysis.agreement import random_halves
from analysis.checks import distraction, knockout, patching
from analysis.checks.concepts import FINETUNED
from analysis.checks.evidence import Evidence, Orders
from analysis.claim_effects import deeper_heads, distraction_over_depth, early_heads
from analysis.claim_maps import maps_tell
from analysis.claim_roles import chirp_alone, irrelevant_detectors, maps_repeat
from analysis.models import OpenedModel
from analysis.passes import Pass
from analysis.pictures import PictureSource, region_indices
from analysis.plan import read_plan
from analysis.settings import CompareSettings
from analysis.verdict_rules import JUDGED, MEASURED, judge
from attribution.method import Method

NEEDS = ("roles", "role_halves", "distraction", "joint_removal")
COLUMNS = (*MEASURED, *JUDGED)
TAU = 3.0
HALVES = 200


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
    """Rows of all claims (`COLUMNS`). ``word``: what a row's limits say of what the plan asks of it; ``verdict``: of
    its claim; ``verdict_v1``: the same by version 1 of the plan."""
    effects = 100 * evidence.truth.delta_loss
    baseline = float(100 * evidence.truth.intact_loss.mean())
    every = evidence.tables.get("roles", pd.DataFrame())
    finetuned = every[every["model"] == FINETUNED] if len(every) else every

    def by_tau(tau: float) -> pd.DataFrame:
        return finetuned[finetuned["tau"] == tau] if len(finetuned) else finetuned

    roles = by_tau(TAU)
    others = {tau: by_tau(tau) for claim in ("C3", "C4") for tau in read_plan()[claim]["taus_beside"]}
    halves = evidence.tables.get("role_halves", pd.DataFrame())
    indices = evidence.indices
    return judge(
        table_of(
            C1=early_heads(effects, indices, baseline, evidence.tables.get("joint_removal")),
            C2=deeper_heads(effects, indices),
            C3=chirp_alone(roles, effects.shape[1], others),
            C4=irrelevant_detectors(roles, effects, indices, others),
            C5=[*maps_repeat(roles, halves, indices), *_maps_tell(evidence)],
            C6=distraction_over_depth(slopes(evidence), indices),
        )
    )


def _maps_tell(evidence: Evidence) -> list[dict[str, Any]]:
    shown, reliability = None, None
    if len(evidence.tables.get("patching", pd.DataFrame())):
        shown = attention_on_items(evidence)
    if len(evidence.tables.get("knockout", pd.DataFrame())):
        effects = evidence.read(knockout.NAME)["delta_loss"]  # [image region layer head]
        reliability = {
            region: reliability_of_sizes(effects[:, place], evidence.settings.seed)
            for place, region in enumerate(knockout.REGIONS)
        }
    return maps_tell(evidence.tables, FINETUNED, shown=shown, reliability=reliability)


def attention_on_items(evidence: Evidence) -> pd.DataFrame | None:
    """Share of the CLS maps on each item of patching, over those of its own pictures that show it: one row a head and
    item (``layer, head, region, mass``); None where patches are not labelled."""
    if evidence.patch_labels is None:
        return None
    twin = evidence.read(patching.NAME)["twin"]  # [image item target], NaN where the item is not shown
    maps = np.asarray(evidence.maps["cls"][: len(twin)], dtype=np.float64)
    numbers, frames = region_indices(), []
    for place, item in enumerate(patching.ITEMS):
        shown = ~np.isnan(twin[:, place]).any(axis=1)
        if shown.any():
            masks = np.isin(evidence.patch_labels[: len(twin)][shown], numbers[item])
            mass = np.einsum("ilhrc,irc->ilh", maps[shown], masks) / maps[shown].sum(axis=(-2, -1))
            layer, head = (axis.ravel() for axis in np.indices(mass.shape[1:]))
            frames.append(
                pd.DataFrame({"layer": layer, "head": head, "region": item, "mass": mass.mean(axis=0).ravel()})
            )
    return pd.concat(frames, ignore_index=True) if frames else None


def reliability_of_sizes(effects: NDArray[np.floating], seed: int) -> float:
    """How well the sizes of mean effects [image layer head] over these pictures repeat over heads: Spearman's rho
    between random halves, made that of all by Spearman and Brown; NaN below 4 pictures, or where halves differ."""
    values = effects[np.isfinite(effects).all(axis=(1, 2))].reshape(-1, effects.shape[1] * effects.shape[2])
    if len(values) < 4:
        return float("nan")
    first, second = random_halves(len(values), HALVES, seed)
    one, other = (np.abs(counts @ values / counts.sum(axis=1, keepdims=True)) for counts in (first, second))
    half = float(np.mean([spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]))
    return 2 * half / (1 + half) if half > 0 else float("nan")


def table_of(**rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The measured rows of claims, one table."""
    found = [{"claim": claim} | dict(row) for claim, of_claim in rows.items() for row in of_claim]
    return pd.DataFrame(found).reindex(columns=list(MEASURED))


def slopes(evidence: Evidence) -> dict[str, NDArray[np.float64]]:
    """Item -> of every picture the slope over layers of what the item adds to the effect of a layer's heads, [image],
    NaN where it does not show the item; empty for pictures without twins and for models of one layer."""
    if not len(evidence.tables.get("distraction", pd.DataFrame())):
        return {}
    without_item = 100 * evidence.read(distraction.NAME)["delta_loss"].mean(axis=3)  # [image item layer]
    if without_item.shape[2] < 2:
        return {}
    with_item = 100 * evidence.truth.delta_loss[: len(without_item)].mean(axis=2)  # [image layer]
    return {
        item: distraction.over_depth(with_item - without_item[:, place])[:, 0]
        for place, item in enumerate(distraction.ITEMS)
    }
