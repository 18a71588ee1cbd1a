"""Pixel maps from gradients at pictures, and their sum per patch.

Takes a model in eval mode, a batch (with a baseline picture or donors where a method starts from them) and settings;
gives `[image row col]` at the picture's own resolution, not negative: the sum over the colour channels of the absolute
attribution of ℓ, or of one output. Does not know heads or patches' tokens, and draws nothing.

Every method here is Σ factor ⊙ ∂s/∂x at a few places x, as Captum's method of that name, but one forward pass per place
serves every scalar s. Graphs are held for at most `PICTURES_PER_PASS` pictures. Random numbers are drawn per picture by
its index.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.gates import gauss_legendre
from attribution.heads import PICTURES_PER_PASS
from attribution.layer_gradients import gradients_of
from attribution.rollout import explained
from attribution.vit import HeadLayout, ViTRegressor, require_eval

Targets = Sequence[int | None]  # the scalars to explain: None for ℓ, or the number of an output
Places = Callable[[Batch, MethodSettings], Iterator[tuple[Tensor, Tensor | float]]]  # pictures, and a factor for each
OfTargets = Callable[[ViTRegressor, Batch, MethodSettings, Targets], Tensor]  # -> maps [scalar image row col]

LINE_DRAW, NOISE_DRAW = 6, 8  # set these random numbers apart from others of the same seed and picture
NOISE_LEVEL = 0.15  # standard deviation of SmoothGrad's noise, as a part of the picture's range


def saliency(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Σ over channels of |∂ℓ/∂x| or |∂ŷ_target/∂x| (Simonyan et al. 2014, 1312.6034, section 3)."""
    return pixel_maps(model, batch, settings, [target], at_picture)[0]


def input_x_gradient(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Σ over channels of |x·∂ℓ/∂x|, x preprocessed, so 0 is the mean colour (Shrikumar et al. 2016, 1605.01713)."""
    return pixel_maps(model, batch, settings, [target], times_picture)[0]


def integrated_gradients(
    model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None
) -> Tensor:
    """Σ over channels of |integrated gradients| from the baseline picture, `settings.pixel_steps` Gauss–Legendre nodes.

    Sundararajan et al. 2017, 1703.01365, eq. 1.
    """
    return pixel_maps(model, batch, settings, [target], from_baseline)[0]


def gradient_shap(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Σ over channels of |expected gradients|, each donor of the picture once (GradientSHAP; Erion 2019, 1906.10670).

    The gradient at one random place on the way from a donor, times how picture and donor differ, averaged over donors:
    Captum's GradientShap without noise. Raises `ValueError` for a batch without donors.
    """
    return pixel_maps(model, batch, settings, [target], from_donors)[0]


def smooth_grad(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Saliency averaged over `settings.noise_samples` noisy copies of the picture (Smilkov et al. 2017, 1706.03825).

    The mean of |∂ℓ/∂x|, as Captum's NoiseTunnel over Saliency has it; the paper averages the gradients first. Noise has
    a standard deviation of `NOISE_LEVEL` times the picture's range, highest minus lowest pixel value.
    """
    return pixel_maps(model, batch, settings, [target], noisy_copies, magnitude=True)[0]


def pixel_maps(
    model: ViTRegressor,
    batch: Batch,
    settings: MethodSettings,
    targets: Targets,
    places: Places,
    *,
    magnitude: bool = False,
) -> Tensor:
    """Maps `[scalar image row col]` of several scalars: one forward pass per place, one backward per place and scalar.

    Raises `ValueError` for a model in train mode and for a target the model does not have.
    """
    require_eval(model)
    parts = [
        attributions_at(model, part, settings, targets, places, magnitude=magnitude).abs().sum(2)
        for part in batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS))
    ]
    return torch.cat(parts, dim=1)


def attributions_at(
    model: ViTRegressor,
    batch: Batch,
    settings: MethodSettings,
    targets: Targets,
    places: Places,
    *,
    magnitude: bool = False,
) -> Tensor:
    """Signed attributions `[scalar image channel row col]`, Σ factor·∂s/∂x over the places, of all pictures at once.

    With `magnitude` it is |∂s/∂x| that is summed.
    """
    total: Tensor | None = None
    for pictures, factor in places(batch, settings):
        points = pictures.detach().requires_grad_()
        with torch.enable_grad():
            predictions = model(points)
            gradients = gradients_of([explained(predictions, batch.labels, target) for target in targets], [points])[0]
        found = factor * (gradients.abs() if magnitude else gradients)
        total = found if total is None else total + found
    assert total is not None
    return total


def at_picture(batch: Batch, settings: MethodSettings) -> Iterator[tuple[Tensor, Tensor | float]]:
    """The picture alone."""
    yield batch.pixel_values, 1.0


def times_picture(batch: Batch, settings: MethodSettings) -> Iterator[tuple[Tensor, Tensor | float]]:
    """The picture, times itself."""
    yield batch.pixel_values, batch.pixel_values


def from_baseline(batch: Batch, settings: MethodSettings) -> Iterator[tuple[Tensor, Tensor | float]]:
    """Nodes of a quadrature on the way from the baseline picture, times their weight and the way."""
    way = batch.pixel_values - batch.baseline_pixel_values
    for node, weight in zip(*gauss_legendre(settings.pixel_steps), strict=True):
        yield batch.baseline_pixel_values + node * way, weight * way


def from_donors(batch: Batch, settings: MethodSettings) -> Iterator[tuple[Tensor, Tensor | float]]:
    """A place on the way from each donor, uniform by `default_rng([seed, 6, index])`, times the way's mean share."""
    donors = batch.required("donor_pixel_values")
    num_donors = donors.shape[1]
    if num_donors == 0:
        raise ValueError("donor_pixel_values: expected at least one donor per picture, got none")
    rows = [generator.random(num_donors) for generator in _generators(batch, settings, LINE_DRAW)]
    alphas = torch.from_numpy(np.stack(rows)).to(donors)[:, :, None, None, None]  # [image donor 1 1 1]
    for donor, alpha in zip(donors.unbind(1), alphas.unbind(1), strict=True):
        way = batch.pixel_values - donor
        yield donor + alpha * way, way / num_donors


def noisy_copies(batch: Batch, settings: MethodSettings) -> Iterator[tuple[Tensor, Tensor | float]]:
    """Copies of the picture with normal noise by `default_rng([seed, 8, index])`, each an equal share of the mean."""
    pictures = batch.pixel_values
    spread = pictures.amax(dim=(1, 2, 3), keepdim=True) - pictures.amin(dim=(1, 2, 3), keepdim=True)
    generators = _generators(batch, settings, NOISE_DRAW)
    for _ in range(settings.noise_samples):
        noise = np.stack([generator.standard_normal(tuple(pictures.shape[1:])) for generator in generators])
        yield pictures + NOISE_LEVEL * spread * torch.from_numpy(noise).to(pictures), 1 / settings.noise_samples


def uniform_where_empty(maps: Tensor) -> Tensor:
    """Maps `[... row col]`, not negative, those that are zero everywhere replaced by ones: they prefer no place."""
    return torch.where(maps.amax(dim=(-2, -1), keepdim=True) == 0, torch.ones_like(maps), maps)


def to_patch_grid(pixel_map: Tensor, layout: HeadLayout) -> Tensor:
    """Σ |·| over the pixels of each patch: `[image row col]` in pixels -> `[image row col]` in patches.

    Raises `ValueError` where the map does not divide into the layout's rows and columns.
    """
    if pixel_map.dim() != 3 or pixel_map.shape[1] % layout.num_rows or pixel_map.shape[2] % layout.num_cols:
        expected = f"[image row col] divisible into {layout.num_rows} x {layout.num_cols} patches"
        raise ValueError(f"pixel map: expected {expected}, got {list(pixel_map.shape)}")
    patches = pixel_map.abs().unflatten(2, (layout.num_cols, -1)).unflatten(1, (layout.num_rows, -1))
    return patches.sum(dim=(2, 4))


def _generators(batch: Batch, settings: MethodSettings, draw: int) -> list[np.random.Generator]:
    return [np.random.default_rng([settings.seed, draw, int(index)]) for index in batch.indices]


# The same methods for several scalars at once.
OF_TARGETS: dict[Callable[..., Tensor], OfTargets] = {
    saliency: partial(pixel_maps, places=at_picture),
    input_x_gradient: partial(pixel_maps, places=times_picture),
    integrated_gradients: partial(pixel_maps, places=from_baseline),
    gradient_shap: partial(pixel_maps, places=from_donors),
    smooth_grad: partial(pixel_maps, places=noisy_copies, magnitude=True),
}
