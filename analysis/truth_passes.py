"""The sweeps that truths are made of: every head removed in its turn, at zero or at a context that knows less.

Takes a loaded model, a source of pictures and settings; gives passes as :mod:`analysis.passes` does. Which truths are
asked for stands here too. Knows no methods, no files and no statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from analysis.companions import NUM_DONORS
from analysis.estimate_cost import sweep_costs
from analysis.models import OpenedModel
from analysis.optimal_contexts import held_optimal, lacks_for_optimal, optimal_forwards
from analysis.passes import BACKWARD_COST, Pass, first_rows, method_settings
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from attribution.ablation import (
    AblationResult,
    counterfactual_ablation,
    mean_ablation,
    resample_ablation,
    zero_ablation,
)
from attribution.batch import Batch
from attribution.gradient_readings import COUNTERFACTUAL, DONORS, MEAN
from attribution.shapley import gate_shapley
from attribution.vit import head_layout

KINDS = ("zero", "mean", "resample", "counterfactual", "optimal")
SHAPLEY = "shapley"
TRUTHS = (*KINDS, SHAPLEY)
DEFAULT_TRUTHS = ("zero", "mean", "counterfactual")
TRUTH = "ablation_zero"


def chosen_truths(settings: CompareSettings, source: PictureSource) -> tuple[str, ...]:
    """The truths asked for, in their usual order; zero is always one. ValueError for an unknown one.

    ``default`` stands for three, or with ``methods: all`` for every one; it leaves out those for which these pictures
    lack something, which is an error where they are named.
    """
    unknown = [name for name in settings.truths if name not in (*TRUTHS, "default", "all")]
    if unknown:
        raise ValueError(f"truths: unknown {', '.join(unknown)}, expected some of {', '.join(TRUTHS)}, default, all")
    if settings.estimate is not None:
        others = [name for name in settings.truths if name not in ("zero", "default")]
        if others:
            raise ValueError(f"--estimate: expected --truths zero, which alone is estimated, got {', '.join(others)}")
        return ("zero",)
    lacks = _lacking(source)
    for name, why in lacks.items():
        if name in settings.truths:
            raise ValueError(f"truths: {why}")
    implied: set[str] = set()
    if "default" in settings.truths:
        implied = set(TRUTHS if "all" in settings.methods else DEFAULT_TRUTHS)
    if "all" in settings.truths:
        implied = set(TRUTHS)
    implied -= set(lacks)
    return tuple(name for name in TRUTHS if name in settings.truths or name in implied or name == "zero")


def _lacking(source: PictureSource) -> dict[str, str]:
    """Truths that cannot be had of these pictures, and why."""
    found = {"optimal": lacks_for_optimal(source)}
    if source.counterfactual is None:
        found["counterfactual"] = (
            "counterfactual needs synthetic pictures, a folder's have no twin without the thing to be read"
        )
    return {name: why for name, why in found.items() if why}


def sweep_forwards(opened: OpenedModel) -> float:
    """Forward passes per picture of a whole sweep, the intact one included."""
    layout = head_layout(opened.model)
    return 1 + float(sweep_costs(layout.num_layers, layout.num_heads).sum())


def zero_pass(opened: OpenedModel, name: str = TRUTH, heads: Iterable[tuple[int, int]] | None = None) -> Pass:
    """The effect of setting each head (or each of ``heads``, the others NaN) to zero, in its turn."""
    layout = head_layout(opened.model)
    chosen = None if heads is None else sorted(heads)
    costs = sweep_costs(layout.num_layers, layout.num_heads)

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        found = zero_ablation(opened.model, batch, heads=chosen, batch_size=batch_size)
        # Standardised: what the estimate of effects is made from and tried on.
        changes = found.ablated_predictions - found.intact_predictions[:, None, None]
        return {name: _arrays(opened, batch, found) | {"output_changes": changes.float().numpy()}}

    forwards = 1 + float(costs.sum() if chosen is None else sum(costs[pair] for pair in chosen))
    return Pass(name, {name: {} if chosen is None else {"heads": chosen}}, compute, forwards)


def truth_pass(opened: OpenedModel, source: PictureSource, settings: CompareSettings, kind: str) -> Pass:
    """The effects of one way to remove heads: one of :data:`KINDS`, or Shapley values over gates (``shapley``)."""
    if kind == "zero":
        return zero_pass(opened)
    name = f"ablation_{kind}"
    once = sweep_forwards(opened)
    depends_on: dict[str, Any] = {}

    def of(sweep: Callable[[Batch, int], AblationResult]) -> Callable[[Batch, Sequence[str], int], dict[str, Arrays]]:
        return lambda batch, _, batch_size: {name: _arrays(opened, batch, sweep(batch, batch_size))}

    if kind == "mean":
        compute = of(lambda batch, size: mean_ablation(opened.model, batch, batch.required(MEAN), batch_size=size))
        forwards = once + source.num_references / max(1, source.count)
        return Pass(name, {name: depends_on}, compute, forwards, needs=(MEAN,))
    if kind == "resample":
        depends_on |= {"seed": settings.seed, "donors": NUM_DONORS}
        compute = of(lambda batch, size: resample_ablation(opened.model, batch, batch_size=size))
        rows = first_rows(settings.resample_pictures, source.count)
        return Pass(name, {name: depends_on}, compute, NUM_DONORS * (once + 1), rows, (DONORS,))
    if kind == "counterfactual":
        compute = of(lambda batch, size: counterfactual_ablation(opened.model, batch, batch_size=size))
        return Pass(name, {name: depends_on}, compute, once + 1, needs=(COUNTERFACTUAL,))
    if kind == "optimal":
        depends_on["references"] = source.references_sha256
        compute = of(lambda batch, size: optimal_ablation(opened, source, batch, size))
        num_targets = len(opened.model.config.target_names)
        fitting = optimal_forwards(once, num_targets, source.num_references, BACKWARD_COST)
        return Pass(name, {name: depends_on}, compute, once + fitting / max(1, source.count))
    return _shapley_pass(opened, settings, source.count)


def optimal_ablation(opened: OpenedModel, source: PictureSource, batch: Batch, batch_size: int) -> AblationResult:
    """Each head in turn at its optimal context (Li & Janson 2024, 2409.09951), fitted on the reference pictures."""
    context = held_optimal(opened, source).to(opened.model.device)
    return zero_ablation(opened.model, batch, replacement=context, batch_size=batch_size)


def _shapley_pass(opened: OpenedModel, settings: CompareSettings, count: int) -> Pass:
    layout = head_layout(opened.model)

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        dials = method_settings(settings, batch_size)
        return {SHAPLEY: {"scores": gate_shapley(opened.model, batch, dials).double().cpu().numpy()}}

    depends_on = {
        "seed": settings.seed,
        "permutations": settings.permutations,
    }
    forwards = settings.permutations * layout.num_layers * layout.num_heads + 1
    return Pass(SHAPLEY, {SHAPLEY: depends_on}, compute, forwards, rows=first_rows(settings.shapley_pictures, count))


def _arrays(opened: OpenedModel, batch: Batch, found: AblationResult) -> Arrays:
    return {
        "delta_loss": found.delta_loss.numpy(),
        "delta_target_sq": found.delta_target_sq.numpy(),
        "intact_loss": found.intact_loss.numpy(),
        "predictions": opened.model.to_units(found.intact_predictions).numpy(),
        "residuals": (found.intact_predictions - batch.labels.to("cpu", torch.float64)).numpy(),
    }
