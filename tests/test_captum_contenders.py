"""Captum's side of the comparison is what the project's own functions give, in float64."""

import pytest
import torch
from tiny_models import KINDS, tiny_batch, tiny_model

from analysis.bench.captum_contenders import captum_ablation, captum_conductance, captum_influence, captum_layer_ig
from attribution.ablation import zero_ablation
from attribution.batch import MethodSettings
from attribution.layers import internal_influence, layer_conductance, layer_ig


def assert_alike(found, expected, relative):
    assert found.shape == expected.shape == (4, 3, 2)
    assert float((found - expected).abs().max()) <= relative * float(expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_ablation_is_one_forward_per_head(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    expected = zero_ablation(model, batch, route="full").delta_loss
    for perturbations_per_eval in (1, 2):
        found = captum_ablation(model, batch, perturbations_per_eval=perturbations_per_eval)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("captums", "ours"),
    [(captum_conductance, layer_conductance), (captum_influence, internal_influence), (captum_layer_ig, layer_ig)],
)
@pytest.mark.parametrize("kind", ["dinov2", "registers"])
def test_layer_methods(captums, ours, kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    assert_alike(ours(model, batch, MethodSettings(steps=4)), captums(model, batch, 4), 1e-8)
