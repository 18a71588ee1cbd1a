"""From which head to which: what a head's output does by way of another head's queries, keys or values alone.

Takes a model in eval mode whose blocks are known (`attribution.blocks`) and a batch; gives changes of the loss, float64
on the CPU, positive = the loss rises. An edge goes from a sender to a head of a later block, the receiver, along the
residual stream: the receiver's queries (or keys, or values) are formed as if the sender's context were zero, every
other head and every MLP between the two is as in the intact picture, and all that follows the receiver responds (path
patching: Wang et al. 2023, 2211.00593, section 3.1; Goldowsky-Dill et al. 2023, 2304.05969). `exact_edges` does this
for some senders; `estimated_edges` gives the linear part for all pairs from one forward and one backward pass per
output (edge attribution patching: Syed, Rager & Conmy 2023, 2310.10348, eq. 2), composed into a change of the loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attribution.batch import Batch
from attribution.blocks import Block, TakenApart
from attribution.gates import composed_loss_change
from attribution.paths import parts_of_model
from attribution.vit import ViTRegressor, loss_per_image

INPUTS = ("queries", "keys", "values")


@dataclass(frozen=True, eq=False)
class _Intact:
    """Per block of the intact picture: the states that enter it; queries, keys, values `[image head token head_dim]`;
    contexts `[image token head*head_dim]` (in the last block of the first token alone), and the residual stream after
    attention, of as many tokens as contexts."""

    entering: list[Tensor]
    projected: list[tuple[Tensor, Tensor, Tensor]]
    contexts: list[Tensor]
    attended: list[Tensor]
    outputs: Tensor


@torch.no_grad()
def exact_edges(
    model: ViTRegressor, batch: Batch, senders: Sequence[tuple[int, int]], *, batch_size: int = 32
) -> Tensor:
    """Effects of every edge from some heads `[image sender layer head input]`, inputs in the order of `INPUTS`; NaN
    where the receiver is not in a later block.

    `batch_size` rows (a picture with one edge changed) go through in one pass. Raises `ValueError` for a model in train
    mode, one whose blocks are not known, and a head that it does not have.
    """
    parts = parts_of_model(model, batch)
    num_layers, num_heads = len(parts.blocks), parts.blocks[0].num_heads
    for layer, head in senders:
        if not (0 <= layer < num_layers and 0 <= head < num_heads):
            raise ValueError(f"senders: no layer {layer} head {head} in {num_layers} layers of {num_heads} heads")
    shape = (len(batch), len(senders), num_layers, num_heads, len(INPUTS))
    found = torch.full(shape, torch.nan, dtype=torch.float64)
    pictures_at_once = max(1, batch_size // num_heads)
    for start in range(0, len(batch), pictures_at_once):
        rows = slice(start, start + pictures_at_once)
        part = batch.select(rows)
        intact = _intact(parts, part.pixel_values)
        losses = loss_per_image(intact.outputs, part.labels).to("cpu", torch.float64)
        shares = {pair: _share(parts, intact, pair) for pair in senders}
        for layer in range(1, num_layers):
            for number, pair in enumerate(senders):
                if pair[0] >= layer:
                    continue
                for place, contexts in enumerate(_changed_contexts(parts, intact, layer, shares[pair])):
                    predictions = _onwards(parts, intact, layer, contexts, batch_size)  # [head image target]
                    changed = loss_per_image(predictions.flatten(0, 1), part.labels.repeat(num_heads, 1))
                    changed = changed.unflatten(0, (num_heads, -1)).T.to("cpu", torch.float64)
                    found[rows, number, layer, :, place] = changed - losses[:, None]
    return found


def estimated_edges(model: ViTRegressor, batch: Batch, *, batch_size: int = 4) -> Tensor:
    """The linear part of every edge, composed into a change of the loss `[image layer head layer head input]`: sender,
    receiver, input; NaN where the receiver is not in a later block. Raises as `exact_edges`."""
    parts = parts_of_model(model, batch)
    found = []
    for start in range(0, len(batch), batch_size):
        part = batch.select(slice(start, start + batch_size))
        with torch.enable_grad():
            intact = _intact(parts, part.pixel_values, in_graph=True)
            points = [tensor for projected in intact.projected for tensor in projected]
            rows = [torch.autograd.grad(value.sum(), points, retain_graph=True) for value in intact.outputs.unbind(1)]
        gradients = [
            torch.stack(of_point) for of_point in zip(*rows, strict=True)
        ]  # [target image head token head_dim]
        found.append(_composed(parts, intact, gradients, part))
    return torch.cat(found)


@torch.no_grad()
def _composed(parts: TakenApart, intact: _Intact, gradients: list[Tensor], batch: Batch) -> Tensor:
    num_layers, num_heads = len(parts.blocks), parts.blocks[0].num_heads
    shape = (len(batch), num_layers, num_heads, num_layers, num_heads, len(INPUTS))
    effects = torch.full(shape, torch.nan, dtype=torch.float64)
    shares = [
        torch.stack([_share(parts, intact, (layer, head)) for head in range(num_heads)], dim=1)
        for layer in range(num_layers - 1)
    ]  # [image head token channel]
    for layer in range(1, num_layers):
        senders = torch.stack(shares[:layer], dim=1)  # [image layer head token channel]
        for place in range(len(INPUTS)):
            slopes = _at_states(parts.blocks[layer], intact.entering[layer], place, gradients[3 * layer + place])
            tokens = slopes.shape[-2]
            removed = torch.einsum("ilhtc,kigtc->iklhg", senders[..., :tokens, :], slopes)
            changed = composed_loss_change(intact.outputs.detach(), batch.labels, removed)
            effects[:, :layer, :, layer, :, place] = changed.to("cpu", torch.float64)
    return effects


def _at_states(block: Block, states: Tensor, place: int, gradients: Tensor) -> Tensor:
    """∂ŷ/∂(states that enter) by way of one head's queries, keys or values alone, `[target image head token channel]`,
    from the gradients at these `[target image head token head_dim]`: through the projection and the layer norm."""
    weight = block.qkv_weight.view(3, block.num_heads, -1, states.shape[-1])[place]  # [head head_dim channel]
    at_normed = torch.einsum("kihtd,hdc->kihtc", gradients, weight)
    norm = block.norm1
    tokens = gradients.shape[-2]
    centred = states[:, :tokens] - states[:, :tokens].mean(-1, keepdim=True)
    deviation = (states[:, :tokens].var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    unit = (centred / deviation)[None, :, None]
    scaled = at_normed if norm.weight is None else at_normed * norm.weight
    inner = scaled - scaled.mean(-1, keepdim=True) - unit * (scaled * unit).mean(-1, keepdim=True)
    return inner / deviation[None, :, None]


def _intact(parts: TakenApart, pixel_values: Tensor, *, in_graph: bool = False) -> _Intact:
    """The intact pass; in a graph that begins at the first block's queries, keys and values."""
    found = _Intact([], [], [], [], pixel_values)
    state = parts.embed(pixel_values)
    for layer, block in enumerate(parts.blocks):
        is_last = layer == len(parts.blocks) - 1
        projected = _projected(block, state, first_alone=is_last)
        if in_graph and layer == 0:
            query, key, value = (one.detach().requires_grad_() for one in projected)
            projected = (query, key, value)
        contexts = _context(block, *projected)
        residual = state[:, : contexts.shape[1]]
        attended = residual + F.linear(contexts, block.output_weight, block.output_bias)
        found.entering.append(state.detach())
        found.projected.append(projected)
        found.contexts.append(contexts.detach())
        found.attended.append(attended.detach())
        hidden = block.mlp(block.norm2(attended))
        state = attended + F.linear(hidden, block.mlp_weight, block.mlp_bias)
    return _Intact(found.entering, found.projected, found.contexts, found.attended, parts.read(state[:, :1]))


def _projected(block: Block, states: Tensor, *, first_alone: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (of the first token alone), keys and values `[image head token head_dim]`."""
    projected = F.linear(block.norm1(states), block.qkv_weight, block.qkv_bias)
    query, key, value = projected.unflatten(-1, (3, block.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return (query[:, :, :1] if first_alone else query), key, value


def _context(block: Block, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Contexts `[image token head*head_dim]`."""
    context = F.scaled_dot_product_attention(query, key, value, scale=block.scaling)
    return context.transpose(1, 2).flatten(2)


def _share(parts: TakenApart, intact: _Intact, pair: tuple[int, int]) -> Tensor:
    """What a head adds to the residual stream `[image token channel]`."""
    layer, head = pair
    block = parts.blocks[layer]
    return block.share_of_head(head, intact.contexts[layer].unflatten(-1, (block.num_heads, -1))[:, :, head])


def _changed_contexts(parts: TakenApart, intact: _Intact, layer: int, share: Tensor) -> Iterator[Tensor]:
    """Contexts of a block with its queries, its keys, its values formed without what a sender added, one at a time."""
    block, own = parts.blocks[layer], intact.projected[layer]
    without = intact.entering[layer] - share
    changed = _projected(block, without, first_alone=layer == len(parts.blocks) - 1)
    for place in range(len(INPUTS)):
        yield _context(block, *(changed[at] if at == place else own[at] for at in range(len(INPUTS))))


def _onwards(parts: TakenApart, intact: _Intact, layer: int, contexts: Tensor, batch_size: int) -> Tensor:
    """Predictions `[head image target]` with one head's contexts changed at a time, and all that follows responding."""
    block, last = parts.blocks[layer], len(parts.blocks) - 1
    moved = (contexts - intact.contexts[layer]).unflatten(-1, (block.num_heads, -1))
    heads = [intact.attended[layer] + block.share_of_head(head, moved[:, :, head]) for head in range(block.num_heads)]
    found = []
    for group in torch.stack(heads).split(max(1, batch_size // len(contexts))):
        state = block.fed_forward(group.flatten(0, 1).clone())
        for later in range(layer + 1, last + 1):
            of_block = parts.blocks[later]
            inner = of_block.first_contexts(state) if later == last else of_block.contexts(state)
            state = of_block.fed_forward(of_block.attended(state[:, : inner.shape[1]], inner))
        found.append(parts.read(state[:, :1]).unflatten(0, (len(group), -1)))
    return torch.cat(found)
