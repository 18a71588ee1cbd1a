"""Head scores by direct effect: what a head adds to the row that is read, past all later blocks.

Takes a model in eval mode whose blocks are known, and a batch; gives `[image layer head]`. The read-out row r of the
last block's output is a sum of what every block added to it, a head's part among them: W z of its context z at the first
token, LayerScale and all, without the bias. Taking it out of r alone, everything else as it was, is the head's direct
effect (Gandelsman, Efros & Steinhardt 2023, 2310.05916, section 3, for what remains of the network: final layer norm and
regression head; they put the mean in its place). It is exact: no later block is asked. Its linear expansion follows.

Sign: positive = removing the head raises the loss. Raises `ValueError` for a model in train mode, and for one whose
blocks are not known (`attribution.blocks`).
"""

import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.blocks import TakenApart, parts_of
from attribution.gates import PICTURES_PER_PASS, composed_loss_change
from attribution.vit import ViTRegressor, loss_per_image, require_eval


def direct_effect(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """ℓ(r − W z) − ℓ(r), exactly: one forward pass, and the read-out once for every head."""
    found = []
    for parts, part in _passes(model, batch, settings):
        state, added = read_out_parts(parts, part.pixel_values)
        with torch.no_grad():
            without = state[:, None, None] - added  # [image layer head channel]
            shape = without.shape[:3]
            predictions = parts.read(without.flatten(0, 2)[:, None])
            labels = part.labels[:, None, None].expand(*shape, -1).flatten(0, 2)
            intact = loss_per_image(parts.read(state[:, None]), part.labels)
            found.append(loss_per_image(predictions, labels).unflatten(0, shape) - intact[:, None, None])
    return torch.cat(found)


def direct_effect_ixg_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from Σ (W z)·∂ŷ_k/∂r: the same to first order in each output."""
    found = []
    for parts, part in _passes(model, batch, settings):
        state, added = read_out_parts(parts, part.pixel_values)
        with torch.enable_grad():
            state = state.detach().requires_grad_()
            outputs = parts.read(state[:, None])
            slopes = [torch.autograd.grad(value, state, retain_graph=True)[0] for value in outputs.sum(0).unbind()]
        removed = torch.einsum("bkc,blhc->bklh", torch.stack(slopes, dim=1), added)
        found.append(composed_loss_change(outputs.detach(), part.labels, removed))
    return torch.cat(found)


@torch.no_grad()
def read_out_parts(parts: TakenApart, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """The read-out row `[image channel]` of the last block's output, and what each head adds to it by its output
    projection `[image layer head channel]`."""
    states = parts.embed(pixel_values)
    layers = []
    for layer, block in enumerate(parts.blocks):
        is_last = layer == len(parts.blocks) - 1
        contexts = block.first_contexts(states) if is_last else block.contexts(states)
        rows = contexts[:, 0].unflatten(-1, (block.num_heads, -1))  # [image head head_dim]
        weights = block.output_weight.unflatten(1, (block.num_heads, -1))  # [channel head head_dim]
        layers.append(torch.einsum("bhd,chd->bhc", rows, weights))
        states = block.fed_forward(block.attended(states[:, : contexts.shape[1]], contexts))
    return states[:, 0], torch.stack(layers, dim=1)


def _passes(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> "list[tuple[TakenApart, Batch]]":
    require_eval(model)
    parts = parts_of(model, batch.pixel_values[:1])
    if parts is None:
        raise ValueError(f"direct effect: the blocks of {type(model.backbone).__name__} are not known")
    return [(parts, part) for part in batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS))]
