"""Where a head's effect goes: by which tokens it acts, by which route it reaches the answer, by which part it is made.

Takes a model in eval mode whose blocks are known (`attribution.blocks`) and a batch; gives changes of the loss `[image
layer head]`, float64 on the CPU, positive = the loss rises; exact, by intervention. Knows no attribution method.

**By token**: the head's context is set to zero at some tokens alone. **By route**: the head is set to zero, and of what
follows only some responds, the rest stays as it was in the intact picture: nothing (what is left is the residual
stream's way to the row that is read: the *direct* effect), the MLPs, the attention of later blocks. What MLPs carry is
what their response adds to the direct effect, likewise of heads; the rest of the whole effect is interaction (path
patching of groups of components: Wang et al. 2023, 2211.00593; Goldowsky-Dill et al. 2023, 2304.05969). **By part**: a
head's context is its attention pattern times its values; one of the two is taken from the counterfactual.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.ablation import counterfactual_ablation, zero_ablation
from attribution.batch import Batch
from attribution.blocks import Block, TakenApart, parts_of
from attribution.vit import ViTRegressor, loss_per_image, require_eval

READ_OUT, ANSWER, OTHER = "read_out", "answer", "other"
DIRECT, MLPS, HEADS = "direct", "mlps", "heads"
PATTERN, VALUES = "pattern", "values"


@dataclass(frozen=True, eq=False)
class _Intact:
    """What the intact picture leaves in every block: the states that enter it, the residual stream after attention (the
    first row alone in the last block), contexts likewise, and what the MLP adds."""

    entering: list[Tensor]
    attended: list[Tensor]
    contexts: list[Tensor]
    fed: list[Tensor]


def by_token(
    model: ViTRegressor, batch: Batch, tokens: Mapping[str, Tensor], *, batch_size: int = 32
) -> dict[str, Tensor]:
    """Effects of setting each head to zero at some tokens alone; `tokens` name -> bool `[image token]`.

    Raises `ValueError` for masks of another shape, and as `parts_of_model`.
    """
    parts = parts_of_model(model, batch)
    found = {}
    for name, chosen in tokens.items():
        if chosen.dtype != torch.bool or len(chosen) != len(batch):
            raise ValueError(
                f"tokens {name}: expected bool [{len(batch)} token], got {chosen.dtype} {list(chosen.shape)}"
            )
        effects = []
        for rows, part in _chunks(batch, batch_size):
            own = whole_contexts(parts, part.pixel_values)
            if chosen.shape[1] != own.shape[2]:
                raise ValueError(f"tokens {name}: expected {own.shape[2]} tokens, got {chosen.shape[1]}")
            kept = own.masked_fill(chosen[rows].to(own.device)[:, None, :, None, None], 0.0)
            effects.append(zero_ablation(model, part, replacement=kept, batch_size=batch_size).delta_loss)
        found[name] = torch.cat(effects)
    return found


@torch.no_grad()
def by_route(model: ViTRegressor, batch: Batch, *, batch_size: int = 32) -> dict[str, Tensor]:
    """Effects of setting each head to zero where of what follows nothing responds (`direct`), the MLPs alone (`mlps`),
    or the attention of later blocks alone (`heads`). Raises as `parts_of_model`.

    No token hears of another where attention does not respond: then one row per head is all there is to compute.
    """
    parts = parts_of_model(model, batch)
    ways: dict[str, Callable[[TakenApart, _Intact, int, Tensor, int], Tensor]] = {
        DIRECT: _nothing_responds,
        MLPS: _mlps_respond,
        HEADS: _heads_respond,
    }
    found: dict[str, list[Tensor]] = {name: [] for name in ways}
    for _, part in _chunks(batch, batch_size):
        intact = _intact(parts, part.pixel_values)
        losses = loss_per_image(parts.read(_row(intact, len(parts.blocks) - 1)), part.labels)
        for name, way in ways.items():
            layers = []
            for layer, block in enumerate(parts.blocks):
                shares = _shares(block, intact.contexts[layer])  # [head image token channel]
                predictions = way(parts, intact, layer, shares, batch_size)
                labels = part.labels.repeat(len(shares), 1)
                changed = loss_per_image(predictions, labels).unflatten(0, (len(shares), -1)).T
                layers.append(changed.to("cpu", torch.float64) - losses.to("cpu", torch.float64)[:, None])
            found[name].append(torch.stack(layers, dim=1))
    return {name: torch.cat(parts) for name, parts in found.items()}


@torch.no_grad()
def by_part(model: ViTRegressor, batch: Batch, *, batch_size: int = 32) -> dict[str, Tensor]:
    """Effects of taking from the counterfactual a head's attention pattern alone (`pattern`: where it looks), or its
    values alone (`values`), each as the counterfactual picture has it. Raises as `parts_of_model`, and for a batch
    without counterfactuals."""
    batch.required("counterfactual_pixel_values")
    parts = parts_of_model(model, batch)
    found: dict[str, list[Tensor]] = {PATTERN: [], VALUES: []}
    for _, part in _chunks(batch, batch_size):
        own, other = _entering(parts, part.pixel_values), _entering(parts, part.required("counterfactual_pixel_values"))
        for name, (looks, brings) in {PATTERN: (other, own), VALUES: (own, other)}.items():
            mixed = [
                mixed_contexts(block, looks[layer], brings[layer]).unflatten(-1, (block.num_heads, -1))
                for layer, block in enumerate(parts.blocks)
            ]
            replacement = torch.stack(mixed, dim=1)
            found[name].append(zero_ablation(model, part, replacement=replacement, batch_size=batch_size).delta_loss)
    return {name: torch.cat(effects) for name, effects in found.items()}


def whole_effects(model: ViTRegressor, batch: Batch, *, batch_size: int = 32) -> dict[str, Tensor]:
    """Effects of zero ablation (`zero`), and of counterfactual ablation (`counterfactual`) where the batch has what it
    needs: what the others are parts of."""
    found = {"zero": zero_ablation(model, batch, batch_size=batch_size).delta_loss}
    if batch.counterfactual_pixel_values is not None:
        found["counterfactual"] = counterfactual_ablation(model, batch, batch_size=batch_size).delta_loss
    return found


def parts_of_model(model: ViTRegressor, batch: Batch) -> TakenApart:
    """The model in parts; `ValueError` for a model in train mode, and for one whose blocks are not known."""
    require_eval(model)
    parts = parts_of(model, batch.pixel_values[:1])
    if parts is None:
        raise ValueError(f"paths: the blocks of {type(model.backbone).__name__} are not known")
    return parts


def mixed_contexts(block: Block, looks: Tensor, brings: Tensor) -> Tensor:
    """Contexts `[image token head*head_dim]` with the attention pattern of one state and the values of another."""
    query, key, _ = _projected(block, looks)
    value = _projected(block, brings)[2]
    pattern = torch.softmax((query * block.scaling) @ key.transpose(-2, -1), dim=-1)
    return (pattern @ value).transpose(1, 2).flatten(2)


@torch.no_grad()
def whole_contexts(parts: TakenApart, pixel_values: Tensor) -> Tensor:
    """Contexts of all tokens `[image layer token head head_dim]`, in the last block too."""
    states = _entering(parts, pixel_values)
    layers = [block.contexts(state) for block, state in zip(parts.blocks, states, strict=True)]
    return torch.stack(layers, dim=1).unflatten(-1, (parts.blocks[0].num_heads, -1))


def _chunks(batch: Batch, size: int) -> "list[tuple[slice, Batch]]":
    return [
        (slice(start, start + size), batch.select(slice(start, start + size))) for start in range(0, len(batch), size)
    ]


def _entering(parts: TakenApart, pixel_values: Tensor) -> list[Tensor]:
    states = [parts.embed(pixel_values)]
    for block in parts.blocks[:-1]:
        states.append(block(states[-1]))
    return states


def _intact(parts: TakenApart, pixel_values: Tensor) -> _Intact:
    intact = _Intact([], [], [], [])
    state = parts.embed(pixel_values)
    for layer, block in enumerate(parts.blocks):
        is_last = layer == len(parts.blocks) - 1
        contexts = block.first_contexts(state) if is_last else block.contexts(state)
        attended = block.attended(state[:, : contexts.shape[1]], contexts)
        left = block.fed_forward(attended.clone())  # which it overwrites
        intact.entering.append(state)
        intact.attended.append(attended)
        intact.contexts.append(contexts)
        intact.fed.append(left - attended)
        state = left
    return intact


def _projected(block: Block, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value `[image head token head_dim]`."""
    normed = block.norm1(states)
    projected = torch.nn.functional.linear(normed, block.qkv_weight, block.qkv_bias)
    query, key, value = projected.unflatten(-1, (3, block.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return query, key, value


def _shares(block: Block, contexts: Tensor) -> Tensor:
    """What each head adds to the residual stream `[head image token channel]`."""
    split = contexts.unflatten(-1, (block.num_heads, -1))
    return torch.stack([block.share_of_head(head, split[:, :, head]) for head in range(block.num_heads)])


def _row(intact: _Intact, layer: int) -> Tensor:
    """The first token's state after a block `[image 1 channel]`."""
    return intact.attended[layer][:, :1] + intact.fed[layer][:, :1]


def _nothing_responds(parts: TakenApart, intact: _Intact, layer: int, shares: Tensor, _: int) -> Tensor:
    last = len(parts.blocks) - 1
    return parts.read((_row(intact, last) - shares[:, :, :1]).flatten(0, 1))


def _mlps_respond(parts: TakenApart, intact: _Intact, layer: int, shares: Tensor, _: int) -> Tensor:
    state = (intact.attended[layer][:, :1] - shares[:, :, :1]).flatten(0, 1)
    state = parts.blocks[layer].fed_forward(state)
    for later in range(layer + 1, len(parts.blocks)):
        added = intact.attended[later][:, :1] - intact.entering[later][:, :1]
        state = parts.blocks[later].fed_forward(state + added.repeat(len(shares), 1, 1))
    return parts.read(state)


def _heads_respond(parts: TakenApart, intact: _Intact, layer: int, shares: Tensor, batch_size: int) -> Tensor:
    last, num_images = len(parts.blocks) - 1, shares.shape[1]
    found = []
    for group in shares.split(max(1, batch_size // num_images)):
        state = (intact.attended[layer] + intact.fed[layer] - group).flatten(0, 1)
        for later in range(layer + 1, last + 1):
            block = parts.blocks[later]
            contexts = block.first_contexts(state) if later == last else block.contexts(state)
            state = block.attended(state[:, : contexts.shape[1]], contexts)
            state = state + intact.fed[later].repeat(len(group), 1, 1)
        found.append(parts.read(state[:, :1]))
    return torch.cat(found)
