"""The table of pixel methods: what each is, where it comes from, what it costs.

A pixel method is a function (model, batch, settings, target) -> maps `[image row col]`, not negative, of the loss
(target None) or of one output. Runs nothing (`attribution.methods` does).
"""

from functools import partial

from attribution.method import Method, by_name
from attribution.pixel_controls import laplace, sobel, uniform
from attribution.pixels import gradient_shap, input_x_gradient, integrated_gradients, saliency, smooth_grad
from attribution.relevance_maps import (
    gradient_rollout,
    layer_grad_cam,
    occlusion,
    rollout_discard,
    rollout_discard_of,
    rollout_max,
    rollout_max_of,
    rollout_min,
    rollout_min_of,
)
from attribution.rollout import chefer_map, rollout, rollout_of

# Costs know neither the patch grid nor the donors: these are what the default backbone and a run have.
NUM_PATCHES, NUM_DONORS = 256, 4

_unsigned = partial(Method, signed=False, direction="+")

PIXEL_METHODS: dict[str, Method] = by_name(
    _unsigned("saliency", saliency, "pixels", "1312.6034", backwards=1),
    _unsigned("input_x_gradient", input_x_gradient, "pixels", "1605.01713", backwards=1, default=False),
    _unsigned(
        "integrated_gradients",
        integrated_gradients,
        "pixels",
        "1703.01365",
        forwards=lambda settings, layers, targets: settings.pixel_steps,
        backwards=lambda settings, layers, targets: settings.pixel_steps,
        is_path=True,
    ),
    _unsigned(
        "gradient_shap",
        gradient_shap,
        "pixels",
        "1906.10670",
        forwards=NUM_DONORS,
        backwards=NUM_DONORS,
        default=False,
        needs=("donor_pixel_values",),
        is_path=True,
    ),
    _unsigned(
        "smooth_grad",
        smooth_grad,
        "pixels",
        "1706.03825",
        forwards=lambda settings, layers, targets: settings.noise_samples,
        backwards=lambda settings, layers, targets: settings.noise_samples,
        default=False,
        is_path=True,
    ),
    _unsigned(
        "occlusion",
        occlusion,
        "pixels",
        "1311.2901",
        forwards=1 + NUM_PATCHES,
        default=False,
        note=f"one forward per patch, passes counted for {NUM_PATCHES}",
        is_path=True,
    ),
    _unsigned(
        "layer_grad_cam",
        layer_grad_cam,
        "layers",
        "1610.02391",
        backwards=1,
        default=False,
        note="back through the last block alone",
    ),
    _unsigned("rollout", rollout, "attention", "2005.00928", note="reads no output", of_attention=rollout_of),
    _unsigned(
        "rollout_max",
        rollout_max,
        "attention",
        "2005.00928",
        default=False,
        note="reads no output",
        of_attention=rollout_max_of,
    ),
    _unsigned(
        "rollout_min",
        rollout_min,
        "attention",
        "2005.00928",
        default=False,
        note="reads no output",
        of_attention=rollout_min_of,
    ),
    _unsigned(
        "rollout_discard",
        rollout_discard,
        "attention",
        "2005.00928",
        default=False,
        note="reads no output",
        of_attention=rollout_discard_of,
    ),
    _unsigned("gradient_rollout", gradient_rollout, "attention x gradient", "2005.00928", backwards=1, default=False),
    _unsigned("chefer", chefer_map, "attention x gradient", "2103.15679", backwards=1),
    _unsigned("uniform", uniform, "control", forwards=0, default=False),
    _unsigned("sobel", sobel, "control", forwards=0, default=False),
    _unsigned("laplace", laplace, "control", forwards=0, default=False),
)
