"""Predictions with heads removed, scenario by scenario: three exact routes to the same numbers.

Takes a model in eval mode, pictures, scenarios (each a set of heads removed together) and what replaces a removed
head's context; gives predictions `[scenario image target]`. Knows no loss, no labels and no attribution method.

Routes. `full`: a whole forward pass per scenario. `prefix`: a pass that starts at the first block that lacks a head,
for every model with a list of blocks. `shared`: blocks taken apart (`attribution.blocks`): within the first block that
lacks a head all scenarios share its attention and differ by the removed heads' term of the output projection alone,
and the last block computes the row that is read. All remove a head at the input of the output projection.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from attribution.blocks import Block, TakenApart, parts_of
from attribution.prefix import prefix_states, starting_at
from attribution.vit import ViTRegressor, attention_modules, gated, num_heads_of

ROUTES = ("auto", "shared", "prefix", "full")
Scenario = Sequence[tuple[int, int]]  # heads removed together, as (layer, head); none = the intact model
Passed = Callable[[int], None]  # told how many pictures have passed


@torch.no_grad()
def predictions_without(
    model: ViTRegressor,
    pixel_values: Tensor,
    scenarios: Sequence[Scenario],
    *,
    replacement: Tensor | None = None,
    batch_size: int = 32,
    route: str = "auto",
    passed: Passed | None = None,
) -> tuple[Tensor, str]:
    """Predictions `[scenario image target]`, float64 on the CPU, and the route taken.

    `replacement` b is None for zero, or `[image layer token head head_dim]` with any axis 1 to broadcast.
    `batch_size` rows (a picture in a scenario) go through in one pass, and as many pictures are held at a time.
    `auto` takes the fastest route that the model allows. Raises `ValueError` for a route that it does not, and for a
    head that the model does not have.
    """
    if route not in ROUTES:
        raise ValueError(f"route: expected one of {', '.join(ROUTES)}, got {route!r}")
    modules = attention_modules(model)
    shape = (len(modules), num_heads_of(modules[0]))
    for layer, head in (pair for removed in scenarios for pair in removed):
        if not (0 <= layer < shape[0] and 0 <= head < shape[1]):
            raise ValueError(f"scenario: no layer {layer} head {head} in {shape[0]} layers of {shape[1]} heads")
    scenarios = [tuple(dict.fromkeys(removed)) for removed in scenarios]
    if replacement is not None:
        replacement = replacement.to(pixel_values.device, pixel_values.dtype)
    parts = parts_of(model, pixel_values[:1]) if route in ("auto", "shared") else None
    if route == "shared" and parts is None:
        raise ValueError(f"route shared: the blocks of {type(model.backbone).__name__} are not known, use route auto")
    found, taken = [], route
    for start in range(0, len(pixel_values), batch_size):
        chunk = pixel_values[start : start + batch_size]
        if replacement is not None and len(replacement) > 1:
            values: Tensor | None = replacement[start : start + batch_size]
        else:
            values = replacement
        if parts is not None:
            taken, outputs = "shared", _shared(parts, chunk, scenarios, values, batch_size, passed)
        else:
            states = None if route == "full" else prefix_states(model, chunk, batch_size)
            if states is None and route == "prefix":
                raise ValueError(f"route prefix: {type(model.backbone).__name__} has no list of blocks to start at")
            taken = "full" if states is None else "prefix"
            outputs = _gated_passes(model, chunk, scenarios, values, batch_size, states, passed)
        found.append(outputs)
    return torch.cat(found, dim=1), taken


def _gated_passes(
    model: ViTRegressor,
    pixel_values: Tensor,
    scenarios: Sequence[Scenario],
    replacement: Tensor | None,
    batch_size: int,
    states: list[Tensor] | None,
    passed: Passed | None,
) -> Tensor:
    """Routes `full` (no states) and `prefix`: the model itself runs, with gates."""
    modules = attention_modules(model)
    shape = (len(modules), num_heads_of(modules[0]))
    images = torch.arange(len(pixel_values))
    outputs: dict[int, list[Tensor]] = {number: [] for number in range(len(scenarios))}
    for layer, numbers in _by_first_layer(scenarios, range(shape[0])).items():
        rows_of = torch.cartesian_prod(torch.tensor(numbers), images)  # [row (scenario, image)]
        for part in rows_of.split(batch_size):
            which, rows = part[:, 0].tolist(), part[:, 1].to(pixel_values.device)
            gates = torch.ones((len(part), *shape), dtype=pixel_values.dtype, device=pixel_values.device)
            for place, number in enumerate(which):
                for removed in scenarios[number]:
                    gates[place, *removed] = 0
            context = replacement[rows] if replacement is not None and len(replacement) > 1 else replacement
            start = nullcontext() if states is None else starting_at(model, layer, states[layer][rows])
            with gated(model, gates, context), start:
                predictions = model(pixel_values[rows]).to("cpu", torch.float64)
            for number, prediction in zip(which, predictions, strict=True):
                outputs[number].append(prediction)
            if passed is not None:
                passed(len(part))
    return torch.stack([torch.stack(outputs[number]) for number in range(len(scenarios))])


def _shared(
    parts: TakenApart,
    pixel_values: Tensor,
    scenarios: Sequence[Scenario],
    replacement: Tensor | None,
    batch_size: int,
    passed: Passed | None,
) -> Tensor:
    outputs: dict[int, Tensor] = {}
    num_images, last = len(pixel_values), len(parts.blocks) - 1
    of_layer = _by_first_layer(scenarios, range(len(parts.blocks)))
    states = parts.embed(pixel_values)
    for layer, block in enumerate(parts.blocks):
        contexts = block.first_contexts(states) if layer == last else block.contexts(states)
        intact = block.attended(states[:, : contexts.shape[1]], contexts)
        numbers = [number for number in of_layer.get(layer, []) if scenarios[number]]
        # The last block has one row per picture: all its scenarios fit into one pass.
        at_once = max(1, batch_size // num_images if layer < last else len(numbers))
        for start in range(0, len(numbers), at_once):
            group = numbers[start : start + at_once]
            lacking = [scenarios[number] for number in group]
            attended = torch.stack([_lacking(block, intact, contexts, layer, heads, replacement) for heads in lacking])
            found = block.fed_forward(attended.flatten(0, 1))
            for later in range(layer + 1, last + 1):
                found = _gated_block(parts.blocks[later], found, later, later == last, lacking, replacement)
            predictions = parts.read(found[:, :1]).to("cpu", torch.float64).unflatten(0, (len(group), -1))
            outputs |= dict(zip(group, predictions, strict=True))
            if passed is not None:
                passed(len(group) * num_images)
        states = block.fed_forward(intact)
    predictions = parts.read(states[:, :1]).to("cpu", torch.float64)
    whole = [number for number, heads in enumerate(scenarios) if not heads]
    if whole and passed is not None:
        passed(len(whole) * num_images)
    outputs |= dict.fromkeys(whole, predictions)
    return torch.stack([outputs[number] for number in range(len(scenarios))])


def _lacking(
    block: Block, intact: Tensor, contexts: Tensor, layer: int, removed: Scenario, replacement: Tensor | None
) -> Tensor:
    """The residual stream after the attention of a block that lacks heads, from that of the intact one."""
    split = contexts.unflatten(-1, (block.num_heads, -1))
    attended = intact
    for head in (head for place, head in removed if place == layer):
        share = split[:, :, head]
        if replacement is not None:
            share = share - _replaced(replacement, layer, head, share.shape[1])
        attended = attended - block.share_of_head(head, share)
    return attended


def _gated_block(
    block: Block, states: Tensor, layer: int, last: bool, lacking: Sequence[Scenario], replacement: Tensor | None
) -> Tensor:
    """A block's output, each scenario's rows without the heads it lacks in this block."""
    contexts = block.first_contexts(states) if last else block.contexts(states)
    if any(place == layer for removed in lacking for place, _ in removed):
        # [scenario image token head head_dim]
        split = contexts.clone().unflatten(0, (len(lacking), -1)).unflatten(-1, (block.num_heads, -1))
        for scenario, removed in enumerate(lacking):
            for head in (head for place, head in removed if place == layer):
                value = 0.0 if replacement is None else _replaced(replacement, layer, head, split.shape[2])
                split[scenario, :, :, head] = value
        contexts = split.flatten(-2).flatten(0, 1)
    return block.fed_forward(block.attended(states[:, : contexts.shape[1]], contexts))


def _replaced(replacement: Tensor, layer: int, head: int, num_tokens: int) -> Tensor:
    """b of one head, `[image token head_dim]` with axes of 1 kept, for the first `num_tokens` tokens."""
    of_layer = replacement[:, layer if replacement.shape[1] > 1 else 0, :num_tokens]
    return of_layer[:, :, head if of_layer.shape[2] > 1 else 0]


def _by_first_layer(scenarios: Sequence[Scenario], layers: Iterable[int]) -> dict[int, list[int]]:
    """Layer -> numbers of the scenarios whose first head lies in it; the intact one starts at the first."""
    first = [min((layer for layer, _ in removed), default=0) for removed in scenarios]
    return {layer: [n for n, place in enumerate(first) if place == layer] for layer in layers if layer in first}
