"""Models with a known answer: copies with one edit of a head each, and a tiny model wired by hand.

Takes a model; gives a copy whose change is known beforehand, so that methods can be held against it: a head that does
nothing, two heads that do the same, heads in another order. The given model stays untouched. In the copy LoRA is
merged into the plain weights. Does not know any method.

Heads are rows of the query, key and value projections (biases too) and columns of the output projection W_o. Layouts
that keep anything else per head (biases of relative positions, for instance) are refused.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from attribution.batch import Batch
from attribution.contexts import contexts
from attribution.vit import RegressorConfig, ViTRegressor, attention_modules, num_heads_of, output_projections

WIRED_HEAD = (1, 1)


def merged_copy(model: ViTRegressor) -> ViTRegressor:
    """A copy with LoRA merged into plain weights: the same function, to rounding. Without LoRA a plain copy."""
    copied = copy.deepcopy(model)
    backbone: Any = copied.backbone
    if hasattr(backbone, "unload"):
        for module in backbone.modules():
            if getattr(module, "merged", True) is False:
                module.merge()
        copied.backbone = backbone.unload()
    return copied


@torch.no_grad()
def silence_head(model: ViTRegressor, layer: int, head: int) -> ViTRegressor:
    """A copy in which the head's columns of W_o are zero, so that removing it changes nothing.

    Where passes of different shapes are compared, rounding is left. Raises `ValueError` for a head that the model does
    not have.
    """
    copied = merged_copy(model)
    _checked_head(copied, layer, head)
    _columns(copied, layer)[:, head] = 0
    return copied


@torch.no_grad()
def split_head(model: ViTRegressor, layer: int, head: int, into: int) -> ViTRegressor:
    """A copy in which head `into` of the layer is the other half of `head`; what `into` did is gone.

    `into` gets the query, key and value rows of `head`, and both get half of its columns of W_o: two heads that
    attend alike and add the same. Together they do what `head` did. Raises `ValueError` for a head that the model
    does not have, for `into` equal to `head`, and for attention of another layout.
    """
    copied = merged_copy(model)
    for number in (head, into):
        _checked_head(copied, layer, number)
    if head == into:
        raise ValueError(f"split: expected two different heads, got head {head} twice")
    for rows in _input_rows(copied, layer):
        rows[into] = rows[head]
    columns = _columns(copied, layer)
    columns[:, head] /= 2
    columns[:, into] = columns[:, head]
    return copied


@torch.no_grad()
def permute_heads(model: ViTRegressor, layer: int, order: Sequence[int]) -> ViTRegressor:
    """A copy whose head j of the layer is head `order[j]` of the given model; the same function, to rounding.

    Raises `ValueError` for an order that does not name every head once, and for attention of another layout.
    """
    copied = merged_copy(model)
    _checked_head(copied, layer, 0)
    places = list(order)
    if sorted(places) != list(range(num_heads_of(attention_modules(copied)[layer]))):
        raise ValueError(f"order: expected every head of layer {layer} once, got {places}")
    for rows in _input_rows(copied, layer):
        rows.copy_(rows[places])
    columns = _columns(copied, layer)
    columns.copy_(columns[:, places])
    return copied


def wired_regressor(
    *, noise: float = 0.0, seed: int = 0, image_size: int = 8, patch_size: int = 2, num_images: int = 16
) -> tuple[ViTRegressor, Batch, tuple[int, int]]:
    """A DINOv2 of three layers of three heads wired by hand, pictures for it, and (layer, head) of what carries the
    answer; float64, two targets.

    A patch token carries the mean of its red pixels in channel 0; under uniform attention the one head brings the mean
    of channel 0 of the normalised tokens to channel 1, which the regression head reads off the CLS token. `noise`
    scales small random weights of every attention and MLP; at 0 all other heads do exactly nothing.

    The pictures differ in their red level, from -1.5 to 1.5, and a little from pixel to pixel. Labels are twice the
    predictions, so that the answer could only be stronger: the loss of every picture rises when the head is set to
    zero, or to the counterfactual picture without red; where it is set to other pictures' contexts (four donors
    each), it rises on average. Raises `ValueError` for patches that do not tile the picture, or fewer than 6 pictures.
    """
    if patch_size < 1 or image_size % patch_size or num_images < 6:
        raise ValueError(
            "wired model: expected patches that tile the picture and at least 6 pictures, "
            f"got {image_size} / {patch_size} pixels and {num_images}"
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        model = _wired(image_size, patch_size, noise, generator)
    levels = torch.linspace(-1.5, 1.5, num_images, dtype=torch.float64)
    levels = levels.where(levels != 0, 0.1)  # no picture without an answer
    pixel_values = torch.zeros(num_images, 3, image_size, image_size, dtype=torch.float64)
    pixels = torch.randn(num_images, image_size, image_size, generator=generator, dtype=torch.float64)
    pixel_values[:, 0] = levels[:, None, None] + 0.05 * pixels
    with torch.no_grad():
        labels = 2 * model(pixel_values)
    without = torch.zeros_like(pixel_values)
    donors = torch.stack([pixel_values.roll(shift * num_images // 5, 0) for shift in (1, 2, 3, 4)], dim=1)
    mean = contexts(model, pixel_values).mean(0)
    batch = Batch(pixel_values, labels, torch.arange(num_images), pixel_values.mean(0), donors, without, mean)
    return model, batch, WIRED_HEAD


def _wired(image_size: int, patch_size: int, noise: float, generator: torch.Generator) -> ViTRegressor:
    sizes: dict[str, Any] = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "mlp_ratio": 1}
    backbone = Dinov2Model(Dinov2Config(image_size=image_size, patch_size=patch_size, **sizes))
    backbone.set_attn_implementation("eager")
    targets = RegressorConfig(("first", "second"), ("s", "Hz"), (0.0, 0.0), (1.0, 3.0), image_size=image_size)
    model = ViTRegressor(backbone, targets, hidden_size=12).double()
    layer, head = WIRED_HEAD
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            small = noise * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(small if "_proj" in name or "mlp" in name else torch.zeros_like(parameter))
            if ("norm" in name and name.endswith("weight")) or "lambda" in name:
                parameter.fill_(1.0)
        embeddings: Any = backbone.embeddings
        embeddings.patch_embeddings.projection.weight[0, 0] = 1 / patch_size**2
        # Two large channels that are the same everywhere, so that normalisation hardly depends on the picture.
        embeddings.position_embeddings[:, :, 10], embeddings.position_embeddings[:, :, 11] = 3.0, -3.0
        attention: Any = attention_modules(model)[layer]
        attention.v_proj.weight[4 * head, 0] = 1.0
        attention.o_proj.weight[1, 4 * head] = 1.0
        linear: list[Any] = [model.head[place] for place in (0, 2, 4)]
        first, second, last = linear
        # Through the ReLUs in two parts, above and below zero.
        first.weight[0, 1], first.weight[1, 1] = 1.0, -1.0
        second.weight[0, 0] = second.weight[1, 1] = 1.0
        last.weight[:, 0] = torch.tensor([1.0, 2.0])
        last.weight[:, 1] = -last.weight[:, 0]
    return model.eval().requires_grad_(False)


def _checked_head(model: ViTRegressor, layer: int, head: int) -> None:
    modules = attention_modules(model)
    num_heads = num_heads_of(modules[0])
    if not (0 <= layer < len(modules) and 0 <= head < num_heads):
        raise ValueError(f"no layer {layer} head {head} in {len(modules)} layers of {num_heads} heads")


def _columns(model: ViTRegressor, layer: int) -> Tensor:
    """W_o of the layer, `[channel head head_dim]`, to be written to."""
    return output_projections(model)[layer].weight.unflatten(1, (num_heads_of(attention_modules(model)[layer]), -1))


def _input_rows(model: ViTRegressor, layer: int) -> list[Tensor]:
    """Weights `[head head_dim channel]` and biases `[head head_dim]` of query, key and value, to be written to."""
    attention: Any = attention_modules(model)[layer]
    fused = hasattr(attention, "qkv")
    names = ("qkv",) if fused else ("q_proj", "k_proj", "v_proj")
    known = [*(getattr(attention, name) for name in names), output_projections(model)[layer]]
    held = {id(parameter) for module in known for parameter in module.parameters()}
    if any(type(module) is not nn.Linear for module in known):
        raise ValueError(f"layer {layer}: expected query, key and value projections that are plain nn.Linear")
    if any(id(parameter) not in held for parameter in attention.parameters()):
        raise ValueError(f"layer {layer}: the attention holds weights beside its projections, expected none")
    num_heads = num_heads_of(attention)
    width = known[-1].in_features
    rows = []
    for tensor in (tensor for module in known[:-1] for tensor in (module.weight, module.bias) if tensor is not None):
        if len(tensor) != (3 * width if fused else width):
            raise ValueError(f"layer {layer}: expected {width} rows each of query, key and value")
        rows += [third.unflatten(0, (num_heads, -1)) for third in tensor.split(width)]
    return rows
