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

from analysis.checks import distraction
from analysis.checks.concepts import FINETUNED
from analysis.checks.evidence import Evidence, Orders
from analysis.claim_effects import deeper_heads, distraction_over_depth, early_heads
from analysis.claim_maps import maps_tell
from analysis.claim_roles import chirp_alone, irrelevant_detectors, maps_repeat
from analysis.models import OpenedModel
from analysis.passes import Pass
from analysis.pictures import PictureSource
from analysis.settings import CompareSettings
from analysis.verdict_rules import JUDGED, MEASURED, judge
from attribution.method import Method

NEEDS = ("roles", "role_halves", "distraction", "joint_removal")
COLUMNS = (*MEASURED, *JUDGED)
TAU = 3.0


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
    roles = evidence.tables.get("roles", pd.DataFrame())
    if len(roles):
        roles = roles[(roles["model"] == FINETUNED) & (roles["tau"] == TAU)]
    halves = evidence.tables.get("role_halves", pd.DataFrame())
    indices = evidence.indices
    return judge(
        table_of(
            C1=early_heads(effects, indices, baseline, evidence.tables.get("joint_removal")),
            C2=deeper_heads(effects, indices),
            C3=chirp_alone(roles, effects.shape[1]),
            C4=irrelevant_detectors(roles, effects, indices),
            C5=[*maps_repeat(roles, halves, indices), *maps_tell(evidence.tables, FINETUNED)],
            C6=distraction_over_depth(slopes(evidence), indices),
        )
    )


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
