"""What the heads attend to: attention maps and their summaries.

Takes a model in eval mode with eager attention and preprocessed pictures; gives maps `[image layer head row col]` and
numbers `[image layer head]`. Whatever needs nothing but attention weights can share one forward pass
(`read_attention`): the weights `[query key]` of a few pictures at a time are held, read by all, and dropped. Does not
know labels, losses or gradients.

Conventions. `cls` is the row of the token the prediction is read from; `mean` is the mean row of the patch queries.
Special tokens (CLS, registers) are dropped as keys and the rest divided by its sum; nothing is min-max scaled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attribution.batch import Batch, MethodSettings
from attribution.vit import (
    HeadLayout,
    ViTRegressor,
    attention_modules,
    head_layout,
    require_eval,
)

QUERIES = ("cls", "mean")
PICTURES_PER_PASS = 8  # the attention of 8 pictures of 257 tokens in 12 layers of 6 heads takes 150 MB in float32
Reduced = TypeVar("Reduced")


@dataclass(frozen=True, eq=False)
class HeadMaps:
    """Attention of every head. Dictionaries are keyed by the query, `cls` or `mean`.

    `maps` [image layer head row col] sum to 1; `special_mass` [image layer head] is what the special tokens took
    before they were dropped; `entropy` [image layer head], in nats over patches: of the CLS map, or the mean over
    patch queries of the entropy of each one's own patch distribution; `distance_patches` [image layer head]: mean
    distance between query and key patch, in patch widths, weighted by attention and averaged over patch queries
    (Dosovitskiy et al. 2021, 2010.11929, figure 7).
    """

    maps: dict[str, Tensor]
    special_mass: dict[str, Tensor]
    entropy: dict[str, Tensor]
    distance_patches: Tensor

    @property
    def cls(self) -> Tensor:
        """The CLS maps [image layer head row col]."""
        return self.maps["cls"]

    @property
    def mean(self) -> Tensor:
        """The maps of the mean patch query [image layer head row col]."""
        return self.maps["mean"]


def attentions(
    model: ViTRegressor, pixel_values: Tensor, reduce: Callable[[Tensor], Reduced]
) -> tuple[Tensor, list[Reduced]]:
    """Predictions `[image target]` and, layer by layer, `reduce` of the attention weights `[image head query key]`.

    Gradients flow where they are enabled. Raises `ValueError` where the attention implementation gives no weights.
    """
    modules = attention_modules(model)
    reduced: dict[int, Reduced] = {}

    def hook_of(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if not isinstance(weights, Tensor) or weights.dim() != 4:
                raise ValueError(f"layer {layer}: the attention implementation gives no weights, expected 'eager'")
            reduced[layer] = reduce(weights)

        return hook

    handles = [module.register_forward_hook(hook_of(layer)) for layer, module in enumerate(modules)]
    try:
        predictions = model(pixel_values)
    finally:
        for handle in handles:
            handle.remove()
    return predictions, [reduced[layer] for layer in range(len(modules))]


@torch.no_grad()
def read_attention(
    model: ViTRegressor,
    pixel_values: Tensor,
    read: Callable[[list[Tensor]], dict[str, Tensor]],
    *,
    batch_size: int = PICTURES_PER_PASS,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Predictions `[image target]`, and by name what `read` makes of the attention weights, joined over pictures.

    `read` is given the weights `[image head query key]` of every layer, of at most `batch_size` pictures (never more
    than `PICTURES_PER_PASS`) at a time; its tensors have the image as first axis. Raises `ValueError` for a model in
    train mode or without attention weights.
    """
    require_eval(model)
    outputs: list[Tensor] = []
    found: list[dict[str, Tensor]] = []
    for part in pixel_values.split(min(batch_size, PICTURES_PER_PASS)):
        predictions, layers = attentions(model, part, lambda weights: weights)
        outputs.append(predictions)
        found.append(read(layers))
    return torch.cat(outputs), {name: torch.cat([part[name] for part in found]) for name in found[0]}


def attention_maps(
    model: ViTRegressor, pixel_values: Tensor, queries: Sequence[str] = QUERIES, *, batch_size: int = PICTURES_PER_PASS
) -> HeadMaps:
    """Maps, special-token mass, entropy and attention distance of every head, a few pictures per pass.

    Raises `ValueError` for a model in train mode or without attention weights, and for an unknown query.
    """
    require_eval(model)
    unknown = sorted(set(queries) - set(QUERIES))
    if unknown or not queries:
        raise ValueError(
            f"queries: expected some of {', '.join(QUERIES)}, got {', '.join(map(str, queries)) or 'none'}"
        )
    layout = layout_with_cls(model)
    _, found = read_attention(
        model, pixel_values, lambda layers: map_arrays(layers, layout, queries), batch_size=batch_size
    )
    return HeadMaps(
        maps={query: found[f"{query}_map"] for query in queries},
        special_mass={query: found[f"{query}_special_mass"] for query in queries},
        entropy={query: found[f"{query}_entropy"] for query in queries},
        distance_patches=found["attention_distance"],
    )


def map_arrays(layers: list[Tensor], layout: HeadLayout, queries: Sequence[str] = QUERIES) -> dict[str, Tensor]:
    """What `HeadMaps` holds, by name, from the attention weights `[image head query key]` of every layer.

    For each query `<query>_map` [image layer head row col], `<query>_special_mass` and `<query>_entropy` [image layer
    head]; and `attention_distance` [image layer head].
    """
    distances = _patch_distances(layout).to(layers[0])
    by_layer = [_summaries(weights, layout, queries, distances) for weights in layers]
    joined = {name: torch.stack([layer[name] for layer in by_layer], dim=1) for name in by_layer[0]}
    for query in queries:
        joined[f"{query}_map"] = joined[f"{query}_map"].unflatten(-1, (layout.num_rows, layout.num_cols))
    return joined


def cls_mass(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Head score: the part of the CLS query's attention that falls on patches, `[image layer head]` in [0, 1]."""
    return by_attention(cls_mass_of, model, batch, settings)


def cls_mass_of(layers: list[Tensor], layout: HeadLayout) -> Tensor:
    """`cls_mass` from the attention weights `[image head query key]` of every layer."""
    return torch.stack([weights[:, :, 0, layout.num_special_tokens :].sum(-1) for weights in layers], dim=1)


def by_attention(
    of_attention: Callable[[list[Tensor], HeadLayout], Tensor],
    model: ViTRegressor,
    batch: Batch,
    settings: MethodSettings,
) -> Tensor:
    """A forward pass for the sake of one function of the attention weights; its tensor, joined over pictures."""
    require_eval(model)
    layout = layout_with_cls(model)
    _, found = read_attention(
        model,
        batch.pixel_values,
        lambda layers: {"values": of_attention(layers, layout)},
        batch_size=settings.internal_batch_size,
    )
    return found["values"]


def layout_with_cls(model: ViTRegressor) -> HeadLayout:
    """The layout of a model whose first token is a CLS token (`ValueError` where it is a patch)."""
    layout = head_layout(model)
    if layout.num_special_tokens < 1:
        raise ValueError("the model has no CLS token: its first token is a patch, so there is no CLS row to read")
    return layout


def over_patches(weights: Tensor) -> Tensor:
    """Divide by the sum over the last axis; a row without any mass stays zero."""
    return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


def _patch_distances(layout: HeadLayout) -> Tensor:
    rows, cols = torch.meshgrid(torch.arange(layout.num_rows), torch.arange(layout.num_cols), indexing="ij")
    places = torch.stack((rows.flatten(), cols.flatten()), dim=1).double()
    return (places[:, None] - places[None, :]).norm(dim=-1)  # [query key], in patch widths


def _summaries(weights: Tensor, layout: HeadLayout, queries: Sequence[str], distances: Tensor) -> dict[str, Tensor]:
    special = layout.num_special_tokens
    patch_rows = over_patches(weights[:, :, special:, special:])  # [image head query key]
    summaries = {"attention_distance": torch.einsum("bhqk,qk->bhq", patch_rows, distances).mean(-1)}
    for query in queries:
        row = weights[:, :, 0] if query == "cls" else weights[:, :, special:].mean(2)  # [image head key]
        summaries[f"{query}_map"] = over_patches(row[..., special:])
        summaries[f"{query}_special_mass"] = row[..., :special].sum(-1)
        distribution = summaries["cls_map"] if query == "cls" else patch_rows
        entropy = torch.special.entr(distribution).sum(-1)
        summaries[f"{query}_entropy"] = entropy if query == "cls" else entropy.mean(-1)
    return summaries
