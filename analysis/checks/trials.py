"""The checks of a run: which are asked for, what they compute, and their tables.

Takes the work of a run and what it has found; computes what is missing and gives one table a check. Knows no check in
particular but by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import ModuleType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.checks import (
    circuits,
    claims,
    concepts,
    curves,
    distraction,
    edges,
    infidelity,
    joint_removal,
    knockout,
    necessity,
    patching,
    paths,
    pixel_targets,
    planted,
    randomised,
    redundancy,
    role_halves,
    roles,
    sensitivity,
    twins,
)
from analysis.checks.evidence import LOOKS_AT, Evidence, Head, Orders
from analysis.curve_areas import head_order
from analysis.models import OpenedModel
from analysis.passes import Pass
from analysis.pictures import PIXEL_REGIONS as LOOKED_AT
from analysis.pictures import PictureSource, region_indices
from analysis.ranked_maps import Blocks
from analysis.settings import CompareSettings
from analysis.truth_passes import SHAPLEY, chosen_truths
from attribution.method import Method
from attribution.vit import head_layout

CHECKS: dict[str, ModuleType] = {
    "curves": curves,
    "circuits": circuits,
    "knockout": knockout,
    "randomised": randomised,
    "sensitivity": sensitivity,
    "infidelity": infidelity,
    "planted": planted,
    "pixel_targets": pixel_targets,
    "concepts": concepts,
    "twins": twins,
    "roles": roles,
    "role_halves": role_halves,
    "distraction": distraction,
    "patching": patching,
    "necessity": necessity,
    "redundancy": redundancy,
    "joint_removal": joint_removal,
    "paths": paths,
    "edges": edges,
    "claims": claims,
}


def chosen_checks(settings: CompareSettings) -> tuple[str, ...]:
    """The checks asked for; ``default`` stands for none, or with ``methods: all`` for every one.

    ValueError for an unknown one, for ``none`` beside others, and for any beside estimated effects.
    """
    unknown = [name for name in settings.checks if name not in (*CHECKS, "default", "all", "none")]
    if unknown:
        expected = f"some of {', '.join(CHECKS)}, or default, all, none"
        raise ValueError(f"checks: unknown {', '.join(unknown)}, expected {expected}")
    if settings.checks == ("none",):
        return ()
    if "none" in settings.checks:
        raise ValueError(f"checks: expected none alone, got {', '.join(settings.checks)}")
    named = [name for name in settings.checks if name != "default"]
    if settings.estimate is not None:
        if named:
            raise ValueError(f"--estimate: expected no checks, which need swept effects, got {', '.join(named)}")
        return ()
    everything = "all" in named or ("default" in settings.checks and "all" in settings.methods)
    needed = _with_needs(named)
    return tuple(name for name in CHECKS if everything or name in needed)


def _with_needs(names: Iterable[str]) -> set[str]:
    """These checks and those whose tables they are made of."""
    found: set[str] = set()
    for name in names:
        found |= {name} | _with_needs(getattr(CHECKS.get(name), "NEEDS", ()))
    return found


def check_passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders | None = None,
) -> dict[str, list[Pass]]:
    """The passes of each check; without ``orders`` only their costs mean anything."""
    layout = head_layout(opened.model)
    heads = tuple((layer, head) for layer in range(layout.num_layers) for head in range(layout.num_heads))
    if orders is None:
        rng = np.random.default_rng(0)
        orders = {name: tuple(heads[place] for place in rng.permutation(len(heads))) for name in methods}
        kinds = chosen_truths(settings, source)
        truths = [f"ablation_{kind}" for kind in kinds if kind != SHAPLEY]
        truths += [LOOKS_AT + region for region in LOOKED_AT]
        orders |= {name: tuple(heads[place] for place in rng.permutation(len(heads))) for name in truths}
    return {name: CHECKS[name].passes(opened, source, settings, methods, orders) for name in chosen_checks(settings)}


def orders_of(scores: Mapping[str, NDArray[np.float64]], seed: int) -> dict[str, tuple[Head, ...]]:
    """Heads by mean score `[image layer head]`, highest first; ties in an order drawn from the seed."""
    return {name: head_order(found.mean(axis=0), seed) for name, found in scores.items()}


def looking_orders(maps: Blocks, patch_labels: NDArray[np.uint8] | None, seed: int) -> dict[str, tuple[Head, ...]]:
    """Heads by how much their maps [image layer head row col] attend to each region (mean lift), by the name of an
    order; none where patches are not labelled."""
    if patch_labels is None:
        return {}
    numbers = region_indices()
    return {
        LOOKS_AT + region: head_order(concepts.mean_lift(maps, patch_labels, numbers[region]), seed)
        for region in LOOKED_AT
    }


def check_tables(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """The table of each check, by the name of its file."""
    tables: dict[str, pd.DataFrame] = {}
    for name in chosen_checks(evidence.settings):
        tables[name] = CHECKS[name].table(replace(evidence, tables=tables))
    return tables
