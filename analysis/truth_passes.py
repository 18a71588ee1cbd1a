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
from analysis.passes import Pass, first_rows, method_settings
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

KINDS = ("zero", "mean", "resample", "counterfactual")
SHAPLEY = "shapley"
TRUTHS = (*KINDS, SHAPLEY)
DEFAULT_TRUTHS = ("zero", "mean", "counterfactual")
TRUTH = "ablation_zero"


def chosen_truths(settings: CompareSettings, has_counterfactual: bool) -> tuple[str, ...]:
    """The truths asked for, in their usual order; zero is always one. ValueError for an unknown one.

    ``default`` stands for three, or with ``methods: all`` for every one; without counterfactuals it leaves those out.
    """
    unknown = [name for name in settings.truths if name not in (*TRUTHS, "default", "all")]
    if unknown:
        raise ValueError(f"truths: unknown {', '.join(unknown)}, expected some of {', '.join(TRUTHS)}, default, all")
    if settings.estimate is not None:
        others = [name for name in settings.truths if name not in ("zero", "default")]
        if others:
            raise ValueError(f"--estimate: expected --truths zero, which alone is estimated, got {', '.join(others)}")
        return ("zero",)
    if "counterfactual" in settings.truths and not has_counterfactual:
        raise ValueError(
            "truths: counterfactual needs synthetic pictures, a folder's have no twin without the thing to be read"
        )
    implied: set[str] = set()
    if "default" in settings.truths:
        implied = set(TRUTHS if "all" in settings.methods else DEFAULT_TRUTHS)
    if "all" in settings.truths:
        implied = set(TRUTHS)
    if not has_counterfactual:
        implied.discard("counterfactual")
    return tuple(name for name in TRUTHS if name in settings.truths or name in implied or name == "zero")


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
    return _shapley_pass(opened, settings, source.count)


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
