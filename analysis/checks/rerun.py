"""Methods run anew, on another model or with other settings: which, at what price, and what their scores depend on.

Takes methods, a model and the dials; gives scores, costs, identities and the agreement of two rankings. What it costs
to run a method that often decides how many pictures it gets: methods of more than 150 forward passes per picture at
the usual steps take the first 4 alone. Knows no check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from analysis.agreement import Ranking, spearman
from analysis.intervals import centred_interval
from analysis.models import OpenedModel
from analysis.passes import BACKWARD_COST, method_settings
from analysis.settings import CompareSettings
from attribution.batch import Batch, MethodSettings
from attribution.method import Method, cost
from attribution.methods import run_method
from attribution.vit import ViTRegressor, attention_modules, num_heads_of

READS_WEIGHTS = "parameter_norm"  # the control that has something to forget
COSTLY = 150.0  # forward passes per picture
COSTLY_PICTURES = 4


def on_trial(methods: Mapping[str, Method]) -> dict[str, Method]:
    """The methods but for the controls that read nothing of the model."""
    return {name: method for name, method in methods.items() if method.family != "control" or name == READS_WEIGHTS}


def by_cost(
    methods: Mapping[str, Method], opened: OpenedModel, settings: CompareSettings, key: str
) -> dict[str, tuple[dict[str, Method], int]]:
    """Name of a pass -> its methods and number of pictures; costly methods stand in a pass of their own
    (``<key>_costly``), a pass without methods is left out."""
    dials = method_settings(settings)
    costly = {name: one for name, one in methods.items() if forwards_of([one], dials, opened) > COSTLY}
    others = {name: one for name, one in methods.items() if name not in costly}
    few = min(settings.check_pictures, COSTLY_PICTURES)
    parts = {key: (others, settings.check_pictures), f"{key}_costly": (costly, few)}
    return {name: part for name, part in parts.items() if part[0]}


def scores_or_nan(name: str, model: ViTRegressor, batch: Batch, dials: MethodSettings) -> NDArray[np.float32]:
    """Scores of a method, float32 [image layer head]; NaN where it can give none on this model (ValueError)."""
    try:
        return run_method(name, model, batch, dials).numpy()
    except ValueError:
        modules = attention_modules(model)
        return np.full((len(batch), len(modules), num_heads_of(modules[0])), np.nan, dtype=np.float32)


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
