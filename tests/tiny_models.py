"""Tiny real transformers for the tests: random ones of every kind, and one wired by hand.

The wired model has two layers of two heads over 2 x 2 patches. A patch token carries the mean of its red channel in
channel 0; with `noise` 0 only head 1 of layer 1 does anything: under uniform attention it brings channel 0 of the
normalised tokens to channel 1 of the CLS token, which the regression head reads.
"""

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from attribution.backbone import tiny_backbone
from attribution.batch import Batch
from attribution.contexts import contexts
from attribution.vit import RegressorConfig, ViTRegressor, attention_modules, head_layout

KINDS = ("vit", "dinov2", "dinov2_lora", "registers")
CONFIG = RegressorConfig(
    ("start", "slope", "end"), ("s", "Hz", "Hz"), (1.0, 50.0, 60.0), (0.5, 20.0, 30.0), image_size=16
)
PLANTED_HEAD = (1, 1)


def tiny_model(kind: str = "dinov2", dtype: torch.dtype = torch.float64, seed: int = 0) -> ViTRegressor:
    """Three layers of two heads over 4 x 4 patches; every parameter drawn at random, LayerScale and LoRA included.

    transformers' ViT takes its softmax in float32 whatever the model's dtype, its DINOv2 does not: the finest numbers
    are those of DINOv2.
    """
    sizes = {"image_size": 16, "patch_size": 4, "num_layers": 3, "num_heads": 2, "hidden_size": 12}
    backbone: nn.Module
    if kind == "registers":
        config = Dinov2WithRegistersConfig(
            hidden_size=12, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=16, patch_size=4
        )
        backbone = Dinov2WithRegistersModel(config)
        backbone.set_attn_implementation("eager")
    else:
        backbone = tiny_backbone(kind.split("_")[0], seed, **sizes)
    if kind == "dinov2_lora":
        backbone = get_peft_model(backbone, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model = ViTRegressor(backbone, CONFIG)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.35 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype).eval().requires_grad_(False)


def tiny_batch(model: ViTRegressor, num_images: int = 4, seed: int = 0) -> Batch:
    """Random pictures, labels, baseline picture, donors and counterfactuals in the model's dtype."""
    generator = torch.Generator().manual_seed(seed)
    size, layout = model.config.image_size, head_layout(model)
    tokens = layout.num_special_tokens + layout.num_rows * layout.num_cols

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(model.dtype)

    labels = draw(num_images, len(model.config.target_names))
    return Batch(
        draw(num_images, 3, size, size),
        labels,
        torch.arange(num_images) + 10,
        draw(3, size, size),
        draw(num_images, 4, 3, size, size),
        draw(num_images, 3, size, size),
        draw(*(layout.num_layers, tokens, layout.num_heads, layout.head_dim)),
    )


def planted_model(noise: float = 0.0, seed: int = 0) -> ViTRegressor:
    """The wired model described above; `noise` scales small random weights of every attention and MLP."""
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=1, image_size=4, patch_size=2
    )
    backbone = Dinov2Model(config)
    backbone.set_attn_implementation("eager")
    names = RegressorConfig(("a", "b"), ("s", "Hz"), (0.0, 0.0), (1.0, 3.0), image_size=4)
    model = ViTRegressor(backbone, names).double()
    generator = torch.Generator().manual_seed(seed)
    layer, head = PLANTED_HEAD
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            inside = any(part in name for part in ("_proj", "mlp"))
            parameter.copy_(noise * torch.randn(parameter.shape, generator=generator) if inside else parameter * 0)
            if ("norm" in name and name.endswith("weight")) or "lambda" in name:
                parameter.fill_(1.0)
        embeddings = backbone.embeddings
        embeddings.patch_embeddings.projection.weight[0, 0] = 1 / 4
        embeddings.position_embeddings[:, :, 6], embeddings.position_embeddings[:, :, 7] = 3.0, -3.0
        attention = attention_modules(model)[layer]
        attention.v_proj.weight[4 * head, 0] = 1.0
        attention.o_proj.weight[1, 4 * head] = 1.0
        model.head[0].weight[0, 1], model.head[0].weight[1, 1] = 1.0, -1.0
        model.head[2].weight[0, 0] = model.head[2].weight[1, 1] = 1.0
        model.head[4].weight[:, 0], model.head[4].weight[:, 1] = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -2.0])
    return model.eval().requires_grad_(False)


def planted_batch(model: ViTRegressor, num_images: int = 6) -> Batch:
    """Pictures of one red level each; labels are twice the predictions, so that the answer could only be stronger."""
    levels = torch.tensor([-1.5, -1.0, -0.5, 0.5, 1.0, 1.5]).double()[:num_images]
    pixel_values = torch.zeros(num_images, 3, 4, 4, dtype=torch.float64)
    pixel_values[:, 0] = levels[:, None, None]
    with torch.no_grad():
        labels = 2 * model(pixel_values)
    zeros = torch.zeros_like(pixel_values)
    donors = torch.stack([pixel_values.roll(shift, 0) for shift in (1, 2)], dim=1)
    mean = contexts(model, pixel_values).mean(0)
    return Batch(pixel_values, labels, torch.arange(num_images), zeros[0], donors, zeros, mean)


def num_patches(model: ViTRegressor) -> int:
    """Patches of a picture."""
    layout = head_layout(model)
    return layout.num_rows * layout.num_cols
