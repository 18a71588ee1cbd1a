"""The sweeps that truths are made of: every head removed in its turn, at zero or at a context that knows less.

Takes a loaded model, a source of pictures and settings; gives passes as :mod:`analysis.passes` does. Which truths are
asked for stands here too. Knows no methods, no files and no statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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
    Heads,
    counterfactual_ablation,
    mean_ablation,
    mean_of_results,
    resample_by_donor,
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
    if settings.estimate is not None and SHAPLEY in settings.truths:
        raise ValueError(f"--estimate: expected truths that remove one head, got {SHAPLEY}")
    lacks = _lacking(source)
    for name, why in lacks.items():
        if name in settings.truths:
            raise ValueError(f"truths: {why}")
    implied: set[str] = set()
    if "default" in settings.truths:
        implied = set(TRUTHS if "all" in settings.methods else DEFAULT_TRUTHS)
    if "all" in settings.truths:
        implied = set(TRUTHS)
    implied -= {*lacks} if settings.estimate is None else {*lacks, SHAPLEY}
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


Sweep = Callable[[Batch, int, Heads | None], list[AblationResult]]


def zero_pass(opened: OpenedModel, name: str = TRUTH, heads: Heads | None = None) -> Pass:
    """The effect of setting each head (or each of ``heads``, the others NaN) to zero, in its turn."""

    def sweep(batch: Batch, batch_size: int, chosen: Heads | None) -> list[AblationResult]:
        return [zero_ablation(opened.model, batch, heads=chosen, batch_size=batch_size)]

    return _swept(opened, sweep, name, heads, {}, 1, 0.0)


def truth_pass(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    kind: str,
    *,
    name: str | None = None,
    heads: Heads | None = None,
) -> Pass:
    """The effects of one way to remove heads: one of :data:`KINDS`, or Shapley values over gates (``shapley``).

    Stored as ``name`` (``ablation_<kind>``), of ``heads`` alone where they are given.
    """
    model, count = opened.model, max(1, source.count)
    name = f"ablation_{kind}" if name is None else name
    if kind == "zero":
        return zero_pass(opened, name, heads)
    if kind == "mean":

        def at_mean(batch: Batch, batch_size: int, chosen: Heads | None) -> list[AblationResult]:
            return [mean_ablation(model, batch, batch.required(MEAN), heads=chosen, batch_size=batch_size)]

        return _swept(opened, at_mean, name, heads, {}, 1, source.num_references / count, (MEAN,))
    if kind == "resample":

        def at_donors(batch: Batch, batch_size: int, chosen: Heads | None) -> list[AblationResult]:
            return resample_by_donor(model, batch, heads=chosen, batch_size=batch_size)

        depends_on: dict[str, Any] = {"seed": settings.seed, "donors": NUM_DONORS}
        found = _swept(opened, at_donors, name, heads, depends_on, NUM_DONORS, NUM_DONORS, (DONORS,))
        return replace(found, rows=first_rows(settings.resample_pictures, source.count))
    if kind == "counterfactual":

        def at_twin(batch: Batch, batch_size: int, chosen: Heads | None) -> list[AblationResult]:
            return [counterfactual_ablation(model, batch, heads=chosen, batch_size=batch_size)]

        return _swept(opened, at_twin, name, heads, {}, 1, 1.0, (COUNTERFACTUAL,))
    if kind == "optimal":

        def at_best(batch: Batch, batch_size: int, chosen: Heads | None) -> list[AblationResult]:
            return [optimal_ablation(opened, source, batch, heads=chosen, batch_size=batch_size)]

        num_targets = len(model.config.target_names)
        fitting = optimal_forwards(sweep_forwards(opened), num_targets, source.num_references, BACKWARD_COST)
        depends_on = {"references": source.references_sha256}
        return _swept(opened, at_best, name, heads, depends_on, 1, fitting / count)
    return _shapley_pass(opened, settings, source.count)


def optimal_ablation(
    opened: OpenedModel, source: PictureSource, batch: Batch, *, heads: Heads | None = None, batch_size: int = 32
) -> AblationResult:
    """Each head in turn at its optimal context (Li & Janson 2024, 2409.09951), fitted on the reference pictures."""
    context = held_optimal(opened, source).to(opened.model.device)
    return zero_ablation(opened.model, batch, heads=heads, replacement=context, batch_size=batch_size)


def _swept(
    opened: OpenedModel,
    sweep: Sweep,
    name: str,
    heads: Heads | None,
    depends_on: dict[str, Any],
    sweeps: int,
    beside: float,
    needs: tuple[str, ...] = (),
) -> Pass:
    """A pass of so many sweeps, with what goes beside them in forward passes per picture."""
    layout = head_layout(opened.model)
    costs = sweep_costs(layout.num_layers, layout.num_heads)
    chosen = None if heads is None else sorted(heads)

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        return {name: _arrays(opened, batch, sweep(batch, batch_size, chosen))}

    of_heads = float(costs.sum() if chosen is None else sum(costs[pair] for pair in chosen))
    own = depends_on if chosen is None else depends_on | {"heads": chosen}
    return Pass(name, {name: own}, compute, sweeps * (1 + of_heads) + beside, needs=needs)


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


def _arrays(opened: OpenedModel, batch: Batch, results: Sequence[AblationResult]) -> Arrays:
    """Effects averaged over results, and the standardised change of the outputs ``output_changes`` [image layer head
    target] by each of them, [image layer head result target] where there are several: what estimates are made from."""
    found = results[0] if len(results) == 1 else mean_of_results(results)
    changes = [one.ablated_predictions - one.intact_predictions[:, None, None] for one in results]
    return {
        "delta_loss": found.delta_loss.numpy(),
        "delta_target_sq": found.delta_target_sq.numpy(),
        "intact_loss": found.intact_loss.numpy(),
        "predictions": opened.model.to_units(found.intact_predictions).numpy(),
        "residuals": (found.intact_predictions - batch.labels.to("cpu", torch.float64)).numpy(),
        "output_changes": (changes[0] if len(changes) == 1 else torch.stack(changes, dim=3)).float().numpy(),
    }
