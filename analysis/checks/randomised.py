"""Methods on models that forgot: scores that stay when the weights mean nothing are no explanation of what was learnt.

Takes the methods on trial; gives one pass for each broken copy of the model, which runs them all on it, and the table
of how far their scores still agree with the truth, and with their own, of the intact model (Adebayo et al. 2018,
1810.03292). Low agreement is right.

The copies: ``not_finetuned`` (only of a model with adapters), ``cascade_<blocks>`` for each quarter of the blocks from
the top, and ``reinitialised``, everything. Methods of many passes run on the first and the last alone, the costliest
of them on few pictures, in passes of their own (`analysis.checks.rerun`). A method that cannot give scores on a copy
(every number zero, or not finite) has NaN there; nothing else is forgiven.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.agreement import resampled
from analysis.checks.evidence import Evidence, Orders
from analysis.checks.rerun import by_cost, forwards_of, needs_of, on_trial, scores_or_nan, spearman_interval
from analysis.lent_contexts import of_changed_model
from analysis.models import OpenedModel
from analysis.passes import Pass, first_rows, method_settings, told_apart
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.scorecard import oriented
from analysis.settings import CompareSettings
from attribution.batch import Batch
from attribution.method import Method
from attribution.randomised import not_finetuned, reinitialised
from attribution.vit import ViTRegressor, attention_modules

NAME = "check_randomised"
INTACT = "intact"
QUARTERS = 4
COLUMNS = (
    *("method", "model", "spearman_with_truth", "ci_low", "ci_high"),
    *("spearman_with_own", "own_ci_low", "own_ci_high", "n"),
)
NO_NUMBER = (np.nan, np.nan, np.nan)


@dataclass(frozen=True, eq=False)
class Copy:
    """A broken copy of a model: how it is made, and whether methods of many passes run on it too."""

    name: str
    build: Callable[[], ViTRegressor]
    takes_paths: bool


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """Up to two passes a copy, with an array float32 [image layer head] for each method. Copies are made when they are
    needed, and only one is held at a time."""
    held: dict[str, ViTRegressor] = {}

    def model_of(copy: Copy) -> ViTRegressor:
        if copy.name not in held:
            held.clear()
            held[copy.name] = copy.build()
        return held[copy.name]

    def of(copy: Copy, key: str, chosen: dict[str, Method], num_pictures: int) -> Pass:
        def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
            model, dials = model_of(copy), method_settings(settings, batch_size)
            batch = of_changed_model(opened, model, source, batch)
            return {key: {name: scores_or_nan(name, model, batch, dials) for name in chosen}}

        depends_on = {
            "seed": settings.seed,
            "steps": settings.steps,
            **told_apart(chosen),
        }
        return Pass(
            key,
            {key: depends_on},
            compute,
            forwards_of(chosen.values(), method_settings(settings), opened),
            rows=first_rows(num_pictures, source.count),
            needs=needs_of(chosen.values()),
        )

    return [
        of(copy, key, chosen, num_pictures)
        for copy in copies(opened.model, settings.seed)
        for key, (chosen, num_pictures) in _parts(copy, methods, opened, settings).items()
    ]


def table(evidence: Evidence) -> pd.DataFrame:
    """One row a method and model: Spearman's rho over heads, with 95 % intervals, of its mean scores there with the
    mean true effects (``spearman_with_truth``) and with its own mean scores (``spearman_with_own``), both of the intact
    model and over the same n pictures. Pictures for which it has no scores there are left out; NaN below two."""
    found = {INTACT: dict(evidence.scores)}
    for copy in copies(evidence.opened.model, evidence.settings.seed):
        found[copy.name] = {}
        for key, (chosen, _) in _parts(copy, evidence.methods, evidence.opened, evidence.settings).items():
            arrays = evidence.read(key)
            found[copy.name] |= {name: oriented(arrays[name].astype(np.float64), chosen[name]) for name in chosen}
    rows = []
    for name in on_trial(evidence.methods):
        lengths = [len(scores[name]) for scores in found.values() if name in scores]
        count = min(evidence.settings.check_pictures, len(evidence.truth.delta_loss), *lengths)
        for model, scores in found.items():
            if name in scores:
                rows.append((name, model, *_agreement(evidence, name, scores[name][:count])))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def copies(model: ViTRegressor, seed: int) -> list[Copy]:
    """The copies that can be made of this model, least broken first."""
    found = []
    if _works(lambda: not_finetuned(model, seed)):
        found.append(Copy("not_finetuned", lambda: not_finetuned(model, seed), True))
    if _works(lambda: reinitialised(model, seed)):
        num_blocks = len(attention_modules(model))
        for count in sorted({-(-quarter * num_blocks // QUARTERS) for quarter in range(1, QUARTERS + 1)}):
            found.append(Copy(f"cascade_{count}", _redrawn(model, seed, count), False))
        found.append(Copy("reinitialised", _redrawn(model, seed, None), True))
    return found


def _agreement(evidence: Evidence, name: str, scores: NDArray[np.float64]) -> tuple[float, ...]:
    known = np.asarray(np.isfinite(scores).all(axis=(1, 2)))
    count = int(known.sum())
    if count < 2:
        return (*NO_NUMBER, *NO_NUMBER, count)
    indices = evidence.indices(count)
    here, truth, own = (
        resampled(values[: len(known)][known], indices)
        for values in (scores, evidence.truth.delta_loss, evidence.scores[name])
    )
    return (*spearman_interval(here, truth), *spearman_interval(here, own), count)


def _parts(
    copy: Copy, methods: Mapping[str, Method], opened: OpenedModel, settings: CompareSettings
) -> dict[str, tuple[dict[str, Method], int]]:
    chosen = {name: method for name, method in on_trial(methods).items() if copy.takes_paths or not method.is_path}
    return by_cost(chosen, opened, settings, f"{NAME}_{copy.name}")


def _redrawn(model: ViTRegressor, seed: int, num_blocks: int | None) -> Callable[[], ViTRegressor]:
    return lambda: reinitialised(model, seed, num_blocks=num_blocks)


def _works(build: Callable[[], ViTRegressor]) -> bool:
    try:
        build()
    except ValueError:
        return False
    return True
