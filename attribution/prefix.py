"""Forward passes that start at a block: what lies before it is reused instead of computed again.

Takes a model and pictures; gives the hidden states that enter every block, and a context in which the model begins at
one of them. Removing a head of block l leaves blocks 0 to l − 1 as they were, so a sweep over all heads of L equal
blocks costs (L + 1) / 2L of as many full passes. Works for any model whose blocks stand in one `nn.ModuleList`, take
the hidden states first and give them back as one tensor, residuals added; `prefix_states` gives None for others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attribution.vit import attention_modules


class _PassThrough(nn.Module):
    """Stands in for a block whose output is not needed."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


def block_list(model: nn.Module) -> nn.ModuleList | None:
    """The list of blocks, each holding one attention module, in forward order; None if the model has no such list."""
    attentions = attention_modules(model)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == len(attentions):
            inside = [[inner for inner in block.modules() if inner in attentions] for block in module]
            if inside == [[attention] for attention in attentions]:
                return module
    return None


class _Reached(Exception):
    """Ends a forward pass at the first block, whose input it carries."""

    def __init__(self, hidden_states: Any) -> None:
        super().__init__()
        self.hidden_states = hidden_states


@torch.no_grad()
def embedded(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """What enters the first block, `[image token channel]`; no block runs."""
    blocks = block_list(model)
    if blocks is None:
        raise ValueError(f"{type(model).__name__}: expected a model with a list of blocks")

    def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Reached(args[0])

    handle = blocks[0].register_forward_pre_hook(stop)
    try:
        model(pixel_values)
    except _Reached as reached:
        return reached.hidden_states
    finally:
        handle.remove()
    raise ValueError(f"{type(model).__name__}: its first block took no part in the forward pass")


def prefix_states(model: nn.Module, pixel_values: Tensor, batch_size: int = 32) -> list[Tensor] | None:
    """The hidden states `[image token channel]` that enter each block; None where the model cannot start at a block."""
    blocks = block_list(model)
    if blocks is None:
        return None
    parts = [_states_of(model, blocks, part) for part in pixel_values.split(batch_size)]
    if any(len(part) != len(blocks) for part in parts):
        return None
    if not _holds(model, pixel_values[:1], [states[:1] for states in parts[0]]):
        return None
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def _states_of(model: nn.Module, blocks: nn.ModuleList, pixel_values: Tensor) -> list[Tensor]:
    """One hidden state per block, fewer where a block does not take or give plain hidden states."""
    states: list[Tensor] = []
    plain: list[bool] = []

    def entering(_: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            states.append(args[0].detach())

    def leaving(_: nn.Module, __: Any, output: Any) -> None:
        plain.append(isinstance(output, Tensor))

    handles = [block.register_forward_pre_hook(entering) for block in blocks]
    handles += [block.register_forward_hook(leaving) for block in blocks]
    try:
        with torch.no_grad():
            model(pixel_values)
    finally:
        for handle in handles:
            handle.remove()
    return states if all(plain) else []


@torch.no_grad()
def _holds(model: nn.Module, picture: Tensor, states: list[Tensor]) -> bool:
    """Whether a pass that starts at the last block gives what a whole one gives.

    It does not where a residual is added outside the blocks: one that passes its input through then doubles it.
    """
    expected = model(picture)
    with starting_at(model, len(states) - 1, states[-1]):
        found = model(picture)
    bound = max(1e-5, 64 * torch.finfo(expected.dtype).eps) * (1 + float(expected.abs().max()))
    return float((found - expected).abs().max()) <= bound


@contextmanager
def starting_at(model: nn.Module, layer: int, hidden_states: Tensor) -> Iterator[None]:
    """Within this context a forward pass runs blocks `layer` and later alone, entered by `hidden_states`.

    The model is left as it was, also when the body raises. The pixel values given to the model count only by their
    shape. Gates are set outside this context, since inside it the attention modules of earlier blocks cannot be found.
    """
    blocks = block_list(model)
    if blocks is None or not 0 <= layer < len(blocks):
        raise ValueError(f"start at block {layer}: expected a model with a list of blocks, and one of its numbers")
    kept = list(blocks)
    handle = blocks[layer].register_forward_pre_hook(lambda _, args: (hidden_states, *args[1:]))
    try:
        for number in range(layer):
            blocks[number] = _PassThrough()
        yield
    finally:
        handle.remove()
        for number in range(layer):
            blocks[number] = kept[number]
