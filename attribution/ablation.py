"""The causal truth: what the loss becomes when one head is removed.

Takes a model in eval mode and a batch; gives per picture and head the change of the loss, and of the squared error of
each target. Every head is removed by its gate in a forward pass of its own. Does not know any attribution method,
and makes no means over pictures.

Sign: ablated − intact, so positive = removing the head raises the loss. Negative effects stay.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.batch import Batch
from attribution.prefix import prefix_states, starting_at
from attribution.vit import (
    ViTRegressor,
    attention_modules,
    gated,
    head_layout,
    loss_per_image,
    loss_per_target,
    num_heads_of,
    require_eval,
)


@dataclass(frozen=True, eq=False)
class AblationResult:
    """Effects of removing heads one at a time; float64, on the CPU. Heads that were not asked for are NaN.

    `delta_loss` [image layer head]: loss ablated − intact, standardised units (× 100 = % of the label variance);
    `delta_target_sq` [image layer head target]: the same for each target's squared error, in its unit squared;
    `intact_loss` [image]; `intact_predictions` [image target] and `ablated_predictions` [image layer head target],
    standardised.
    """

    delta_loss: Tensor
    delta_target_sq: Tensor
    intact_loss: Tensor
    intact_predictions: Tensor
    ablated_predictions: Tensor


@torch.no_grad()
def zero_ablation(
    model: ViTRegressor,
    batch: Batch,
    *,
    heads: Iterable[tuple[int, int]] | None = None,
    replacement: Tensor | None = None,
    batch_size: int = 32,
    reuse_prefix: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> AblationResult:
    """Remove each head in turn from every picture: z becomes b, zero unless `replacement` gives another.

    `heads` are (layer, head) pairs, all by default; their order changes nothing. `replacement` broadcasts to `[image
    layer token head head_dim]`. `batch_size` pictures go through in one pass, whichever head each of them lacks;
    `reuse_prefix` starts each pass at the block that lacks a head (`attribution.prefix`), keeping the hidden states of
    all pictures before every block in memory; without it every pass is a full one. `progress(done, total)` counts
    pictures passed. Outputs come in the model's dtype, differences are taken in float64. Raises `ValueError` for a
    model in train mode, an unknown or repeated head, or a replacement of the wrong shape.
    """
    require_eval(model)
    modules = attention_modules(model)
    shape = (len(modules), num_heads_of(modules[0]))
    chosen = _chosen_heads(heads, *shape)
    if replacement is not None:
        replacement = _checked_replacement(model, replacement, len(batch))
    images = torch.arange(len(batch))
    # The intact pictures are a scenario too, so that they run through batches of the same make.
    scenarios: list[tuple[int, list[int | None]]] = [(0, [None])]  # (layer to start at, heads; None = intact)
    for layer in sorted({layer for layer, _ in chosen}):
        scenarios.append((layer, [head for first, head in chosen if first == layer]))
    total, done = (1 + len(chosen)) * len(batch), 0
    states = prefix_states(model, batch.pixel_values, batch_size) if reuse_prefix else None
    outputs = []
    for layer, lacking in scenarios:
        pairs = torch.cartesian_prod(torch.arange(len(lacking)), images)  # [pass (scenario, image)]
        for part in pairs.split(batch_size):
            which, rows = (column.to(batch.pixel_values.device) for column in part.unbind(1))
            gates = torch.ones((len(part), *shape), dtype=batch.pixel_values.dtype, device=batch.pixel_values.device)
            for place, number in enumerate(which.tolist()):
                if lacking[number] is not None:
                    gates[place, layer, lacking[number]] = 0
            context = replacement[rows] if replacement is not None and replacement.shape[0] > 1 else replacement
            start = nullcontext() if states is None else starting_at(model, layer, states[layer][rows])
            with gated(model, gates, context), start:
                outputs.append(model(batch.pixel_values[rows]).to("cpu", torch.float64))
            done += len(part)
            if progress is not None:
                progress(done, total)
    predictions = torch.cat(outputs).unflatten(0, (1 + len(chosen), len(batch)))  # [scenario image target]
    return _result(predictions, batch.labels.to("cpu", torch.float64), chosen, shape, model.config.label_std)


def _result(
    predictions: Tensor,
    labels: Tensor,
    chosen: list[tuple[int, int]],
    shape: tuple[int, int],
    label_std: tuple[float, ...],
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
    return AblationResult(delta_loss, delta_target_sq, losses[0], predictions[0], ablated)


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
