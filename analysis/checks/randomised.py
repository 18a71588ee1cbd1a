"""Methods on models that forgot: scores that stay when the weights mean nothing are no explanation of what was learnt.

Takes the methods on trial; gives one pass for each broken copy of the model, which runs them all on it, and the table
of how far their scores still agree with the truth, and with their own, of the intact model (Adebayo et al. 2018,
1810.03292). Low agreement is right. Other checks that run methods anew take how that is done from here.

The copies: ``not_finetuned`` (only of a model with adapters), ``cascade_<blocks>`` for each quarter of the blocks from
the top, and ``reinitialised``, everything. Methods of many passes run on the first and the last alone. A method that
cannot give scores on a copy (every number zero, or not finite) has NaN there; nothing else is forgiven.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.agreement import Ranking, resampled, spearman
from analysis.checks.evidence import Evidence, Orders
from analysis.intervals import centred_interval
from analysis.models import OpenedModel
from analysis.own_code import code_sha256
from analysis.passes import BACKWARD_COST, Pass, first_rows, method_settings
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.scorecard import oriented
from analysis.settings import CompareSettings
from attribution.batch import Batch, MethodSettings
from attribution.method import Method, cost
from attribution.methods import run_method
from attribution.randomised import not_finetuned, reinitialised
from attribution.vit import ViTRegressor, attention_modules, num_heads_of

NAME = "check_randomised"
INTACT = "intact"
READS_WEIGHTS = "parameter_norm"  # the control that has something to forget
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
    """One pass a copy, with an array float32 [image layer head] for each method. Copies are made when they are needed,
    and only one is held at a time."""
    held: dict[str, ViTRegressor] = {}

    def model_of(copy: Copy) -> ViTRegressor:
        if copy.name not in held:
            held.clear()
            held[copy.name] = copy.build()
        return held[copy.name]

    def of(copy: Copy) -> Pass:
        chosen = _methods_of(copy, methods)
        key = f"{NAME}_{copy.name}"

        def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
            model, dials = model_of(copy), method_settings(settings, batch_size)
            return {key: {name: scores_or_nan(name, model, batch, dials) for name in chosen}}

        depends_on = {
            "seed": settings.seed,
            "steps": settings.steps,
            **code_of(chosen, (__name__, "attribution.randomised")),
        }
        return Pass(
            key,
            {key: depends_on},
            compute,
            forwards_of(chosen.values(), method_settings(settings), opened),
            rows=first_rows(settings.check_pictures, source.count),
            needs=needs_of(chosen.values()),
        )

    return [of(copy) for copy in copies(opened.model, settings.seed) if _methods_of(copy, methods)]


def table(evidence: Evidence) -> pd.DataFrame:
    """One row a method and model: Spearman's rho over heads, with 95 % intervals, of its mean scores there with the
    mean true effects (``spearman_with_truth``) and with its own mean scores (``spearman_with_own``), both of the intact
    model and over the same n pictures. Pictures for which it has no scores there are left out; NaN below two."""
    found = {INTACT: dict(evidence.scores)}
    for copy in copies(evidence.opened.model, evidence.settings.seed):
        chosen = _methods_of(copy, evidence.methods)
        arrays = evidence.read(f"{NAME}_{copy.name}") if chosen else {}
        found[copy.name] = {name: oriented(arrays[name].astype(np.float64), chosen[name]) for name in chosen}
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


def on_trial(methods: Mapping[str, Method]) -> dict[str, Method]:
    """The methods but for the controls that read nothing of the model."""
    return {name: method for name, method in methods.items() if method.family != "control" or name == READS_WEIGHTS}


def scores_or_nan(name: str, model: ViTRegressor, batch: Batch, dials: MethodSettings) -> NDArray[np.float32]:
    """Scores of a method, float32 [image layer head]; NaN where it can give none on this model (ValueError)."""
    try:
        return run_method(name, model, batch, dials).numpy()
    except ValueError:
        modules = attention_modules(model)
        return np.full((len(batch), len(modules), num_heads_of(modules[0])), np.nan, dtype=np.float32)


def code_of(methods: Mapping[str, Method], modules: Sequence[str]) -> dict[str, Any]:
    """What scores depend on: the methods' names, the source of those that are not this project's, and the code."""
    behind = sorted({_module(method) for method in methods.values() if _is_own(method)})
    return {
        "methods": {name: _foreign_source(method) for name, method in methods.items()},
        "code": code_sha256((*modules, "attribution.methods", "analysis.models", *behind)),
    }


def forwards_of(methods: Iterable[Method], dials: MethodSettings, opened: OpenedModel) -> float:
    """Cost of running methods, in forward passes per picture."""
    num_layers, num_targets = len(attention_modules(opened.model)), len(opened.model.config.target_names)
    costs = [cost(method, dials, num_layers=num_layers, num_targets=num_targets) for method in methods]
    return sum(forwards + BACKWARD_COST * backwards for forwards, backwards in costs)


def needs_of(methods: Iterable[Method]) -> tuple[str, ...]:
    """The optional fields of a batch that some of the methods need."""
    return tuple(sorted({field for method in methods for field in method.needs}))


def spearman_interval(a: Ranking, b: Ranking) -> tuple[float, float, float]:
    """Spearman's rho of two rankings by `analysis.agreement.resampled`, and its 95 % interval."""
    found = spearman(a, b)[:, None]
    low, high = np.clip(centred_interval(found[0], found[1:]), -1.0, 1.0)[:, 0]
    return float(found[0, 0]), float(low), float(high)


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


def _methods_of(copy: Copy, methods: Mapping[str, Method]) -> dict[str, Method]:
    return {name: method for name, method in on_trial(methods).items() if copy.takes_paths or not method.is_path}


def _redrawn(model: ViTRegressor, seed: int, num_blocks: int | None) -> Callable[[], ViTRegressor]:
    return lambda: reinitialised(model, seed, num_blocks=num_blocks)


def _works(build: Callable[[], ViTRegressor]) -> bool:
    try:
        build()
    except ValueError:
        return False
    return True


def _module(method: Method) -> str:
    return str(getattr(method.function, "__module__", ""))


def _is_own(method: Method) -> bool:
    return _module(method).startswith("attribution.")


def _foreign_source(method: Method) -> str:
    """The source of a function that is not this project's, its defaults and what it closes over; else nothing."""
    function: Any = method.function
    if _is_own(method):
        return ""
    cells = [repr(cell.cell_contents) for cell in getattr(function, "__closure__", None) or ()]
    try:
        return f"{inspect.getsource(function)}{[getattr(function, '__defaults__', None), *cells]}"
    except (OSError, TypeError):
        return repr(function)
