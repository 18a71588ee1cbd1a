"""The plan of the verdicts: what is claimed, what was published, and the thresholds, from a file committed beforehand.

Takes ``analysis/configs/plan.yaml``; gives its values and its sha256. Decides nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

PLAN_FILE = Path(__file__).parent / "configs" / "plan.yaml"
CLAIMS = ("C1", "C2", "C3", "C4", "C5", "C6")


@lru_cache(maxsize=1)
def read_plan() -> Mapping[str, Mapping[str, Any]]:
    """Claim -> its entries."""
    plan = yaml.safe_load(PLAN_FILE.read_text(encoding="utf-8"))
    if tuple(plan) != CLAIMS:
        raise ValueError(f"{PLAN_FILE}: expected the claims {', '.join(CLAIMS)}, got {', '.join(plan)}")
    return MappingProxyType({claim: MappingProxyType(entry) for claim, entry in plan.items()})


def plan_sha256() -> str:
    """Of the file's bytes."""
    return hashlib.sha256(PLAN_FILE.read_bytes()).hexdigest()
