"""The model to be explained, by name, and pictures in the form its methods take.

Takes ``bundled``, ``tiny-random`` or a folder; gives the loaded regressor and what is known of it. Knows no method.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.pictures import Pictures
from analysis.settings import BUNDLED_MODEL, CONTROL_MODEL
from attribution.backbone import tiny_backbone
from attribution.batch import Batch
from attribution.checkpoint import load_pretrained, weights_sha256
from attribution.vit import RegressorConfig, ViTRegressor
from data_synth import TARGET_NAMES, TARGET_UNITS

BUNDLED_FOLDER = Path(__file__).resolve().parents[1] / "attribution" / "models" / "default"


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A regressor ready to be explained. ``is_control``: random weights, whose heads mean nothing."""

    model: ViTRegressor
    name: str
    sha256: str
    is_control: bool

    @property
    def identity(self) -> dict[str, Any]:
        """What the model is, for manifests and stored scores."""
        return {"name": self.name, "weights_sha256": self.sha256, "control": self.is_control}


def control_model(seed: int = 0) -> ViTRegressor:
    """A small random ViT for 224 x 224 pictures (3 blocks x 4 heads, patch 14). Labels scaled as chirps are spread."""
    torch.manual_seed(seed)
    backbone = tiny_backbone("dinov2", seed=seed, image_size=224, patch_size=14)
    config = RegressorConfig(
        target_names=TARGET_NAMES,
        target_units=TARGET_UNITS,
        label_mean=(22.5, 50.0, 50.0),
        label_std=(13.0, 29.0, 29.0),
        image_size=224,
        backbone="tiny-dinov2",
    )
    return ViTRegressor(backbone, config).eval().requires_grad_(False)


def open_model(name: str, device: str) -> OpenedModel:
    """Load a model on a device. Raises ValueError or OSError with one line for whatever is missing or wrong."""
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: not available ({str(error).splitlines()[0]})") from error
    if name == CONTROL_MODEL:
        with torch.random.fork_rng(devices=[]):
            model = control_model().to(place)
        return OpenedModel(model, name, weights_sha256(model), is_control=True)
    folder = BUNDLED_FOLDER if name == BUNDLED_MODEL else Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--model {name}: expected {BUNDLED_MODEL}, {CONTROL_MODEL} or a folder written by attribution.finetune"
        )
    model = load_pretrained(folder, device=place)
    label = name if name == BUNDLED_MODEL else folder.resolve().name
    return OpenedModel(model, label, weights_sha256(model), is_control=False)


def make_batch(opened: OpenedModel, pictures: Pictures) -> Batch:
    """Pictures as the methods take them; the baseline is the mean picture, preprocessed."""
    model, config = opened.model, opened.model.config
    mean = torch.tensor(config.image_mean, dtype=torch.float64)
    std = torch.tensor(config.image_std, dtype=torch.float64)
    baseline = ((torch.from_numpy(pictures.mean_image) / 255 - mean) / std).permute(2, 0, 1)
    return Batch(
        pixel_values=preprocessed(opened, pictures.images),
        labels=model.standardise(pictures.labels).to(model.device, model.dtype),
        indices=torch.from_numpy(pictures.indices),
        baseline_pixel_values=baseline.to(model.device, model.dtype),
    )


def preprocessed(opened: OpenedModel, images: NDArray[np.uint8]) -> Tensor:
    """Pictures [image row col 3] as the model takes them, [image 3 row col], on its device."""
    return opened.model.preprocess(images).to(opened.model.device, opened.model.dtype)
