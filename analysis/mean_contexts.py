"""What every head brings on average: its mean context over the reference pictures, computed once for a model.

Takes a loaded model and a source of pictures; gives the mean, which is kept in the cache. Knows no truth and no method.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.checked_arrays import arrays_sha256, read_checked, write_checked
from analysis.companions import reference_images
from analysis.models import BUNDLED_FOLDER, OpenedModel, open_model, preprocessed
from analysis.own_code import code_sha256
from analysis.pictures import PictureSource, open_source
from analysis.settings import BUNDLED_MODEL
from attribution.ablation import mean_context
from attribution.checkpoint import backbone_settings
from attribution.packaged import cache_folder
from attribution.vit import head_layout

REFERENCES_AT_ONCE = 16
SHIPPED = BUNDLED_FOLDER / "mean_context.safetensors"


@lru_cache(maxsize=2)
def held_context(opened: OpenedModel, source: PictureSource) -> Tensor:
    """`reference_context` of the models and pictures asked for last, not to be read again for every piece."""
    return reference_context(opened, source)


def reference_context(opened: OpenedModel, source: PictureSource) -> Tensor:
    """Mean context over the reference pictures, `[layer token head head_dim]` float64: shipped with the bundled model,
    else computed once, then cached."""
    shipped = shipped_context(opened, source)
    if shipped is not None:
        return shipped
    path = cache_folder() / f"mean-context-{made_of(opened, source, (mean_context,))}.safetensors"
    stored = read_checked(path)
    if stored is not None:
        return torch.from_numpy(stored["mean_context"])
    found = computed_context(opened, source)
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checked(path, {"mean_context": found.cpu().numpy()})
    return found


def computed_context(opened: OpenedModel, source: PictureSource) -> Tensor:
    """The same from the pictures themselves, some at a time."""
    lots = range(0, source.num_references, REFERENCES_AT_ONCE)
    pictures = (
        preprocessed(
            opened,
            reference_images(source, range(first, min(first + REFERENCES_AT_ONCE, source.num_references))),
        )
        for first in lots
    )
    return mean_context(opened.model, pictures)


def shipped_context(opened: OpenedModel, source: PictureSource) -> Tensor | None:
    """The mean context that comes with the bundled model (float16, as float64), where this is that model and these are
    the reference pictures it was made of; else None."""
    stored = read_checked(SHIPPED, _shipped_for(opened, source))
    return None if stored is None else torch.from_numpy(stored["mean_context"].astype(np.float64))


def origin(opened: OpenedModel, source: PictureSource) -> str:
    """What tells a mean context that was shipped from one that is computed, for what is stored by it: its digest."""
    stored = read_checked(SHIPPED, _shipped_for(opened, source))
    return "" if stored is None else arrays_sha256(stored)


def _shipped_for(opened: OpenedModel, source: PictureSource) -> str:
    mean_image = np.ascontiguousarray(source.draw(range(1)).mean_image)
    parts = {
        "model": opened.sha256,
        "config": asdict(opened.model.config),
        "backbone": backbone_settings(opened.model),
        "mean_image": hashlib.sha256(mean_image.tobytes()).hexdigest(),
        "references": [source.num_references, source.references_sha256],
    }
    return json.dumps(parts, sort_keys=True, default=str)


def ship(opened: OpenedModel, source: PictureSource, path: Path) -> Path:
    """Write the mean context, computed anew, as it is shipped."""
    found = computed_context(opened, source).cpu().numpy().astype(np.float16)
    return write_checked(path, {"mean_context": found}, _shipped_for(opened, source))


def made_of(opened: OpenedModel, source: PictureSource, runs: Sequence[Any]) -> str:
    """A digest of all that what is computed over the reference pictures depends on: the mean picture, the model and its
    settings, the libraries, and the code of the functions that it ``runs``."""
    mean_image = np.ascontiguousarray(source.draw(range(1)).mean_image)
    parts = [
        opened.sha256,
        hashlib.sha256(mean_image.tobytes()).hexdigest(),
        str(source.num_references),
        str(opened.model.device),
        str(opened.model.dtype),
        asdict(opened.model.config),
        backbone_settings(opened.model),
        *(version(name) for name in ("torch", "transformers", "peft")),
        code_sha256(*runs, reference_images, preprocessed, source.reference),
        source.references_sha256,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def main() -> int:
    """Write the mean context that is shipped with the bundled model, from its test pictures' reference pictures."""
    opened = open_model(BUNDLED_MODEL, "cpu")
    config, layout = opened.model.config, head_layout(opened.model)
    source = open_source(
        "default",
        2,
        seed=0,
        image_size=config.image_size,
        patch_size=config.image_size // layout.num_rows,
        target_names=config.target_names,
    )
    print(ship(opened, source, SHIPPED))
    return 0


if __name__ == "__main__":
    sys.exit(main())
