"""The head "ablation" of a study's released code, fault by fault, beside the true one.

Takes a model in eval mode, preprocessed pictures, scenarios (heads, in the order in which they are "ablated") and the
faults to commit; gives predictions and losses of every scenario. The model that is given is never touched: copies are.
Does not know pictures, files or statistics.

The code is that of `vision-mech-interp-attn-head` 0.1.8, released with Bahador 2025 (arXiv 2503.18762). What it does,
and what `Faults` names:

1. `after_forward`: a scenario changes the weights after the forward pass of a batch, so its first batch is predicted by
   the model as the scenario before left it, and only later batches by the changed one.
2. `one_row`: it sets row `head` of the query, key and value weights to zero (biases and LoRA stay), which is one row
   of head 0 for every `head`, instead of removing the head's output.
3. `never_restore`: weights stay changed, so that each scenario carries the damage of all before it.
4. `drop_finetuned`: the usage example loads the checkpoint under names that the model does not have, without an error:
   the regression head is loaded, the fine-tuned transformer is not.
5. `raw_labels`: standardised predictions are held against labels in units.
6. `other_preprocessing`: pictures are preprocessed in another way than in training.

The loss is the mean of batch means in any case; with batches of equal size that is the mean.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from attribution.prefix import block_list, prefix_states, starting_at
from attribution.randomised import not_finetuned
from attribution.sweep import predictions_without
from attribution.vit import ViTRegressor, attention_modules, gated, head_layout, num_heads_of, require_eval

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
Head = tuple[int, int]  # layer, head
Passed = Callable[[int], None]  # told how many pictures have passed


@dataclass(frozen=True)
class Faults:
    """Which faults are committed; none by default, which is the true ablation."""

    after_forward: bool = False
    one_row: bool = False
    never_restore: bool = False
    drop_finetuned: bool = False
    raw_labels: bool = False
    other_preprocessing: bool = False

    def without(self, name: str) -> "Faults":
        """The same faults but this one."""
        return replace(self, **{name: False})


FAULTS = tuple(item.name for item in fields(Faults))
AS_RELEASED = Faults(**dict.fromkeys(FAULTS, True))
NONE = Faults()


def only(name: str) -> Faults:
    """One fault alone."""
    return Faults(**{name: True})


def model_as_loaded(model: ViTRegressor, faults: Faults) -> ViTRegressor:
    """A copy of the model as the procedure has it: with the backbone before fine-tuning under the trained regression
    head, if `drop_finetuned`. `ValueError` for a model without adapters, whose fine-tuning cannot be taken off."""
    require_eval(model)
    if not faults.drop_finetuned:
        return copy.deepcopy(model)
    dropped = not_finetuned(model, 0)
    dropped.head.load_state_dict(model.head.state_dict())
    return dropped


def zero_one_row(model: ViTRegressor, layer: int, head: int) -> None:
    """Set row `head` of the layer's query, key and value weights to zero, in place, as the released code does: those of
    the projection itself, below any LoRA. `ValueError` for attention of another layout."""
    with torch.no_grad():
        for weight in _weights(model, layer):
            weight[head, :] = 0


def state_predictions(
    model: ViTRegressor,
    pixel_values: Tensor,
    scenarios: Sequence[Head],
    faults: Faults,
    *,
    batch_size: int = 32,
    passed: Passed | None = None,
) -> Tensor:
    """Predictions in the state of the model before all scenarios and after each, `[1 + scenario image target]`,
    standardised, float64 on the CPU. Only `one_row` and `never_restore` are looked at.

    Blocks below a change are not run again, where the model can start at a block. `ValueError` for a head that the
    model does not have.
    """
    require_eval(model)
    modules = attention_modules(model)
    shape = (len(modules), num_heads_of(modules[0]))
    for layer, head in scenarios:
        if not (0 <= layer < shape[0] and 0 <= head < shape[1]):
            raise ValueError(f"scenario: no layer {layer} head {head} in {shape[0]} layers of {shape[1]} heads")
    if not faults.one_row and not faults.never_restore:
        removed = [(), *([head] for head in scenarios)]
        return predictions_without(model, pixel_values, removed, batch_size=batch_size, passed=passed)[0]
    model = copy.deepcopy(model)
    gates = torch.ones(shape, dtype=pixel_values.dtype, device=pixel_values.device)
    entering = prefix_states(model, pixel_values, batch_size)
    found = [_predicted(model, pixel_values, gates, 0, None, batch_size, keep=False)]
    for layer, head in scenarios:
        change: Any = nullcontext() if faults.never_restore else _restored(model, gates, layer)
        with change:
            if faults.one_row:
                zero_one_row(model, layer, head)
            else:
                gates[layer, head] = 0
            predictions = _predicted(model, pixel_values, gates, layer, entering, batch_size, keep=faults.never_restore)
        found.append(predictions)
        if passed is not None:
            passed(len(pixel_values))
    return torch.stack(found)


def scenario_predictions(states: Tensor, faults: Faults, batch_size: int) -> Tensor:
    """What each scenario reports, `[scenario image target]`, from the predictions of every state (above).

    With `after_forward` its first batch is predicted by the state before it: that of the scenario before, or, where
    weights are restored, the intact one.
    """
    reported = states[1:].clone()
    if faults.after_forward:
        before = states[:-1] if faults.never_restore else states[:1].expand_as(reported)
        reported[:, :batch_size] = before[:, :batch_size]
    return reported


def losses(predictions: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Mean over batches of the mean squared error, `[scenario]`, of predictions `[scenario image target]`; `labels`
    `[image target]` are standardised, or, as released, in units."""
    squared = (predictions - labels.to(predictions)) ** 2
    return torch.stack([part.mean(dim=(1, 2)) for part in squared.split(batch_size, dim=1)]).mean(dim=0)


def scenarios_of(model: ViTRegressor) -> list[Head]:
    """Every head in the order of the released code: layer by layer."""
    layout = head_layout(model)
    return [(layer, head) for layer in range(layout.num_layers) for head in range(layout.num_heads)]


def _weights(model: ViTRegressor, layer: int) -> Iterator[Tensor]:
    module: Any = attention_modules(model)[layer]
    for name in PROJECTIONS:
        projection = getattr(module, name, None)
        projection = getattr(projection, "base_layer", projection)
        if not isinstance(projection, nn.Linear):
            raise ValueError(f"layer {layer}: expected linear {', '.join(PROJECTIONS)}, as the released code has them")
        yield projection.weight


@contextmanager
def _restored(model: ViTRegressor, gates: Tensor, layer: int) -> Iterator[None]:
    kept, intact = [weight.clone() for weight in _weights(model, layer)], gates.clone()
    try:
        yield
    finally:
        gates.copy_(intact)
        with torch.no_grad():
            for weight, value in zip(_weights(model, layer), kept, strict=True):
                weight.copy_(value)


@torch.no_grad()
def _predicted(
    model: ViTRegressor,
    pixel_values: Tensor,
    gates: Tensor,
    layer: int,
    entering: list[Tensor] | None,
    batch_size: int,
    *,
    keep: bool,
) -> Tensor:
    """Predictions `[image target]`, from block `layer` on where it is known what enters the blocks (`entering`, one
    state each); `keep` writes down there what now enters the blocks above."""
    found = []
    for start in range(0, len(pixel_values), batch_size):
        rows = slice(start, start + batch_size)
        if entering is None:
            with gated(model, gates):
                found.append(model(pixel_values[rows]).to("cpu", torch.float64))
            continue
        above = {number: entering[number] for number in range(layer + 1, len(entering))} if keep else {}
        with gated(model, gates), _kept(model, above, rows), starting_at(model, layer, entering[layer][rows]):
            found.append(model(pixel_values[rows]).to("cpu", torch.float64))
    return torch.cat(found)


@contextmanager
def _kept(model: ViTRegressor, states: dict[int, Tensor], rows: slice) -> Iterator[None]:
    """Within this context what enters block number `n` is written to these rows of `states[n]`."""

    def hook_of(state: Tensor) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            state[rows] = args[0]

        return hook

    blocks = block_list(model)
    handles = [] if blocks is None else [blocks[n].register_forward_pre_hook(hook_of(states[n])) for n in states]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
