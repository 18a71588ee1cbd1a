"""Shapley values of the loss over the gates of the heads, by sampled permutations.

Takes a model in eval mode, a batch and settings; gives `[image layer head]`. All heads off (gates 0) is the empty
coalition; along a permutation the heads come back one by one, and a head's share is how far its return lowers the
loss, averaged over permutations (Castro et al. 2009; Captum's ShapleyValueSampling computes the same numbers). Every
head is judged in the company of many sets of others, so redundant heads share what none of them loses alone.

Where the blocks can be taken apart (`attribution.blocks`) a step along a permutation reuses the step before: bringing
back a head of block l leaves blocks 0 to l − 1, and what the heads of block l attend to, as they were. Many
permutations advance side by side. Other models go through `attribution.sweep`, a scenario per step.

Sign: positive = the head helps, as l(without) − l(with) of each step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.blocks import TakenApart, parts_of
from attribution.sweep import predictions_without
from attribution.vit import ViTRegressor, attention_modules, loss_per_image, num_heads_of, require_eval


def gate_shapley(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Shapley values of the loss over the gates, `[image layer head]`, float64 on the CPU.

    Their sum over heads is l(all gates 0) − l(all gates 1) of each picture, whatever the number of permutations.
    `settings.permutations` per picture, drawn by `permutations_of`; at most `settings.internal_batch_size` of them
    advance together, each holding the states and contexts of every block (9.4 MB for DINOv2-small in float32).
    Raises `ValueError` for a model in train mode.
    """
    require_eval(model)
    modules = attention_modules(model)
    num_gates = len(modules) * num_heads_of(modules[0])
    orders = np.stack(
        [permutations_of(settings.seed, int(index), settings.permutations, num_gates) for index in batch.indices]
    )
    return shapley_values(model, batch, torch.from_numpy(orders), batch_size=settings.internal_batch_size)


def permutations_of(seed: int, index: int, count: int, num_gates: int) -> np.ndarray:
    """The permutations of a picture's gates, `[permutation place]`, from `default_rng([seed, 9, index])`."""
    rng = np.random.default_rng([seed, 9, index])
    return np.stack([rng.permutation(num_gates) for _ in range(count)])


@torch.no_grad()
def shapley_values(model: ViTRegressor, batch: Batch, orders: Tensor, *, batch_size: int = 32) -> Tensor:
    """Shapley values `[image layer head]`, float64 on the CPU, from given permutations.

    `orders` [image permutation place] holds numbers of gates, layer·(heads per layer) + head, in the order in which
    the heads return. All permutations there are give the exact values. Raises `ValueError` for a model in train mode
    and for rows that are no permutations of the gates.
    """
    require_eval(model)
    modules = attention_modules(model)
    shape = (len(modules), num_heads_of(modules[0]))
    num_gates = shape[0] * shape[1]
    orders = orders.to("cpu", torch.int64)
    if orders.dim() != 3 or len(orders) != len(batch) or orders.shape[1] == 0 or orders.shape[2] != num_gates:
        expected = f"[{len(batch)} permutation {num_gates}]"
        raise ValueError(f"orders: expected {expected} (image permutation place), got {list(orders.shape)}")
    if not torch.equal(orders.sort(-1).values, torch.arange(num_gates).expand_as(orders)):
        raise ValueError(f"orders: expected every row to hold each of the numbers 0 to {num_gates - 1} once")
    parts = parts_of(model, batch.pixel_values[:1])
    if parts is None:
        losses = losses_by_scenarios(model, batch, orders, batch_size)
    else:
        losses = losses_by_returns(parts, batch, orders, batch_size)
    shares = losses[..., :-1] - losses[..., 1:]  # [image permutation place]
    values = torch.zeros_like(shares).scatter_(2, orders, shares)  # [image permutation gate]
    return values.mean(dim=1).unflatten(1, shape)


def losses_by_scenarios(model: ViTRegressor, batch: Batch, orders: Tensor, batch_size: int) -> Tensor:
    """Losses `[image permutation 1+place]` along the permutations: all heads off, then each back in turn."""
    num_heads = num_heads_of(attention_modules(model)[0])
    labels = batch.labels.to("cpu", torch.float64)
    found = []
    for image, rows in enumerate(orders.tolist()):
        steps = [[divmod(gate, num_heads) for gate in row[place:]] for row in rows for place in range(len(row) + 1)]
        # The sets repeat: of every permutation the first and the last, of short ones many more.
        scenarios = {frozenset(removed): tuple(sorted(removed)) for removed in steps}
        pixel_values = batch.pixel_values[image : image + 1]
        predictions, _ = predictions_without(model, pixel_values, list(scenarios.values()), batch_size=batch_size)
        losses = dict(
            zip(scenarios, loss_per_image(predictions[:, 0], labels[image].expand(len(scenarios), -1)), strict=True)
        )
        found.append(torch.stack([losses[frozenset(removed)] for removed in steps]).unflatten(0, (len(rows), -1)))
    return torch.stack(found)


def losses_by_returns(parts: TakenApart, batch: Batch, orders: Tensor, batch_size: int) -> Tensor:
    """As `losses_by_scenarios`, each step from the one before; `batch_size` permutations advance together."""
    device = batch.pixel_values.device
    num_permutations = orders.shape[1]
    rows = torch.arange(orders.shape[0] * num_permutations)
    labels = batch.labels.to("cpu", torch.float64).repeat_interleave(num_permutations, dim=0)
    losses = []
    for part in rows.split(batch_size):
        images, image_of_row = torch.unique(part // num_permutations, return_inverse=True)
        order = orders.flatten(0, 1)[part].to(device)  # [row place]
        predictions = list(_along(parts, batch.pixel_values[images.to(device)], image_of_row.to(device), order))
        losses.append(torch.stack([loss_per_image(found, labels[part]) for found in predictions], dim=1))
    return torch.cat(losses).unflatten(0, (-1, num_permutations))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Where each row (a permutation of a picture) stands: its gates, and what the blocks computed last."""

    gates: Tensor  # [row layer head], 1 = the head is back
    states: list[Tensor]  # per layer, what enters the block [row token channel]
    contexts: list[Tensor]  # per layer, ungated [row token head*head_dim]; of the last block the first token's alone


def _along(parts: TakenApart, pixel_values: Tensor, image_of_row: Tensor, order: Tensor) -> Iterator[Tensor]:
    """Predictions `[row target]`, float64 on the CPU, with all heads off and after each return."""
    num_layers, num_heads = len(parts.blocks), parts.blocks[0].num_heads
    embedded = parts.embed(pixel_values)
    gates = torch.zeros(len(pixel_values), num_layers, num_heads, dtype=embedded.dtype, device=embedded.device)
    none = torch.full((len(pixel_values),), -1, device=embedded.device)  # so that the first block's contexts are made
    empty = [torch.empty(0)] * (num_layers - 1)
    pictures = _Rows(gates, [embedded, *empty], [torch.empty(0), *empty])
    off = _advanced(parts, pictures, none)
    yield off[image_of_row.cpu()]
    rows = _Rows(
        gates[image_of_row],
        [states[image_of_row] for states in pictures.states],
        [contexts[image_of_row] for contexts in pictures.contexts],
    )
    places = torch.arange(len(order), device=order.device)
    for returning in order.T:
        layers = returning // num_heads
        rows.gates[places, layers, returning % num_heads] = 1
        yield _advanced(parts, rows, layers)


def _advanced(parts: TakenApart, rows: _Rows, changed: Tensor) -> Tensor:
    """Predictions `[row target]`, float64 on the CPU, after gates changed in layer `changed` `[row]`; updates the rows.

    A row runs from that block on, whose contexts are as they were; −1 stands for what enters the first block.
    """
    last = len(parts.blocks) - 1
    output = rows.states[0]
    for layer, block in enumerate(parts.blocks):
        entered = (changed < layer).nonzero()[:, 0]
        if len(entered):
            states = rows.states[layer][entered]
            contexts = block.first_contexts(states) if layer == last else block.contexts(states)
            rows.contexts[layer] = _updated(rows.contexts[layer], entered, contexts, len(changed))
        running = (changed <= layer).nonzero()[:, 0]
        if len(running):
            contexts = rows.contexts[layer][running].unflatten(-1, (block.num_heads, -1))
            gated = (contexts * rows.gates[running, layer][:, None, :, None]).flatten(-2)
            residual = rows.states[layer][running, : gated.shape[1]]
            output = block.fed_forward(block.attended(residual, gated))
            if layer < last:
                rows.states[layer + 1] = _updated(rows.states[layer + 1], running, output, len(changed))
    return parts.read(output).to("cpu", torch.float64)  # every row has run through the last block


def _updated(tensor: Tensor, rows: Tensor, values: Tensor, num_rows: int) -> Tensor:
    """The tensor with these rows set, in place unless all of them are."""
    if len(rows) == num_rows:
        return values
    return tensor.index_copy_(0, rows, values)
