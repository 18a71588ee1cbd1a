"""What a check is given: before its passes the orders of heads, after them everything a run found.

Holds values; computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.models import OpenedModel
from analysis.pictures import PictureSource
from analysis.ranked_maps import Blocks
from analysis.score_files import Arrays
from analysis.scorecard import Truth
from analysis.settings import CompareSettings
from attribution.method import Method

LOOKS_AT = "looks_at_"  # begins the names of orders by attention to a region
Head = tuple[int, int]  # layer, head
# Method or truth -> all heads, most important first by its mean score; ``looks_at_<region>`` -> all heads, those that
# attend to it most first.
Orders = Mapping[str, tuple[Head, ...]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """``read(name)`` gives the arrays a pass has stored under a name; ``methods`` are the head methods of the run and
    ``scores`` theirs, [image layer head], turned so that larger means that the head matters more (of the first
    pictures alone where a method is expensive); ``truth``, zero ablation; ``indices(n)``, the bootstrap matrix
    [replicate image] that all numbers of n pictures share; ``maps`` query -> attention [image layer head row col] and
    ``patch_labels`` uint8 [image row col] of all pictures, None where masks are not known; ``tables``, those of the
    checks before this one."""

    opened: OpenedModel
    source: PictureSource
    settings: CompareSettings
    methods: Mapping[str, Method]
    scores: Mapping[str, NDArray[np.float64]]
    truth: Truth
    orders: Orders
    indices: Callable[[int], NDArray[np.integer]]
    read: Callable[[str], Arrays]
    maps: Mapping[str, Blocks] = field(default_factory=dict)
    patch_labels: NDArray[np.uint8] | None = None
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
