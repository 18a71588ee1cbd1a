"""Do roles hold in other pictures of the same run? The rules applied to its first and second half on their own.

Takes what ``concepts`` and ``twins`` need; has no passes of its own and gives one row a head: its role in either half
(CLS query, the usual threshold, after fine-tuning).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from analysis.checks import concepts, roles, twins
from analysis.checks.concepts import FINETUNED
from analysis.checks.evidence import Evidence, Orders
from analysis.models import OpenedModel
from analysis.passes import Pass
from analysis.pictures import PictureSource
from analysis.ranked_maps import Blocks
from analysis.role_rules import role_table
from analysis.settings import CompareSettings
from attribution.method import Method

NEEDS = roles.NEEDS
TAU = 3.0
COLUMNS = (
    "layer",
    "head",
    "semanticity_a",
    "semanticity_b",
    "concepts_a",
    "concepts_b",
    "role_a",
    "role_b",
    "n_a",
    "n_b",
)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some pictures of an array on disk, as an array of their own."""

    whole: Blocks
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.whole.shape[1:])

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        start, stop, step = rows.indices(self.stop - self.start)
        return self.whole[slice(self.start + start, self.start + stop, step)]


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
    """One row a head (`COLUMNS`); ``n_a`` and ``n_b`` are the pictures of the halves. None where the pictures have no
    masks, or for fewer than four pictures."""
    count = 0 if evidence.patch_labels is None else len(evidence.patch_labels)
    if count < 4:
        return pd.DataFrame(columns=list(COLUMNS))
    parts = []
    for start, stop in ((0, count // 2), (count // 2, count)):
        half = half_of(evidence, start, stop)
        found = role_table(concepts.table(half), twins.table(half), [TAU])
        found = found[(found["model"] == FINETUNED) & (found["query"] == "cls")]
        part = found.set_index(["layer", "head"])[["semanticity", "concepts", "role"]]
        parts.append(part.assign(n=stop - start))
    both = pd.concat([part.add_suffix(suffix) for part, suffix in zip(parts, ("_a", "_b"), strict=True)], axis=1)
    return both.reset_index()[list(COLUMNS)]


def half_of(evidence: Evidence, start: int, stop: int) -> Evidence:
    """The evidence of pictures ``start`` to ``stop`` alone, as far as roles need it."""
    labels = evidence.patch_labels
    assert labels is not None
    return replace(
        evidence,
        maps={query: _Part(maps, start, stop) for query, maps in evidence.maps.items()},
        patch_labels=labels[start:stop],
        read=lambda name: {key: values[start:stop] for key, values in evidence.read(name).items()},
    )
