"""Attention rollout, and relevance from attention times its gradient.

Takes a model in eval mode with eager attention, a batch and settings; gives head scores `[image layer head]` (larger =
predicted to matter more; only `attention_ixg` is signed) or pixel maps on the patch grid `[image row col]`. Only the
CLS row of a product of attention matrices is ever needed, so products go from the last block down, as vectors. Does
not know pixels or gates.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.heads import PICTURES_PER_PASS, attentions, by_attention, layout_with_cls, over_patches
from attribution.vit import HeadLayout, ViTRegressor, loss_per_image, require_eval

FUSIONS = ("mean", "max", "min")


def transition(attention: Tensor, fusion: str = "mean", discard_ratio: float = 0.0) -> Tensor:
    """Â = ½Ā + ½I with rows made to sum to 1, `[image query key]` of attention `[image head query key]`.

    Ā fuses the heads by mean, max or min (Abnar & Zuidema 2020, 2005.00928, section 3); the smallest `discard_ratio`
    of each picture's entries outside the CLS token's column are set to 0, so that no query loses its way to CLS.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"fusion: expected one of {', '.join(FUSIONS)}, got {fusion!r}")
    if not 0 <= discard_ratio < 1:
        raise ValueError(f"discard_ratio: expected 0 <= ratio < 1, got {discard_ratio}")
    fused = attention.mean(1) if fusion == "mean" else getattr(attention, f"a{fusion}")(1)
    num_discarded = int(discard_ratio * fused[0, :, 1:].numel())
    if num_discarded:
        patches = fused[:, :, 1:].flatten(1)
        smallest = patches.topk(num_discarded, dim=1, largest=False).indices
        kept = patches.scatter(1, smallest, 0.0).view_as(fused[:, :, 1:])
        fused = torch.cat((fused[:, :, :1], kept), dim=2)
    return _with_residual(fused)


def _with_residual(fused: Tensor) -> Tensor:
    halved = (fused + torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device)) / 2
    return halved / halved.sum(-1, keepdim=True)


def rollout(
    model: ViTRegressor,
    batch: Batch,
    settings: MethodSettings,
    target: int | None = None,
    *,
    fusion: str = "mean",
    discard_ratio: float = 0.0,
) -> Tensor:
    """Rollout map R[CLS, patches] of R = Â_L···Â_1 (Abnar & Zuidema 2020, eq. 1), `[image row col]`.

    Reads no output, so it is the same whatever the `target`. Maps sum to less than 1: special tokens keep the rest.
    """
    return by_attention(partial(rollout_of, fusion=fusion, discard_ratio=discard_ratio), model, batch, settings)


def rollout_of(layers: list[Tensor], layout: HeadLayout, *, fusion: str = "mean", discard_ratio: float = 0.0) -> Tensor:
    """`rollout` from the attention weights `[image head query key]` of every layer."""
    row = _cls_row(layers[0][:, 0])
    for weights in reversed(layers):
        row = row @ transition(weights, fusion, discard_ratio)
    return _grid(row[:, 0], layout)


def rollout_drop(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """L1 distance between the rollout map with all heads averaged and with all but one, maps renormalised over patches.

    A layer's only head leaves the residual path alone behind. In [0, 2].
    """
    return by_attention(rollout_drop_of, model, batch, settings)


def rollout_drop_of(layers: list[Tensor], layout: HeadLayout) -> Tensor:
    """`rollout_drop` from the attention weights `[image head query key]` of every layer."""
    num_heads = layers[0].shape[1]
    rows = _cls_row(layers[0][:, 0])  # [image 1 + (heads dropped so far, from the last block down) key]
    for weights in reversed(layers):
        others = (weights.sum(1, keepdim=True) - weights) / max(1, num_heads - 1)
        dropped = torch.einsum("bq,bhqk->bhk", rows[:, 0], _with_residual(others))
        rows = torch.cat((rows @ transition(weights), dropped), dim=1)
    maps = over_patches(rows[:, :, layout.num_special_tokens :])
    distances = (maps[:, 1:] - maps[:, :1]).abs().sum(-1)
    return distances.unflatten(1, (len(layers), num_heads)).flip(1)


def chefer(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Head score Σ (A ⊙ ∇A)⁺ over queries and keys, ∇ of −ℓ (Chefer et al. 2021, 2103.15679, eq. 5 before the mean)."""
    return _summed(model, batch, settings, lambda product: product.clamp_min(0))


def attention_ixg(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """−Σ A ⊙ ∂ℓ/∂A over queries and keys, signed (input × gradient at the attention weights, 1605.01713).

    Equal to `attribution.gates.gate_ixg`: the context A·v is linear in A, as it is in the gate.
    """
    return _summed(model, batch, settings, lambda product: product)


def chefer_map(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Relevance of the patches to CLS: R ← R + Ā·R with Ā = mean over heads of (A ⊙ ∇A)⁺ (2103.15679, eqs. 5 and 6).

    ∇ of −ℓ, or of output `target`; `[image row col]`.
    """

    def of_part(part: Batch) -> Tensor:
        layers = [product.clamp_min(0).mean(1) for product in _products(model, part, target)]
        row = _cls_row(layers[0])
        for matrix in reversed(layers):
            row = row + row @ matrix
        return row[:, 0]

    return _on_grid(model, batch, settings, of_part)


def explained(predictions: Tensor, labels: Tensor, target: int | None) -> Tensor:
    """The number to explain per picture, `[image]`: ℓ, or output `target` (`ValueError` where there is none)."""
    if target is None:
        return loss_per_image(predictions, labels)
    if not 0 <= target < predictions.shape[1]:
        raise ValueError(f"target: expected 0 to {predictions.shape[1] - 1}, got {target}")
    return predictions[:, target]


def _summed(model: ViTRegressor, batch: Batch, settings: MethodSettings, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum over queries and keys of what `change` makes of A ⊙ ∇A, ∇ of −ℓ, `[image layer head]`."""
    require_eval(model)
    parts = []
    for part in batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS)):
        products = _products(model, part, target=None)
        parts.append(torch.stack([change(product).sum(dim=(-2, -1)) for product in products], dim=1))
    return torch.cat(parts)


def _products(model: ViTRegressor, batch: Batch, target: int | None) -> list[Tensor]:
    """Per layer A ⊙ ∇A `[image head query key]`, ∇ of −ℓ or of output `target`.

    The backward pass ends at the first block's attention.
    """
    with torch.enable_grad():
        pixel_values = batch.pixel_values.detach().requires_grad_()
        predictions, layers = attentions(model, pixel_values, lambda weights: weights)
        scalar = explained(predictions, batch.labels, target).sum() * (-1 if target is None else 1)
        gradients = torch.autograd.grad(scalar, layers)
    return [weights.detach() * gradient for weights, gradient in zip(layers, gradients, strict=True)]


def _cls_row(like: Tensor) -> Tensor:
    """The row vector that picks the CLS query, `[image 1 key]`, for matrices `[image query key]`."""
    row = torch.zeros(like.shape[0], 1, like.shape[-1], dtype=like.dtype, device=like.device)
    row[:, :, 0] = 1
    return row


def _on_grid(model: ViTRegressor, batch: Batch, settings: MethodSettings, of_part: Callable[[Batch], Tensor]) -> Tensor:
    require_eval(model)
    layout = layout_with_cls(model)
    parts = [of_part(part) for part in batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS))]
    return _grid(torch.cat(parts), layout)


def _grid(tokens: Tensor, layout: HeadLayout) -> Tensor:
    """The patches among `[image token]`, on their grid: `[image row col]`."""
    return tokens[:, layout.num_special_tokens :].unflatten(1, (layout.num_rows, layout.num_cols))
