"""The regressor under study and the one seam at which its attention heads are reached.

Takes a vision transformer whose first token is read (ViT, DeiT, DINOv2 with or without registers, DINOv3; PEFT-wrapped
or not; timm's layout too) and pictures; gives standardised predictions `[image target]`, the layout of the heads, and
gates on them. Does not know what the pictures show, how the model was trained, or where its weights lie.

Conventions. Layers and heads count from 0 in forward order. The seam is the *input* of each block's output projection,
`[image token head*head_dim]`: the heads' contexts side by side. What comes out of that projection belongs to no head.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class RegressorConfig:
    """What is needed to turn pictures into predictions in units: targets, label scaling, preprocessing, provenance.

    `label_mean` and `label_std` are in `target_units`; `image_mean` and `image_std` apply to RGB in [0, 1].
    """

    target_names: tuple[str, ...]
    target_units: tuple[str, ...]
    label_mean: tuple[float, ...]
    label_std: tuple[float, ...]
    image_size: int = 224
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD
    backbone: str = "packaged"
    synthesizer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {len(self.target_names), len(self.target_units), len(self.label_mean), len(self.label_std)}
        if len(sizes) != 1 or not self.target_names:
            raise ValueError(
                "target_names, target_units, label_mean and label_std must have one entry per target, got "
                f"{len(self.target_names)}, {len(self.target_units)}, {len(self.label_mean)}, {len(self.label_std)}"
            )
        if len(self.image_mean) != 3 or len(self.image_std) != 3:
            raise ValueError("image_mean and image_std must have three entries (red, green, blue)")
        scales = (*self.label_mean, *self.label_std, *self.image_mean, *self.image_std)
        if not all(math.isfinite(value) for value in scales) or min(*self.label_std, *self.image_std) <= 0:
            raise ValueError("label and image means must be finite, standard deviations finite and positive")


class ViTRegressor(nn.Module):
    """Backbone, first token, then Linear 256, ReLU, Linear 128, ReLU, Linear per target (Bahador 2025, 2503.22713)."""

    def __init__(self, backbone: nn.Module, config: RegressorConfig, hidden_size: int | None = None) -> None:
        super().__init__()
        settings: Any = unwrapped(backbone).config if hidden_size is None else None
        hidden_size = settings.hidden_size if hidden_size is None else hidden_size
        self.backbone = backbone
        self.config = config
        self.head = nn.Sequential(
            nn.Linear(hidden_size, 256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Linear(128, len(config.target_names)),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Standardised predictions `[image target]` of preprocessed pictures `[image 3 row col]`."""
        tokens = _last_hidden_state(self.backbone, pixel_values)  # [image token channel]
        return self.head(tokens[:, 0].to(self.dtype))

    def preprocess(self, images: np.ndarray | Tensor) -> Tensor:
        """Pixel values float32 `[image 3 row col]` of RGB pictures uint8 `[image row col 3]`; refuses anything else."""
        pictures = torch.as_tensor(np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images)
        size = self.config.image_size
        if pictures.dtype != torch.uint8 or pictures.dim() != 4 or tuple(pictures.shape[1:]) != (size, size, 3):
            raise ValueError(
                f"pictures: expected uint8 [image {size} {size} 3], got {pictures.dtype} {list(pictures.shape)}"
            )
        values = pictures.to(self.device).permute(0, 3, 1, 2).float() / 255
        mean = torch.tensor(self.config.image_mean, device=values.device).view(3, 1, 1)
        std = torch.tensor(self.config.image_std, device=values.device).view(3, 1, 1)
        return (values - mean) / std

    def standardise(self, labels: np.ndarray | Tensor) -> Tensor:
        """Standardised labels `[image target]`, in the head's dtype, of finite labels in units."""
        values = torch.as_tensor(labels, dtype=torch.float64, device=self.device)
        if values.dim() != 2 or values.shape[1] != len(self.config.target_names):
            expected = f"[image {len(self.config.target_names)}]"
            raise ValueError(
                f"labels: expected {expected} ({', '.join(self.config.target_names)}), got {list(values.shape)}"
            )
        if not bool(torch.isfinite(values).all()):
            row, column = (~torch.isfinite(values)).nonzero()[0].tolist()
            raise ValueError(f"labels: row {row}, {self.config.target_names[column]}: expected a finite number")
        mean, std = self._label_scale(values)
        return ((values - mean) / std).to(self.dtype)

    def to_units(self, predictions: Tensor) -> Tensor:
        """Predictions in `target_units`, float64 `[image target]`."""
        values = predictions.to(torch.float64)
        mean, std = self._label_scale(values)
        return values * std + mean

    def set_attn_implementation(self, name: str) -> None:
        """Switch the attention of the backbone: `eager` (gives maps) or `sdpa` (faster, gives none)."""
        base: Any = unwrapped(self.backbone)
        if hasattr(base, "set_attn_implementation"):
            base.set_attn_implementation(name)
        elif name != "eager":
            raise ValueError(f"{type(base).__name__} has no choice of attention implementation, got {name!r}")

    @property
    def device(self) -> torch.device:
        """The device of the regression head (the whole model lies on one device)."""
        return next(self.head.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the regression head, hence of predictions and labels."""
        return next(self.head.parameters()).dtype

    def _label_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.config.label_mean), like.new_tensor(self.config.label_std)


def unwrapped(backbone: nn.Module) -> nn.Module:
    """The transformer inside a PEFT wrapper, or the transformer itself."""
    wrapped: Any = backbone
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else backbone


def _last_hidden_state(backbone: nn.Module, pixel_values: Tensor) -> Tensor:
    base: Any = unwrapped(backbone)
    kwargs: dict[str, Any] = {}
    if "interpolate_pos_encoding" in inspect.signature(base.forward).parameters:
        size = getattr(base.config, "image_size", None)
        rows, cols = (size, size) if isinstance(size, int) or size is None else size
        kwargs["interpolate_pos_encoding"] = tuple(pixel_values.shape[2:]) != (rows, cols)
    output = backbone(pixel_values.to(next(base.parameters()).dtype), **kwargs)
    return output if isinstance(output, Tensor) else output.last_hidden_state


def loss_per_target(predictions: Tensor, labels: Tensor) -> Tensor:
    """Squared error `[image target]` of standardised predictions and labels."""
    if predictions.shape != labels.shape:
        raise ValueError(f"predictions {list(predictions.shape)} and labels {list(labels.shape)} differ in shape")
    return (predictions - labels) ** 2


def loss_per_image(predictions: Tensor, labels: Tensor) -> Tensor:
    """Mean over the targets of the squared error, `[image]`, in standardised units."""
    return loss_per_target(predictions, labels).mean(dim=-1)


@dataclass(frozen=True)
class HeadLayout:
    """Sizes of the heads and of the token grid: tokens are `num_special_tokens`, then rows × cols patches."""

    num_layers: int
    num_heads: int
    head_dim: int
    num_special_tokens: int
    num_rows: int
    num_cols: int


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The self-attention modules in forward order, recognised by what they hold and never by their path."""
    found = [module for module in model.modules() if _is_split_attention(module) or _is_fused_attention(module)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} holds no attention module with q_proj, k_proj, v_proj, o_proj or qkv, proj"
        )
    return found


def _is_split_attention(module: nn.Module) -> bool:
    return all(isinstance(getattr(module, name, None), nn.Module) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))


def _is_fused_attention(module: nn.Module) -> bool:
    parts = all(isinstance(getattr(module, name, None), nn.Module) for name in ("qkv", "proj"))
    return parts and isinstance(getattr(module, "num_heads", None), int)


def num_heads_of(attention: nn.Module) -> int:
    """Number of heads of one attention module."""
    for name in ("num_attention_heads", "num_heads"):
        if isinstance(getattr(attention, name, None), int):
            return getattr(attention, name)
    raise ValueError(f"{type(attention).__name__} tells no number of heads (num_attention_heads or num_heads)")


def output_projections(model: nn.Module) -> list[nn.Linear]:
    """The output projection of every attention module, in forward order; the heads are the columns of its weight.

    Raises `ValueError` where it is not a plain `nn.Linear`: a LoRA on it would hide weights from who reads `.weight`.
    """
    projections = []
    for layer, module in enumerate(attention_modules(model)):
        projection = module.o_proj if _is_split_attention(module) else module.proj
        if not isinstance(projection, nn.Linear):
            raise ValueError(
                f"layer {layer}: the output projection is a {type(projection).__name__}, expected a plain nn.Linear"
            )
        if projection.in_features % num_heads_of(module):
            raise ValueError(
                f"layer {layer}: {projection.in_features} channels do not split into {num_heads_of(module)} heads"
            )
        projections.append(projection)
    return projections


def _num_heads(model: nn.Module) -> int:
    counts = {num_heads_of(module) for module in attention_modules(model)}
    if len(counts) != 1:
        raise ValueError(f"the layers differ in their number of heads: {sorted(counts)}")
    return counts.pop()


def head_layout(model: ViTRegressor) -> HeadLayout:
    """The layout, read off one forward pass of a blank picture; leaves random state, flags and weights as they were."""
    projections = output_projections(model)
    convolutions = [module for module in model.backbone.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise ValueError(f"{type(unwrapped(model.backbone)).__name__} has no patch embedding (Conv2d)")
    seen: dict[str, torch.Size] = {}
    handles = [
        projections[0].register_forward_pre_hook(lambda _, args: seen.update(tokens=args[0].shape)),
        convolutions[0].register_forward_hook(lambda _, args, output: seen.update(grid=output.shape)),
    ]
    size, dtype = model.config.image_size, convolutions[0].weight.dtype
    blank = torch.zeros(1, 3, size, size, dtype=dtype, device=model.device)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            _last_hidden_state(model.backbone, blank)
    finally:
        for handle in handles:
            handle.remove()
    num_heads = _num_heads(model)
    num_rows, num_cols = seen["grid"][2:]
    return HeadLayout(
        num_layers=len(projections),
        num_heads=num_heads,
        head_dim=projections[0].in_features // num_heads,
        num_special_tokens=seen["tokens"][1] - num_rows * num_cols,
        num_rows=num_rows,
        num_cols=num_cols,
    )


@contextmanager
def gated(model: nn.Module, gates: Tensor, replacement: Tensor | None = None) -> Iterator[None]:
    """Inside the block every head's context z becomes g·z + (1 − g)·b, at the input of its output projection.

    `gates` is `[layer head]` or `[image layer head]` (1 = intact, 0 = removed; gradients flow to it); `replacement` b
    is None for zero, or broadcastable to `[image layer token head head_dim]`. With all gates 1 the model is unchanged
    to the bit. Hooks are removed on leaving, also after an error; weights and train flags are never touched.
    """
    projections, num_heads = output_projections(model), _num_heads(model)
    if gates.dim() not in (2, 3) or tuple(gates.shape[-2:]) != (len(projections), num_heads):
        expected = f"[{len(projections)} {num_heads}] or [image {len(projections)} {num_heads}]"
        raise ValueError(f"gates: expected {expected} (layer, head), got {list(gates.shape)}")
    if replacement is not None:
        if replacement.dim() > 5:
            raise ValueError(f"replacement: expected [image layer token head head_dim], got {list(replacement.shape)}")
        replacement = replacement.reshape((1,) * (5 - replacement.dim()) + tuple(replacement.shape))
        if replacement.shape[1] not in (1, len(projections)):
            raise ValueError(f"replacement: expected 1 or {len(projections)} layers, got {replacement.shape[1]}")
    handles = []
    try:
        for layer, projection in enumerate(projections):
            handles.append(projection.register_forward_pre_hook(_gate_hook(gates, replacement, layer, num_heads)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gate_hook(gates: Tensor, replacement: Tensor | None, layer: int, num_heads: int) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        context = args[0].unflatten(-1, (num_heads, -1))  # [image token head head_dim]
        gate = gates[..., layer, :].to(context.device, context.dtype)
        if gate.dim() == 2:
            if gate.shape[0] not in (1, context.shape[0]):
                raise ValueError(f"gates for {gate.shape[0]} pictures in a pass of {context.shape[0]}")
            gate = gate[:, None, :]  # [image token head]
        gate = gate[..., None]
        gated_context = gate * context
        if replacement is not None:
            value = replacement[:, layer if replacement.shape[1] > 1 else 0]
            gated_context = gated_context + (1 - gate) * value.to(context.device, context.dtype)
        return (gated_context.flatten(-2), *args[1:])

    return hook


def require_eval(model: nn.Module) -> None:
    """Raise `ValueError` where any part of the model is in train mode: dropout would make every score a lottery."""
    training: Sequence[str] = [
        name or type(model).__name__ for name, module in model.named_modules() if module.training
    ]
    if training:
        raise ValueError(f"the model must be in eval mode, {len(training)} modules are not (first: {training[0]})")
