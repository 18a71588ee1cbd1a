"""The plans of the verdicts: what is claimed, what was published, and the thresholds, from files committed beforehand.

Takes ``analysis/configs/plan.yaml`` (version 2) and ``plan-v1.yaml`` (version 1, as its verdicts were given); gives
their values and their sha256. Decides nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

VERSION = 2
PLAN_FILE = Path(__file__).parent / "configs" / "plan.yaml"
PLAN_FILES = {1: PLAN_FILE.with_name("plan-v1.yaml"), VERSION: PLAN_FILE}
CLAIMS = ("C1", "C2", "C3", "C4", "C5", "C6")


@lru_cache(maxsize=len(PLAN_FILES))
def read_plan(version: int = VERSION) -> Mapping[str, Mapping[str, Any]]:
    """Claim -> its entries. ValueError for a file of another version or of other claims."""
    file = PLAN_FILES[version]
    plan = yaml.safe_load(file.read_text(encoding="utf-8"))
    told = plan.pop("version", 1)
    if told != version:
        raise ValueError(f"{file}: expected version {version}, got {told}")
    if tuple(plan) != CLAIMS:
        raise ValueError(f"{file}: expected the claims {', '.join(CLAIMS)}, got {', '.join(plan)}")
    return MappingProxyType({claim: MappingProxyType(entry) for claim, entry in plan.items()})


def plan_sha256(version: int = VERSION) -> str:
    """Of the file's bytes."""
    return hashlib.sha256(PLAN_FILES[version].read_bytes()).hexdigest()
