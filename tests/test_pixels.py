"""Pixel maps against finite differences, loops and stock Captum, and the sum per patch against exact numbers."""

import numpy as np
import pytest
import torch
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from tiny_models import tiny_batch, tiny_model

from attribution.batch import Batch, MethodSettings
from attribution.pixels import (
    attributions_at,
    from_baseline,
    gradient_shap,
    input_x_gradient,
    integrated_gradients,
    saliency,
    smooth_grad,
    to_patch_grid,
    uniform_where_empty,
)
from attribution.vit import HeadLayout, head_layout, loss_per_image

SETTINGS = MethodSettings()
ALL = (saliency, input_x_gradient, integrated_gradients, gradient_shap, smooth_grad)


def explained(model, batch, target):
    """pixel_values -> the explained number per picture."""

    def numbers(pixel_values):
        predictions = model(pixel_values)
        return loss_per_image(predictions, batch.labels) if target is None else predictions[:, target]

    return numbers


def of_pixels(model, target):
    """(pixel_values, labels) -> the explained number per picture, as Captum wants it."""

    def numbers(pixel_values, labels):
        predictions = model(pixel_values)
        return loss_per_image(predictions, labels) if target is None else predictions[:, target]

    return numbers


def with_baselines(batch, baselines):
    """The batch with another baseline picture, or one per picture."""
    return Batch(batch.pixel_values, batch.labels, batch.indices, baselines, batch.donor_pixel_values)


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("target", [None, 1])
def test_saliency_and_input_x_gradient_are_the_finite_difference(target):
    model = tiny_model()
    batch = tiny_batch(model, 2)
    numbers, step = explained(model, batch, target), 1e-5
    got, times = saliency(model, batch, SETTINGS, target), input_x_gradient(model, batch, SETTINGS, target)
    assert got.shape == times.shape == (2, 16, 16) and not got.requires_grad and not times.requires_grad
    for row, col in ((0, 0), (7, 8), (15, 3)):
        expected, expected_times = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for channel in range(3):
            moved = torch.stack([batch.pixel_values, batch.pixel_values])
            moved[0, :, channel, row, col] += step
            moved[1, :, channel, row, col] -= step
            slope = ((numbers(moved[0]) - numbers(moved[1])) / (2 * step)).abs()
            expected += slope
            expected_times += slope * batch.pixel_values[:, channel, row, col].abs()
        torch.testing.assert_close(got[:, row, col], expected, rtol=1e-6, atol=1e-8 * float(got.max()))
        torch.testing.assert_close(times[:, row, col], expected_times, rtol=1e-6, atol=1e-8 * float(times.max()))


@pytest.mark.parametrize("target", [None, 2])
def test_stock_captum_gives_the_same(target):
    model = tiny_model("dinov2_lora")
    batch = tiny_batch(model, 3)
    numbers, args = of_pixels(model, target), {"additional_forward_args": (batch.labels,)}
    pixel_values = batch.pixel_values.clone().requires_grad_()
    expected = Saliency(numbers).attribute(pixel_values, **args)
    close(saliency(model, batch, SETTINGS, target), expected.sum(1))
    expected = InputXGradient(numbers).attribute(pixel_values, **args)
    close(input_x_gradient(model, batch, SETTINGS, target), expected.detach().abs().sum(1))
    expected = IntegratedGradients(numbers).attribute(
        pixel_values, batch.baseline_pixel_values[None], n_steps=5, method="gausslegendre", **args
    )
    got = integrated_gradients(model, batch, MethodSettings(pixel_steps=5), target)
    close(got, expected.detach().abs().sum(1), 1e-6)  # Captum rounds the weights of the nodes to float32


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
        close(integrated_gradients(model, batch, MethodSettings(internal_batch_size=size), target), expected)


def test_integrated_gradients_add_up_to_the_change_from_the_baseline_picture():
    model = tiny_model()
    model.head[1] = model.head[3] = torch.nn.Tanh().eval()  # ReLUs have kinks, at which quadrature is slow
    batch = tiny_batch(model, 3)
    targets = (None, 0, 1, 2)
    got = attributions_at(model, batch, MethodSettings(pixel_steps=50), targets, from_baseline).sum((2, 3, 4))
    for row, target in zip(got, targets, strict=True):
        numbers = explained(model, batch, target)
        change = numbers(batch.pixel_values) - numbers(batch.baseline_pixel_values.expand_as(batch.pixel_values))
        assert float(change.abs().min()) > 1e-3
        close(row, change, 1e-12)


def test_every_picture_may_have_its_own_baseline():
    model = tiny_model()
    batch = tiny_batch(model, 3)
    baselines = batch.donor_pixel_values[:, 0]
    got = integrated_gradients(model, with_baselines(batch, baselines), MethodSettings(internal_batch_size=2), 1)
    for number in range(3):
        one = with_baselines(batch, baselines[number]).select([number])
        close(got[[number]], integrated_gradients(model, one, SETTINGS, 1))
    assert float((got - integrated_gradients(model, batch, SETTINGS, 1)).abs().max()) > 1e-3


@pytest.mark.parametrize("target", [None, 1])
def test_gradient_shap_is_stock_captum_with_each_donor_once(monkeypatch, target):
    model = tiny_model()
    batch = tiny_batch(model, 3)
    num_donors = batch.donor_pixel_values.shape[1]
    got = gradient_shap(model, batch, MethodSettings(seed=4, internal_batch_size=2), target)
    for number, index in enumerate(batch.indices.tolist()):
        alphas = np.random.default_rng([4, 6, index]).random(num_donors)
        assert len(set(alphas)) == num_donors
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "choice", lambda _, count: np.arange(count))
            patch.setattr(np.random, "uniform", lambda low, high, count, alphas=alphas: alphas)
            expected = GradientShap(of_pixels(model, target)).attribute(
                batch.pixel_values[[number]],
                baselines=batch.donor_pixel_values[number],
                n_samples=num_donors,
                stdevs=0.0,
                additional_forward_args=(batch.labels[[number]],),
            )
        close(got[[number]], expected.detach().abs().sum(1))


def test_expected_gradients_of_a_linear_model_need_no_luck():
    """There the gradient is the same everywhere: what is left is the way from the mean donor, at any random place."""
    model = tiny_model()
    batch = tiny_batch(model, 2)
    weights = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    model.forward = lambda pixel_values: torch.einsum("bcij,tcij->bt", pixel_values, weights)
    way = batch.pixel_values - batch.donor_pixel_values.mean(1)
    close(gradient_shap(model, batch, SETTINGS, 2), (way * weights[2]).abs().sum(1))
    gradient = torch.autograd.functional.jacobian(explained(model, batch, None), batch.pixel_values)
    close(saliency(model, batch, SETTINGS), torch.einsum("bbcij->bcij", gradient).abs().sum(1))


@pytest.mark.parametrize("target", [None, 1])
def test_smooth_grad_is_stock_captum_on_the_same_noise(monkeypatch, target):
    model = tiny_model()
    batch = tiny_batch(model, 3)
    batch.pixel_values[2] *= 5  # another range, hence other noise
    got = smooth_grad(model, batch, MethodSettings(seed=4, noise_samples=5, internal_batch_size=2), target)
    for number, index in enumerate(batch.indices.tolist()):
        picture = batch.pixel_values[[number]]
        stdev = 0.15 * float(picture.max() - picture.min())
        noise = torch.from_numpy(np.random.default_rng([4, 8, index]).standard_normal((5, 3, 16, 16)))
        with monkeypatch.context() as patch:
            patch.setattr(torch, "normal", lambda mean, stdevs, noise=noise: mean + stdevs * noise)
            expected = NoiseTunnel(Saliency(of_pixels(model, target))).attribute(
                picture, nt_samples=5, stdevs=stdev, additional_forward_args=(batch.labels[[number]],)
            )
        close(got[[number]], expected.sum(1), 1e-6)  # Captum's deviation is float32


def test_smooth_grad_is_a_mean_of_saliencies():
    model = tiny_model()
    batch = tiny_batch(model, 2)
    expected = torch.zeros(2, 16, 16, dtype=torch.float64)
    for number, index in enumerate(batch.indices.tolist()):
        rng = np.random.default_rng([0, 8, index])
        one = batch.select([number])
        spread = float(one.pixel_values.max() - one.pixel_values.min())
        for _ in range(3):
            noisy = one.pixel_values + 0.15 * spread * torch.from_numpy(rng.standard_normal((1, 3, 16, 16)))
            moved = Batch(noisy, one.labels, one.indices, one.baseline_pixel_values)
            expected[number] += saliency(model, moved, SETTINGS)[0] / 3
    close(smooth_grad(model, batch, MethodSettings(noise_samples=3)), expected)


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


def test_only_empty_maps_become_uniform():
    maps = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[0.0, 1e-30], [0.0, 0.0]], [[0.0, torch.nan], [0.0, 0.0]]])
    got = uniform_where_empty(maps)
    assert torch.equal(got[0], torch.ones(2, 2)) and torch.equal(got[1], maps[1]) and bool(got[2].isnan().any())


def test_batch_is_untouched_and_refusals():
    model = tiny_model()
    batch = tiny_batch(model)
    pixel_values = batch.pixel_values.clone()
    for function in ALL:
        with torch.no_grad():
            function(model, batch, SETTINGS)
        with pytest.raises(ValueError, match="target: expected 0 to 2, got -1"):
            function(model, batch, SETTINGS, -1)
    assert torch.equal(batch.pixel_values, pixel_values) and not batch.pixel_values.requires_grad
    fields = {**vars(batch), "donor_pixel_values": None}
    with pytest.raises(ValueError, match="donor_pixel_values: needed here"):
        gradient_shap(model, Batch(**fields), SETTINGS)
    fields["donor_pixel_values"] = batch.donor_pixel_values[:, :0]
    with pytest.raises(ValueError, match="donor_pixel_values: expected at least one donor per picture, got none"):
        gradient_shap(model, Batch(**fields), SETTINGS)
    model.train()
    for function in ALL:
        with pytest.raises(ValueError, match="eval mode"):
            function(model, batch, SETTINGS)
