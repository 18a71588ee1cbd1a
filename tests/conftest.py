"""Tiny real models: three layers of four heads on 32 × 32 pictures of 4 × 4 patches, float64, eval mode, eager."""

import os
from collections.abc import Callable

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may wait for a network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: more threads only wait for each other

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from attribution.backbone import tiny_backbone
from attribution.batch import Batch
from attribution.vit import RegressorConfig, ViTRegressor

CONFIG = RegressorConfig(
    target_names=("start", "low", "high"),
    target_units=("s", "Hz", "Hz"),
    label_mean=(20.0, 50.0, 60.0),
    label_std=(10.0, 30.0, 25.0),
    image_size=32,
    backbone="tiny-dinov2",
)


def make_regressor(kind: str, lora: bool, seed: int = 0) -> ViTRegressor:
    """A float32 regressor on a tiny backbone, perhaps with LoRA on query and value whose B is not zero."""
    backbone = tiny_backbone(kind, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if lora:
            targets = ["q_proj", "v_proj"]
            backbone = get_peft_model(backbone, LoraConfig(r=2, lora_alpha=4, target_modules=targets))
            for name, value in backbone.named_parameters():
                if ".lora_B." in name:
                    torch.nn.init.normal_(value, std=0.2)
        model = ViTRegressor(backbone, CONFIG)
    return model.eval().requires_grad_(False)


@pytest.fixture
def regressor_factory() -> Callable[..., ViTRegressor]:
    """`make(kind, lora, seed=0)`, float32."""
    return make_regressor


@pytest.fixture
def tiny_vit() -> ViTRegressor:
    """A plain ViT. Its eager attention takes the softmax in float32: derivatives are exact to 1e-7, not to 1e-12."""
    return make_regressor("vit", lora=False).double()


@pytest.fixture
def tiny_dinov2() -> ViTRegressor:
    """A DINOv2 with LayerScale, wrapped by PEFT, B not zero; float64 throughout."""
    return make_regressor("dinov2", lora=True).double()


@pytest.fixture
def tiny_batch() -> Callable[..., Batch]:
    """`make(model, num_images=3, seed=0)`: random pictures and labels in the model's dtype."""

    def make(model: ViTRegressor, num_images: int = 3, seed: int = 0) -> Batch:
        rng = np.random.default_rng(seed)
        size, num_targets = model.config.image_size, len(model.config.target_names)
        images = rng.integers(0, 256, (num_images, size, size, 3), dtype=np.uint8)
        pixel_values = model.preprocess(images).to(model.dtype)
        labels = torch.from_numpy(rng.normal(size=(num_images, num_targets))).to(model.dtype)
        return Batch(pixel_values, labels, torch.arange(num_images), pixel_values.mean(0))

    return make


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A `finished_run.FinishedRun`; not to be written to."""
    from finished_run import make_run

    return make_run(tmp_path_factory.mktemp("finished") / "tiny")
