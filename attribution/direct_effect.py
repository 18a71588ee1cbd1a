"""Head scores by direct effect: what a head adds to the row that is read, past all later blocks.

Takes a model in eval mode whose blocks are known, and a batch; gives `[image layer head]`. The read-out row r of the
last block's output is a sum of what every block added to it, a head's part among them: W z of its context z at the
first token, LayerScale and all, without the bias. Taking it out of r alone, everything else as it was, is the head's
direct effect (Gandelsman, Efros & Steinhardt 2023, 2310.05916, section 3, for what remains of the network: final layer
norm and regression head; they put the mean in its place). It is exact: no later block is asked. Its linear expansion
follows.

Sign: positive = removing the head raises the loss. Raises `ValueError` for a model in train mode, and for one whose
blocks are not known (`attribution.residual_weights`), or whose predictions follow from more than that row.
"""

import torch
from torch import Tensor, nn

from attribution.batch import Batch, MethodSettings
from attribution.contributions import PICTURES_PER_PASS
from attribution.gates import composed_loss_change
from attribution.layer_gradients import contexts_of
from attribution.prefix import block_list
from attribution.residual_weights import weights_to_residual
from attribution.vit import ViTRegressor, attention_modules, loss_per_image, num_heads_of, require_eval, unwrapped


def direct_effect(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """ℓ(r − W z) − ℓ(r), exactly: one forward pass, and the read-out once for every head."""
    require_eval(model)
    found = []
    for part in batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS)):
        state, added = read_out_parts(model, part.pixel_values)
        with torch.no_grad():
            without = state[:, None, None] - added  # [image layer head channel]
            shape = without.shape[:3]
            predictions = _read(model, without.flatten(0, 2))
            labels = part.labels[:, None, None].expand(*shape, -1).flatten(0, 2)
            intact = loss_per_image(_read(model, state), part.labels)
            found.append(loss_per_image(predictions, labels).unflatten(0, shape) - intact[:, None, None])
    return torch.cat(found)


def direct_effect_ixg_out(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Composed loss change from Σ (W z)·∂ŷ_k/∂r: the same to first order in each output."""
    require_eval(model)
    found = []
    for part in batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS)):
        state, added = read_out_parts(model, part.pixel_values)
        with torch.enable_grad():
            state = state.detach().requires_grad_()
            outputs = _read(model, state)
            slopes = [torch.autograd.grad(value, state, retain_graph=True)[0] for value in outputs.sum(0).unbind()]
        removed = torch.einsum("bkc,blhc->bklh", torch.stack(slopes, dim=1), added)
        found.append(composed_loss_change(outputs.detach(), part.labels, removed))
    return torch.cat(found)


@torch.no_grad()
def read_out_parts(model: ViTRegressor, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """The read-out row `[image channel]` of the last block's output, and what each head adds to it by its output
    projection `[image layer head channel]`. Raises `ValueError` for a model whose blocks are not known."""
    weights = weights_to_residual(model)
    blocks, last = block_list(model), []
    assert blocks is not None  # else their weights were not known
    handle = blocks[-1].register_forward_hook(lambda _, __, output: last.append(output[:, 0]))
    try:
        predictions, contexts = contexts_of(model, pixel_values)
    finally:
        handle.remove()
    if not torch.allclose(_read(model, last[0]), predictions, rtol=1e-4, atol=1e-4):
        raise ValueError(f"{_name(model)}: expected predictions that follow from the last block's first token alone")
    num_heads = num_heads_of(attention_modules(model)[0])
    rows = contexts[:, :, 0].unflatten(-1, (num_heads, -1))  # [image layer head head_dim]
    per_head = torch.stack([weight.unflatten(1, (num_heads, -1)) for weight in weights])
    return last[0], torch.einsum("blhd,lchd->blhc", rows, per_head)


def _read(model: ViTRegressor, state: Tensor) -> Tensor:
    """Predictions `[image target]` from the read-out row `[image channel]`."""
    norm = getattr(unwrapped(model.backbone), "layernorm", None)
    if not isinstance(norm, nn.Module):
        raise ValueError(f"{_name(model)}: expected a last norm called layernorm")
    return model.head(norm(state).to(model.dtype))


def _name(model: ViTRegressor) -> str:
    return type(unwrapped(model.backbone)).__name__
