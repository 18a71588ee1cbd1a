"""The released procedure, held against a literal rendering of it: a module that changes its weights after the pass."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from attribution.ablation import zero_ablation
from attribution.checkpoint import weights_sha256
from attribution.released_procedure import (
    AS_RELEASED,
    FAULTS,
    NONE,
    Faults,
    losses,
    model_as_loaded,
    only,
    scenario_predictions,
    scenarios_of,
    state_predictions,
    zero_one_row,
)
from attribution.vit import attention_modules

BATCH_SIZE = 2


class Literal(nn.Module):
    """One module with the order of things as released: pass first, zeros afterwards, never put back."""

    def __init__(self, model):
        super().__init__()
        self.model = copy.deepcopy(model)

    def forward(self, pixel_values: Tensor, layer: int | None = None, head: int | None = None) -> Tensor:
        predictions = self.model(pixel_values)
        if layer is not None:
            attention = attention_modules(self.model)[layer]
            with torch.no_grad():
                for name in ("q_proj", "k_proj", "v_proj"):
                    # PEFT's layers hand out the weight below the LoRA as their own
                    getattr(attention, name).weight[head, :] = 0
        return predictions


@torch.no_grad()
def literally(model, pixel_values: Tensor, labels: Tensor, scenarios: Sequence[tuple[int, int]]) -> tuple:
    """Losses and predictions of the procedure as released, but for the data (faults 1 to 3)."""
    module, found, predicted = Literal(model), [], []
    criterion = nn.MSELoss()
    for layer, head in scenarios:
        total, outputs = 0.0, []
        batches = list(zip(pixel_values.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))
        for inputs, targets in batches:
            output = module(inputs, layer, head)
            total += criterion(output, targets).item()
            outputs.append(output)
        found.append(total / len(batches))
        predicted.append(torch.cat(outputs))
    return torch.tensor(found, dtype=torch.float64), torch.stack(predicted).double()


@pytest.fixture
def setting(regressor_factory, tiny_batch):
    model = regressor_factory("dinov2", lora=True).double()
    batch = tiny_batch(model, 5)
    return model, batch.pixel_values.double(), batch.labels.double()


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_states_give_what_the_literal_procedure_gives(kind, shuffled, regressor_factory, tiny_batch):
    model = regressor_factory(kind, lora=True).double()
    batch = tiny_batch(model, 5)
    pixel_values, labels = batch.pixel_values.double(), batch.labels.double()
    scenarios = scenarios_of(model)
    if shuffled:
        scenarios = [scenarios[place] for place in torch.randperm(len(scenarios), generator=_seeded(3)).tolist()]
    faults = Faults(after_forward=True, one_row=True, never_restore=True)
    states = state_predictions(model, pixel_values, scenarios, faults, batch_size=BATCH_SIZE)
    predicted = scenario_predictions(states, faults, BATCH_SIZE)
    expected_losses, expected = literally(model, pixel_values, labels, scenarios)
    torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(losses(predicted, labels, BATCH_SIZE), expected_losses, rtol=0, atol=1e-12)
    assert float((predicted[-1] - predicted[0]).abs().max()) > 1e-6  # damage does pile up


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_faults_it_is_zero_ablation(regressor_factory, tiny_batch):
    model = regressor_factory("dinov2", lora=True).double()
    batch = tiny_batch(model, 5)
    pixel_values, labels = batch.pixel_values, batch.labels
    scenarios = scenarios_of(model)
    states = state_predictions(model, pixel_values, scenarios, NONE, batch_size=BATCH_SIZE)
    batch_losses = ((scenario_predictions(states, NONE, BATCH_SIZE) - labels) ** 2).mean(-1)  # [scenario image]
    intact = ((states[0] - labels) ** 2).mean(-1)
    truth = zero_ablation(model, batch, batch_size=BATCH_SIZE)
    effects = (batch_losses - intact).T.reshape(5, *truth.delta_loss.shape[1:])
    torch.testing.assert_close(effects, truth.delta_loss, rtol=0, atol=1e-12)


@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("never_restore", [False, True])
def test_reused_blocks_give_what_whole_passes_give(setting, one_row, never_restore):
    model, pixel_values, _ = setting
    faults = Faults(one_row=one_row, never_restore=never_restore)
    scenarios = scenarios_of(model)
    found = state_predictions(model, pixel_values, scenarios, faults, batch_size=BATCH_SIZE)
    for number in (1, 4, len(scenarios)):
        done = scenarios[:number] if never_restore else scenarios[number - 1 : number]
        torch.testing.assert_close(found[number], _damaged(model, pixel_values, done, one_row), rtol=0, atol=1e-12)


@torch.no_grad()
def _damaged(model, pixel_values: Tensor, heads, one_row: bool) -> Tensor:
    """By hand: the rows set to zero in a copy, or the heads' columns of the output projection."""
    copied = copy.deepcopy(model)
    for layer, head in heads:
        attention = attention_modules(copied)[layer]
        if one_row:
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                getattr(projection, "base_layer", projection).weight[head] = 0
        else:
            width = attention.o_proj.in_features // attention.num_attention_heads
            attention.o_proj.weight[:, head * width : (head + 1) * width] = 0
    return copied(pixel_values)


def test_the_first_batch_of_the_first_scenario_is_the_intact_one(setting):
    model, pixel_values, _ = setting
    scenarios = scenarios_of(model)
    states = state_predictions(model, pixel_values, scenarios, AS_RELEASED, batch_size=BATCH_SIZE)
    reported = scenario_predictions(states, AS_RELEASED, BATCH_SIZE)
    assert torch.equal(reported[0, :BATCH_SIZE], states[0, :BATCH_SIZE])
    assert not torch.equal(reported[0, BATCH_SIZE:], states[0, BATCH_SIZE:])
    assert torch.equal(reported[1, :BATCH_SIZE], states[1, :BATCH_SIZE])  # the damage of the scenario before


def test_weights_that_are_restored_leave_the_first_batch_intact_in_every_scenario(setting):
    model, pixel_values, _ = setting
    faults = AS_RELEASED.without("never_restore")
    states = state_predictions(model, pixel_values, scenarios_of(model), faults, batch_size=BATCH_SIZE)
    reported = scenario_predictions(states, faults, BATCH_SIZE)
    assert torch.equal(reported[:, :BATCH_SIZE], states[:1, :BATCH_SIZE].expand(len(reported), -1, -1))


def test_the_given_model_is_never_touched(setting):
    model, pixel_values, _ = setting
    before = weights_sha256(model)
    for faults in (AS_RELEASED, NONE, *(only(name) for name in FAULTS)):
        loaded = model_as_loaded(model, faults)
        given = weights_sha256(loaded)
        state_predictions(loaded, pixel_values, scenarios_of(loaded), faults, batch_size=BATCH_SIZE)
        assert weights_sha256(loaded) == given
    assert weights_sha256(model) == before


def test_dropping_the_fine_tuning_keeps_the_regression_head_and_nothing_else(setting):
    model, pixel_values, _ = setting
    dropped = model_as_loaded(model, only("drop_finetuned"))
    with model.backbone.disable_adapter(), torch.no_grad():
        expected = model(pixel_values)
    with torch.no_grad():
        torch.testing.assert_close(dropped(pixel_values), expected, rtol=0, atol=1e-12)
        assert float((dropped(pixel_values) - model(pixel_values)).abs().max()) > 1e-6


def test_losses_are_means_of_batch_means():
    predictions = torch.zeros(1, 3, 1, dtype=torch.float64)
    labels = torch.tensor([[1.0], [1.0], [4.0]])
    assert losses(predictions, labels, 2).tolist() == [(1 + 16) / 2]  # not (1 + 1 + 16) / 3


def test_what_cannot_be_done_is_refused(setting, regressor_factory):
    model, pixel_values, _ = setting
    with pytest.raises(ValueError, match="no layer 99 head 0"):
        state_predictions(model, pixel_values, [(99, 0)], AS_RELEASED)
    with pytest.raises(ValueError, match="expected a backbone with adapters"):
        model_as_loaded(regressor_factory("vit", lora=False), AS_RELEASED)
    model.train()
    with pytest.raises(ValueError, match="eval mode"):
        state_predictions(model, pixel_values, [(0, 0)], AS_RELEASED)
    model.eval()
    attention_modules(model)[0].q_proj = nn.Identity()
    with pytest.raises(ValueError, match="layer 0: expected linear q_proj"):
        zero_one_row(model, 0, 0)
