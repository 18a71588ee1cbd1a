"""What hiding a region from a head's CLS query would do, predicted from gradients: without a pass for each head.

Takes a model in eval mode with eager attention, a batch, and masks of regions on the patch grid; gives predicted
changes of the loss for `attribution.knockout`, to be judged by it. Two predictions, both linear in what follows the
head:

`renormalised`: the attention without the region is formed exactly, softmax and all, and with it the head's context at
the CLS token; only what becomes of that context is taken from the gradient. This is the QK fix of AtP* (Kramár et al.
2024, 2403.00745, section 3.1): where a softmax is saturated, a gradient through it says nothing about taking a key
away. `gradient`: attention times its gradient, summed over the region (attribution patching of the weights themselves),
as if what is taken from the region went nowhere.

Sign: positive = the head helps by looking at the region.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.gates import composed_loss_change
from attribution.gradient_readings import read_gradients
from attribution.heads import layout_with_cls
from attribution.knockout import checked_masks, intact_attention
from attribution.vit import ViTRegressor, require_eval


@dataclass(frozen=True, eq=False)
class PredictedKnockout:
    """Predicted changes of the loss, float64 on the CPU `[image region layer head]`, NaN as in `KnockoutResult`."""

    renormalised: Tensor
    gradient: Tensor
    regions: tuple[str, ...]


def predicted_knockout(
    model: ViTRegressor, batch: Batch, regions: Mapping[str, Tensor], *, batch_size: int = 32
) -> PredictedKnockout:
    """Predict `attention_knockout` of every region and head: one pass with attention weights, one with gradients.

    Raises `ValueError` as `attribution.knockout.attention_knockout`.
    """
    require_eval(model)
    layout = layout_with_cls(model)
    masks = checked_masks(regions, len(batch), layout)
    found: dict[str, list[Tensor]] = {"renormalised": [], "gradient": []}
    start = 0
    for readings in read_gradients(model, batch, MethodSettings(internal_batch_size=batch_size)):
        rows = slice(start, start + len(readings.labels))
        start = rows.stop
        with torch.no_grad():
            attention, values, _ = intact_attention(model, batch.pixel_values[rows], layout)
            # Of the first token: [image target layer head head_dim].
            slopes = torch.stack([gradient[:, :, 0] for gradient in readings.gradients], dim=2).transpose(0, 1)
            slopes = slopes.unflatten(-1, (layout.num_heads, -1)).to(values)
            own = torch.einsum("blhk,blkhd->blhd", attention, values)
            parts: dict[str, list[Tensor]] = {name: [] for name in found}
            for mask in masks:
                inside = mask[rows].to(attention.device)[:, None, None]  # [image layer head key]
                left = attention.masked_fill(inside, 0)
                total = left.sum(-1, keepdim=True)
                kept = torch.einsum("blhk,blkhd->blhd", left, values)
                moves = {"renormalised": own - torch.where(total > 0, kept / total, torch.nan), "gradient": own - kept}
                present = inside.any(-1)
                for name, moved in moves.items():
                    removed = torch.einsum("bklhd,blhd->bklh", slopes, moved)
                    change = composed_loss_change(readings.predictions, readings.labels, removed)
                    parts[name].append(change.masked_fill(~present, torch.nan).to("cpu", torch.float64))
            for name, changes in parts.items():
                found[name].append(torch.stack(changes, dim=1))
    return PredictedKnockout(*(torch.cat(changes) for changes in found.values()), tuple(regions))
