"""What every head is, by rule: the tables of two other checks put together (:mod:`analysis.role_rules`).

Takes what ``concepts`` and ``twins`` found; has no passes of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis.checks.evidence import Evidence, Orders
from analysis.models import OpenedModel
from analysis.passes import Pass
from analysis.pictures import PictureSource
from analysis.role_rules import COLUMNS, role_table
from analysis.settings import CompareSettings
from attribution.method import Method

NEEDS = ("concepts", "twins")


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
    """Rows of :func:`analysis.role_rules.role_table`; none where the pictures have no masks."""
    concepts, twins = (evidence.tables[name] for name in NEEDS)
    if concepts.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    return role_table(concepts, twins)
