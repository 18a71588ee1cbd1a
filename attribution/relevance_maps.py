"""Maps on the patch grid by occlusion, Grad-CAM and rollout.

Takes a model in eval mode, a batch and settings; gives `[image row col]` in patches, not negative. The scalar is ℓ or
one output; where negative values are clamped (Grad-CAM, gradient rollout) it is −ℓ or the output. Does not know heads'
scores, regions or files.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.heads import PICTURES_PER_PASS, attentions, by_attention, layout_with_cls
from attribution.layer_gradients import gradients_of
from attribution.pixels import OF_TARGETS as OF_TARGETS_IN_PIXELS
from attribution.pixels import OfTargets, Targets, uniform_where_empty
from attribution.prefix import block_list
from attribution.rollout import explained, rollout_of
from attribution.vit import HeadLayout, ViTRegressor, head_layout, require_eval

DISCARD_RATIO = 0.9


def occlusion(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """|Change of ℓ or ŷ_target| with one patch replaced by the baseline picture's (Zeiler & Fergus 2014, 1311.2901)."""
    return _occluded(model, batch, settings, [target])[0]


def occlusion_all(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """`occlusion` for ℓ (scalar 0) and every output from the same forwards, `[scalar image row col]`."""
    return _occluded(model, batch, settings, [None, *range(batch.labels.shape[1])])


def layer_grad_cam(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Grad-CAM at the patch tokens that enter the last block, of −ℓ or ŷ_target (Selvaraju et al. 2017, 1610.02391).

    (Σ_c α_c T_c)⁺ with α_c the gradient at channel c averaged over patches (eqs. 1 and 2): Captum's LayerGradCam with
    channels first and special tokens dropped. A picture whose map is zero everywhere gets a uniform one. Raises
    `ValueError` for a model without a list of blocks.
    """
    return _grad_cam(model, batch, settings, [target])[0]


def gradient_rollout(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Rollout of Ā = mean over heads of (A ⊙ ∇A)⁺, ∇ of −ℓ or ŷ_target (Abnar & Zuidema 2020, 2005.00928, eq. 1).

    Identity and rows that sum to 1 as in `rollout`, so a token keeps the more of its own the smaller the gradient. A
    picture whose map is zero everywhere gets a uniform one.
    """
    return _gradient_rollout(model, batch, settings, [target])[0]


def rollout_max(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Rollout map with the maximum over heads instead of the mean."""
    return by_attention(rollout_max_of, model, batch, settings)


def rollout_max_of(layers: list[Tensor], layout: HeadLayout) -> Tensor:
    """`rollout_max` from the attention weights `[image head query key]` of every layer."""
    return rollout_of(layers, layout, fusion="max")


def rollout_min(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Rollout map with the minimum over heads instead of the mean."""
    return by_attention(rollout_min_of, model, batch, settings)


def rollout_min_of(layers: list[Tensor], layout: HeadLayout) -> Tensor:
    """`rollout_min` from the attention weights `[image head query key]` of every layer."""
    return uniform_where_empty(rollout_of(layers, layout, fusion="min"))


def rollout_discard(model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None) -> Tensor:
    """Rollout map without the smallest nine tenths of the weights outside the CLS column.

    A picture whose CLS token keeps no way to any patch gets a uniform map.
    """
    return by_attention(rollout_discard_of, model, batch, settings)


def rollout_discard_of(layers: list[Tensor], layout: HeadLayout) -> Tensor:
    """`rollout_discard` from the attention weights `[image head query key]` of every layer."""
    return uniform_where_empty(rollout_of(layers, layout, discard_ratio=DISCARD_RATIO))


@torch.no_grad()
def _occluded(model: ViTRegressor, batch: Batch, settings: MethodSettings, targets: Targets) -> Tensor:
    """|s(picture) − s(picture with one patch replaced)| `[scalar image row col]`."""
    require_eval(model)
    layout = head_layout(model)
    num_rows, num_cols = layout.num_rows, layout.num_cols
    height, width = batch.pixel_values.shape[2:]
    if height % num_rows or width % num_cols:
        expected = f"divisible into {num_rows} x {num_cols} patches"
        raise ValueError(f"pixel_values: expected rows and columns {expected}, got {height} x {width}")
    patch = (height // num_rows, width // num_cols)
    parts = []
    for part in batch.chunks(settings.internal_batch_size):
        intact = _scalars(model(part.pixel_values), part.labels, targets)
        baseline = part.baseline_pixel_values.expand_as(part.pixel_values)
        changes = []
        for numbers in torch.arange(num_rows * num_cols).split(max(1, settings.internal_batch_size // len(part))):
            pictures = part.pixel_values.repeat(len(numbers), 1, 1, 1).unflatten(0, (len(numbers), len(part)))
            for copy, number in zip(pictures, numbers.tolist(), strict=True):
                row, col = number // num_cols * patch[0], number % num_cols * patch[1]
                hole = (..., slice(row, row + patch[0]), slice(col, col + patch[1]))
                copy[hole] = baseline[hole]
            found = _scalars(model(pictures.flatten(0, 1)), part.labels.repeat(len(numbers), 1), targets)
            changes.append((found.unflatten(1, (len(numbers), len(part))) - intact[:, None]).abs())
        parts.append(torch.cat(changes, dim=1).transpose(1, 2))  # [scalar image patch]
    return torch.cat(parts, dim=1).unflatten(2, (num_rows, num_cols))


def _grad_cam(model: ViTRegressor, batch: Batch, settings: MethodSettings, targets: Targets) -> Tensor:
    require_eval(model)
    layout = head_layout(model)
    parts = []
    for part in batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS)):
        tokens, gradients = _at_last_block(model, part, targets)
        patches, slopes = tokens[:, layout.num_special_tokens :], gradients[:, :, layout.num_special_tokens :]
        parts.append((slopes.mean(2, keepdim=True) * patches).sum(-1).clamp_min(0))
    return uniform_where_empty(torch.cat(parts, dim=1).unflatten(2, (layout.num_rows, layout.num_cols)))


def _at_last_block(model: ViTRegressor, batch: Batch, targets: Targets) -> tuple[Tensor, Tensor]:
    """Tokens `[image token channel]` that enter the last block, and gradients there `[scalar image token channel]`."""
    blocks = block_list(model)
    if blocks is None:
        raise ValueError(f"{type(model).__name__}: expected a model with a list of blocks")
    entered: list[Tensor] = []

    def enter(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        entered.append(args[0].detach().requires_grad_())  # so that the backward pass ends here
        return (entered[0], *args[1:])

    handle = blocks[-1].register_forward_pre_hook(enter)
    try:
        with torch.enable_grad():
            values = _signed(model(batch.pixel_values), batch.labels, targets)
            return entered[0].detach(), gradients_of(values, entered)[0]
    finally:
        handle.remove()


def _gradient_rollout(model: ViTRegressor, batch: Batch, settings: MethodSettings, targets: Targets) -> Tensor:
    require_eval(model)
    layout = layout_with_cls(model)
    parts = []
    for part in batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS)):
        maps: list[Tensor] = []
        with torch.enable_grad():
            pixel_values = part.pixel_values.detach().requires_grad_()  # frozen weights alone would give no graph
            predictions, layers = attentions(model, pixel_values, lambda weights: weights)
            gradients = gradients_of(_signed(predictions, part.labels, targets), layers)  # [scalar ...] per layer
        for row in range(len(targets)):
            products = zip(layers, gradients, strict=True)
            maps.append(rollout_of([(layer.detach() * found[row]).clamp_min(0) for layer, found in products], layout))
        parts.append(torch.stack(maps))
    return uniform_where_empty(torch.cat(parts, dim=1))


def _scalars(predictions: Tensor, labels: Tensor, targets: Targets) -> Tensor:
    return torch.stack([explained(predictions, labels, target) for target in targets])


def _signed(predictions: Tensor, labels: Tensor, targets: Targets) -> list[Tensor]:
    """The scalars of methods that clamp, `[image]` each: −ℓ for None."""
    return [explained(predictions, labels, target) * (-1 if target is None else 1) for target in targets]


# Methods that share passes between several scalars.
OF_TARGETS: dict[Callable[..., Tensor], OfTargets] = {
    **OF_TARGETS_IN_PIXELS,
    occlusion: _occluded,
    layer_grad_cam: _grad_cam,
    gradient_rollout: _gradient_rollout,
}
