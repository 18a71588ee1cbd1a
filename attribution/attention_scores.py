"""Head scores from attention weights alone, and from the size of what each head writes into the residual stream.

Takes a model in eval mode with eager attention, a batch and settings; gives `[image layer head]`, unsigned. Does not
know labels, losses or gradients. The CLS mass stands in `attribution.heads`, the rollout drop in `attribution.rollout`.

None of them looks at what the model makes of a head: that a head which attends narrowly, far, or writes much matters
more is a guess, whose direction the table of methods fixes beforehand.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.contexts import contexts
from attribution.heads import PICTURES_PER_PASS, by_attention, map_arrays, over_patches
from attribution.residual_weights import weights_to_residual
from attribution.vit import HeadLayout, ViTRegressor, require_eval


def cls_entropy(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Entropy over patches of the CLS query's attention, in nats (as Clark et al. 2019, 1906.04341, section 3.3).

    The weights on patches are divided by their sum first, so it lies in [0, log of the number of patches].
    """
    return by_attention(cls_entropy_of, model, batch, settings)


def cls_entropy_of(layers: list[Tensor], layout: HeadLayout) -> Tensor:
    """`cls_entropy` from the attention weights `[image head query key]` of every layer."""
    rows = _cls_rows(layers, layout)
    return torch.special.entr(over_patches(rows)).sum(-1)


def max_weight(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Largest weight of the CLS query on a patch, in [0, 1] (Voita et al. 2019, 1905.09418: a head's confidence)."""
    return by_attention(max_weight_of, model, batch, settings)


def max_weight_of(layers: list[Tensor], layout: HeadLayout) -> Tensor:
    """`max_weight` from the attention weights `[image head query key]` of every layer."""
    return _cls_rows(layers, layout).amax(-1)


def attention_distance(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Mean distance between query and key patch, in patch widths (Dosovitskiy et al. 2021, 2010.11929, figure 7).

    Weighted by attention and averaged over patch queries, as in `attribution.heads.map_arrays`.
    """
    return by_attention(attention_distance_of, model, batch, settings)


def attention_distance_of(layers: list[Tensor], layout: HeadLayout) -> Tensor:
    """`attention_distance` from the attention weights `[image head query key]` of every layer."""
    return map_arrays(layers, layout, ())["attention_distance"]


@torch.no_grad()
def value_norm(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Mean over query tokens of ‖γ ⊙ (W_o^h z_h)‖₂, what the head adds to the residual stream, without the bias.

    The norm of the value-weighted sum (Kobayashi et al. 2020, 2004.10102), z_h = Σ A·v and γ the LayerScale where the
    model has one. All query tokens count, special ones too, also where the readout never sees them. Raises `ValueError`
    for a model whose blocks are not known, since something else might stand between projection and residual stream.
    """
    require_eval(model)
    weights = weights_to_residual(model)
    parts = batch.pixel_values.split(min(settings.internal_batch_size, PICTURES_PER_PASS))
    return torch.cat([_norms(contexts(model, part, batch_size=len(part)), weights) for part in parts])


def _cls_rows(layers: list[Tensor], layout: HeadLayout) -> Tensor:
    """The CLS query's weights on patches, `[image layer head patch]`."""
    return torch.stack([weights[:, :, 0, layout.num_special_tokens :] for weights in layers], dim=1)


def _norms(found: Tensor, weights: list[Tensor]) -> Tensor:
    """Contexts `[image layer token head head_dim]`, weights `[channel head*head_dim]` -> `[image layer head]`."""
    head_dim = found.shape[-1]
    scores = found.new_empty(found.shape[0], found.shape[1], found.shape[3])
    for layer, weight in enumerate(weights):
        for head, own in enumerate(weight.split(head_dim, dim=1)):
            scores[:, layer, head] = F.linear(found[:, layer, :, head], own).norm(dim=-1).mean(-1)
    return scores
