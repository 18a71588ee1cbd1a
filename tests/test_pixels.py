"""Pixel maps against finite differences and quadrature by hand, and the sum per patch against exact numbers."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_batch, tiny_model

from attribution.batch import MethodSettings
from attribution.pixels import integrated_gradients, saliency, to_patch_grid
from attribution.vit import HeadLayout, head_layout, loss_per_image

SETTINGS = MethodSettings()


def explained(model, batch, target):
    """pixel_values -> the explained number per picture."""

    def numbers(pixel_values):
        predictions = model(pixel_values)
        return loss_per_image(predictions, batch.labels) if target is None else predictions[:, target]

    return numbers


@pytest.mark.parametrize("target", [None, 1])
def test_saliency_is_the_finite_difference(target):
    model = tiny_model()
    batch = tiny_batch(model, 2)
    numbers, step = explained(model, batch, target), 1e-5
    got = saliency(model, batch, SETTINGS, target)
    assert got.shape == (2, 16, 16) and not got.requires_grad
    for row, col in ((0, 0), (7, 8), (15, 3)):
        expected = torch.zeros(2, dtype=torch.float64)
        for channel in range(3):
            moved = torch.stack([batch.pixel_values, batch.pixel_values])
            moved[0, :, channel, row, col] += step
            moved[1, :, channel, row, col] -= step
            expected += ((numbers(moved[0]) - numbers(moved[1])) / (2 * step)).abs()
        torch.testing.assert_close(got[:, row, col], expected, rtol=1e-6, atol=1e-8 * float(got.max()))


@pytest.mark.parametrize("target", [None, 0, 2])
@pytest.mark.parametrize("kind", ["dinov2", "dinov2_lora"])
def test_integrated_gradients_are_quadrature_from_the_baseline_picture(kind, target):
    model = tiny_model(kind)
    batch = tiny_batch(model, 3)
    numbers = explained(model, batch, target)
    path = batch.pixel_values - batch.baseline_pixel_values
    total = torch.zeros_like(path)
    for node, weight in zip(*np.polynomial.legendre.leggauss(8), strict=True):
        pixel_values = (batch.baseline_pixel_values + (node + 1) / 2 * path).requires_grad_()
        total += weight / 2 * torch.autograd.grad(numbers(pixel_values).sum(), pixel_values)[0]
    expected = (path * total).abs().sum(1)
    for size in (32, 7, 2):
        got = integrated_gradients(model, batch, MethodSettings(internal_batch_size=size), target)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * float(expected.max()))


def test_to_patch_grid_by_hand():
    layout = HeadLayout(num_layers=1, num_heads=1, head_dim=1, num_special_tokens=1, num_rows=2, num_cols=2)
    pixel_map = torch.tensor([[[1.0, -1, 2, 2], [1, 1, 0, 0], [0, 0, 0, 5], [0, 3, -5, 0]]])
    assert torch.equal(to_patch_grid(pixel_map, layout), torch.tensor([[[4.0, 4], [3, 10]]]))
    grid = torch.tensor([[[1.0, 2], [3, -4]]])
    assert torch.equal(to_patch_grid(grid, layout), grid.abs())
    for wrong in (torch.zeros(1, 3, 4), torch.zeros(1, 4, 5), torch.zeros(4, 4)):
        with pytest.raises(ValueError, match=r"pixel map: expected \[image row col\] divisible into 2 x 2 patches"):
            to_patch_grid(wrong, layout)


def test_patch_sums_keep_the_whole():
    model = tiny_model()
    batch = tiny_batch(model)
    pixels = saliency(model, batch, SETTINGS)
    patches = to_patch_grid(pixels, head_layout(model))
    assert patches.shape == (4, 4, 4)
    torch.testing.assert_close(patches.sum((1, 2)), pixels.sum((1, 2)))
    assert float(patches[1, 2, 3]) == pytest.approx(float(pixels[1, 8:12, 12:16].sum()))


def test_batch_is_untouched_and_refusals():
    model = tiny_model()
    batch = tiny_batch(model)
    pixel_values = batch.pixel_values.clone()
    for function in (saliency, integrated_gradients):
        with torch.no_grad():
            function(model, batch, SETTINGS)
        with pytest.raises(ValueError, match="target: expected 0 to 2, got -1"):
            function(model, batch, SETTINGS, -1)
    assert torch.equal(batch.pixel_values, pixel_values) and not batch.pixel_values.requires_grad
    model.train()
    for function in (saliency, integrated_gradients):
        with pytest.raises(ValueError, match="eval mode"):
            function(model, batch, SETTINGS)
