"""Attention knockout: what the loss becomes when a head's CLS query may not look at a region of the picture.

Takes a model in eval mode with eager attention, a batch, and masks of regions on the patch grid; gives per picture,
region and head the change of the loss and of each target's squared error, and the share of attention that lay there.
Does not know what the regions show, and makes no means over pictures.

Definition. The attention logits of one head from the CLS query (the first token) to the patches of the region become
minus infinity; the rest of its softmax is renormalised; everything else stays (Geva et al. 2023, 2304.14767, block an
edge of attention in the same way, but in all heads of several layers). So the head's context at the CLS token alone
changes, to Σ A_j v_j / Σ A_j over the keys j that are left, and the pass goes on from there.

Sign: knocked out − intact, so positive = the head helps by looking at the region.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attribution.ablation import zero_ablation
from attribution.batch import Batch
from attribution.heads import attentions, layout_with_cls
from attribution.vit import HeadLayout, ViTRegressor, attention_modules, output_projections, require_eval

PICTURES_AT_ONCE = 8  # whose contexts and values are held; those of one picture of DINOv2-small take 9.4 MB


@dataclass(frozen=True, eq=False)
class KnockoutResult:
    """Effects of hiding a region from one head at a time; float64, on the CPU, regions in the order of `regions`.

    `delta_loss` [image region layer head] and `delta_target_sq` [image region layer head target], in the units of
    `attribution.ablation.AblationResult`; `mass` [image region layer head], the share of the CLS query's whole
    attention, special tokens included, that lies on the region. NaN for a picture that does not contain the region;
    an effect is NaN too where rounding leaves no attention outside it.
    """

    delta_loss: Tensor
    delta_target_sq: Tensor
    mass: Tensor
    regions: tuple[str, ...]


@torch.no_grad()
def attention_knockout(
    model: ViTRegressor, batch: Batch, regions: Mapping[str, Tensor], *, batch_size: int = 32
) -> KnockoutResult:
    """Hide each region in turn from the CLS query of each head (see the module's docstring).

    `regions` are bool masks `[image row col]` of patches, by name. Per 8 pictures one pass with attention weights, and
    per region a sweep over all heads like that of zero ablation, of the pictures that contain the region;
    `batch_size` pictures go through in one pass. Raises `ValueError` for a model in train mode, without a CLS token,
    without attention weights or whose contexts are not attention times values, and for masks of another form.
    """
    require_eval(model)
    layout = layout_with_cls(model)
    masks = checked_masks(regions, len(batch), layout)
    shape = (len(batch), len(masks), layout.num_layers, layout.num_heads)
    delta_loss = torch.full(shape, torch.nan, dtype=torch.float64)
    delta_target_sq = torch.full((*shape, batch.labels.shape[1]), torch.nan, dtype=torch.float64)
    mass = delta_loss.clone()
    for start in range(0, len(batch), PICTURES_AT_ONCE):
        pictures = torch.arange(start, min(start + PICTURES_AT_ONCE, len(batch)))
        attention, values, contexts = intact_attention(
            model, batch.pixel_values[pictures.to(batch.pixel_values.device)], layout
        )
        for region, mask in enumerate(masks):
            inside = mask[pictures]  # [image key]
            present = inside.any(dim=1)
            if not bool(present.any()):
                continue
            rows = pictures[present]
            here = present.to(attention.device)
            hidden = inside[present].to(attention.device)[:, None, None]  # [image layer head key]
            weights = attention[here]
            left = weights.masked_fill(hidden, 0)
            total = left.sum(-1, keepdim=True)  # at least what the special tokens got, unless that is rounded to 0
            context = torch.einsum("blhk,blkhd->blhd", left, values[here]) / total
            replacement = contexts[here]
            replacement[:, :, 0] = torch.where(total > 0, context, 0).to(replacement.dtype)
            found = zero_ablation(model, batch.select(rows.tolist()), replacement=replacement, batch_size=batch_size)
            nothing = (total[..., 0] <= 0).cpu()
            delta_loss[rows, region] = found.delta_loss.masked_fill(nothing, torch.nan)
            delta_target_sq[rows, region] = found.delta_target_sq.masked_fill(nothing[..., None], torch.nan)
            mass[rows, region] = weights.masked_fill(~hidden, 0).sum(-1, dtype=torch.float64).cpu()
    return KnockoutResult(delta_loss, delta_target_sq, mass, tuple(regions))


def checked_masks(regions: Mapping[str, Tensor], num_images: int, layout: HeadLayout) -> list[Tensor]:
    """The masks over all keys, `[image key]` on the CPU; special tokens lie in no region."""
    expected = [num_images, layout.num_rows, layout.num_cols]
    if not regions:
        raise ValueError("regions: expected at least one mask [image row col] of patches, got none")
    masks = []
    for name, mask in regions.items():
        if mask.dtype != torch.bool or list(mask.shape) != expected:
            raise ValueError(
                f"region {name}: expected a bool mask [image row col] = {expected} of patches, "
                f"got {mask.dtype} {list(mask.shape)}"
            )
        masks.append(nn.functional.pad(mask.cpu().flatten(1), (layout.num_special_tokens, 0)))
    return masks


def intact_attention(model: ViTRegressor, pixel_values: Tensor, layout: HeadLayout) -> tuple[Tensor, Tensor, Tensor]:
    """Of an undisturbed pass: the CLS query's attention `[image layer head key]` and the values `[image layer token
    head head_dim]`, float32 or finer, and the heads' contexts `[image layer token head head_dim]`."""
    fine = torch.promote_types(model.dtype, torch.float32)
    values: list[Tensor] = []
    contexts: list[Tensor] = []
    handles = []
    try:
        for attention, projection in zip(attention_modules(model), output_projections(model), strict=True):
            width = projection.in_features
            module: Any = attention
            source = module.v_proj if hasattr(module, "v_proj") else module.qkv  # the values are the last third of qkv
            handles.append(source.register_forward_hook(_keep_last(values, width)))
            handles.append(projection.register_forward_pre_hook(lambda _, args: contexts.append(args[0])))
        _, rows = attentions(model, pixel_values, lambda weights: weights[:, :, 0].to(fine))
    finally:
        for handle in handles:
            handle.remove()
    attention_rows = torch.stack(rows, dim=1)
    split = [torch.stack(tensors, dim=1).unflatten(-1, (layout.num_heads, -1)) for tensors in (values, contexts)]
    value, context = split[0].to(fine), split[1]
    found = torch.einsum("blhk,blkhd->blhd", attention_rows, value)
    eps = torch.finfo(context.dtype).eps
    bound = (1e3 if eps < 1e-4 else 16) * eps * float(context.abs().max())
    if not float((found - context[:, :, 0]).abs().max()) <= bound:
        raise ValueError("the heads' contexts are not attention times values: the attention cannot be renormalised")
    return attention_rows, value, context


def _keep_last(kept: list[Tensor], width: int) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        kept.append(output[..., -width:])

    return hook
