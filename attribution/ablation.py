"""The causal truth: what the loss becomes when one head is removed: set to zero, or to a context that knows less.

Takes a model in eval mode and a batch; gives per picture and head the change of the loss, and of the squared error of
each target. The passes themselves are `attribution.sweep`'s. Does not know any attribution method, and makes no means
over pictures.

Sign: ablated − intact, so positive = removing the head raises the loss. Negative effects stay.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from attribution.batch import Batch
from attribution.contexts import contexts
from attribution.sweep import predictions_without
from attribution.vit import (
    ViTRegressor,
    attention_modules,
    head_layout,
    loss_per_image,
    loss_per_target,
    num_heads_of,
    require_eval,
)

Heads = Sequence[tuple[int, int]]  # (layer, head)
PICTURES_AT_ONCE = 16  # whose contexts in other pictures are held; those of 16 pictures of DINOv2-small take 76 MB


@dataclass(frozen=True, eq=False)
class AblationResult:
    """Effects of removing heads one at a time; float64, on the CPU. Heads that were not asked for are NaN.

    `delta_loss` [image layer head]: loss ablated − intact, standardised units (× 100 = % of the label variance);
    `delta_target_sq` [image layer head target]: the same for each target's squared error, in its unit squared;
    `intact_loss` [image]; `intact_predictions` [image target] and `ablated_predictions` [image layer head target],
    standardised; `route`, how the passes went (`attribution.sweep`).
    """

    delta_loss: Tensor
    delta_target_sq: Tensor
    intact_loss: Tensor
    intact_predictions: Tensor
    ablated_predictions: Tensor
    route: str


@torch.no_grad()
def zero_ablation(
    model: ViTRegressor,
    batch: Batch,
    *,
    heads: Iterable[tuple[int, int]] | None = None,
    replacement: Tensor | None = None,
    batch_size: int = 32,
    route: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> AblationResult:
    """Remove each head in turn from every picture: z becomes b, zero unless `replacement` gives another.

    `heads` are (layer, head) pairs, all by default; their order changes nothing. `replacement` broadcasts to `[image
    layer token head head_dim]`. `batch_size` pictures go through in one pass; `route` is how (`attribution.sweep`):
    the fastest that the model allows, unless named. `progress(done, total)` counts pictures passed. Outputs come in the
    model's dtype, differences are taken in float64. Raises `ValueError` for a model in train mode, an unknown or
    repeated head, a replacement of the wrong shape, or a route that the model does not allow.
    """
    require_eval(model)
    modules = attention_modules(model)
    shape = (len(modules), num_heads_of(modules[0]))
    chosen = _chosen_heads(heads, *shape)
    if replacement is not None:
        replacement = _checked_replacement(model, replacement, len(batch))
    total, done = (1 + len(chosen)) * len(batch), 0

    def passed(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    predictions, taken = predictions_without(
        model,
        batch.pixel_values,
        [(), *((pair,) for pair in chosen)],
        replacement=replacement,
        batch_size=batch_size,
        route=route,
        passed=passed,
    )
    labels = batch.labels.to("cpu", torch.float64)
    return _result(predictions, labels, chosen, shape, model.config.label_std, taken)


def mean_ablation(
    model: ViTRegressor,
    batch: Batch,
    mean_context: Tensor,
    *,
    heads: Heads | None = None,
    batch_size: int = 32,
    route: str = "auto",
) -> AblationResult:
    """Each head in turn at its mean context, `[layer token head head_dim]` (`mean_context`): what varies leaves."""
    return zero_ablation(model, batch, heads=heads, replacement=mean_context, batch_size=batch_size, route=route)


def resample_ablation(
    model: ViTRegressor, batch: Batch, *, heads: Heads | None = None, batch_size: int = 32, route: str = "auto"
) -> AblationResult:
    """Each head in turn at its context in other pictures, the batch's donors; effects averaged over donors.

    `ablated_predictions` are averaged too: they are not those whose loss was taken.
    """
    return mean_of_results(resample_by_donor(model, batch, heads=heads, batch_size=batch_size, route=route))


def resample_by_donor(
    model: ViTRegressor, batch: Batch, *, heads: Heads | None = None, batch_size: int = 32, route: str = "auto"
) -> list[AblationResult]:
    """What `resample_ablation` averages: each head in turn at its context in one donor, for each of them."""
    donors = batch.required("donor_pixel_values")
    return [
        _at_contexts_of(model, batch, donors[:, number], heads=heads, batch_size=batch_size, route=route)
        for number in range(donors.shape[1])
    ]


def mean_of_results(found: Sequence[AblationResult]) -> AblationResult:
    """Effects averaged over results of the same pictures and heads; so are the ablated predictions."""

    def mean(name: str) -> Tensor:
        return torch.stack([getattr(one, name) for one in found]).mean(0)

    return replace(
        found[0],
        delta_loss=mean("delta_loss"),
        delta_target_sq=mean("delta_target_sq"),
        ablated_predictions=mean("ablated_predictions"),
    )


def counterfactual_ablation(
    model: ViTRegressor, batch: Batch, *, heads: Heads | None = None, batch_size: int = 32, route: str = "auto"
) -> AblationResult:
    """Each head in turn at its context in the same picture without the thing to be read."""
    twins = batch.required("counterfactual_pixel_values")
    return _at_contexts_of(model, batch, twins, heads=heads, batch_size=batch_size, route=route)


@torch.no_grad()
def mean_context(model: ViTRegressor, pixel_values: Iterable[Tensor]) -> Tensor:
    """Mean context per layer, token and head over pictures, `[layer token head head_dim]` in float64 on the CPU.

    `pixel_values` gives some pictures `[image 3 row col]` at a time. ValueError where it gives none.
    """
    require_eval(model)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for part in pixel_values:
        total = total + contexts(model, part, batch_size=len(part)).to("cpu", torch.float64).sum(0)
        count += len(part)
    if not count:
        raise ValueError("mean context: expected at least one picture")
    return total / count


def _at_contexts_of(
    model: ViTRegressor, batch: Batch, others: Tensor, *, heads: Heads | None, batch_size: int, route: str
) -> AblationResult:
    """Each head in turn at its context in another picture, one for each, a few pictures at a time."""
    parts = []
    at_once = min(batch_size, PICTURES_AT_ONCE)
    for start in range(0, len(batch), at_once):
        rows = slice(start, start + at_once)
        there = contexts(model, others[rows], batch_size=at_once)
        part = batch.select(rows)
        parts.append(zero_ablation(model, part, heads=heads, replacement=there, batch_size=batch_size, route=route))
    joined = {
        field.name: torch.cat([getattr(part, field.name) for part in parts])
        for field in fields(AblationResult)
        if field.name != "route"
    }
    return AblationResult(**joined, route=parts[0].route)


def _result(
    predictions: Tensor,
    labels: Tensor,
    chosen: list[tuple[int, int]],
    shape: tuple[int, int],
    label_std: tuple[float, ...],
    route: str,
) -> AblationResult:
    num_images, num_targets = labels.shape
    squared = torch.stack([loss_per_target(scenario, labels) for scenario in predictions])  # [scenario image target]
    losses = torch.stack([loss_per_image(scenario, labels) for scenario in predictions])  # [scenario image]
    delta_loss = torch.full((num_images, *shape), torch.nan, dtype=torch.float64)
    ablated = torch.full((num_images, *shape, num_targets), torch.nan, dtype=torch.float64)
    delta_target_sq = ablated.clone()
    units_sq = torch.tensor(label_std, dtype=torch.float64) ** 2
    for scenario, (layer, head) in enumerate(chosen, start=1):
        delta_loss[:, layer, head] = losses[scenario] - losses[0]
        delta_target_sq[:, layer, head] = (squared[scenario] - squared[0]) * units_sq
        ablated[:, layer, head] = predictions[scenario]
    return AblationResult(delta_loss, delta_target_sq, losses[0], predictions[0], ablated, route)


def _chosen_heads(heads: Iterable[tuple[int, int]] | None, num_layers: int, num_heads: int) -> list[tuple[int, int]]:
    everything = [(layer, head) for layer in range(num_layers) for head in range(num_heads)]
    if heads is None:
        return everything
    asked = [(int(layer), int(head)) for layer, head in heads]
    for pair in asked:
        if pair not in everything:
            raise ValueError(f"heads: no layer {pair[0]} head {pair[1]} in {num_layers} layers of {num_heads} heads")
    if len(set(asked)) != len(asked):
        raise ValueError("heads: expected each head once, some are repeated")
    return sorted(asked)


def _checked_replacement(model: ViTRegressor, replacement: Tensor, num_images: int) -> Tensor:
    layout = head_layout(model)
    num_tokens = layout.num_special_tokens + layout.num_rows * layout.num_cols
    full = (num_images, layout.num_layers, num_tokens, layout.num_heads, layout.head_dim)
    shape = (1,) * (5 - replacement.dim()) + tuple(replacement.shape)
    if len(shape) != 5 or any(size not in (1, expected) for size, expected in zip(shape, full, strict=True)):
        raise ValueError(
            f"replacement: expected {list(full)} (image layer token head head_dim) or 1, got {list(replacement.shape)}"
        )
    if not bool(torch.isfinite(replacement).all()):
        raise ValueError("replacement: expected finite numbers, found NaN or infinity")
    return replacement.reshape(shape)
