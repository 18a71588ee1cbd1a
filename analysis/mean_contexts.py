"""What every head brings on average: its mean context over the reference pictures, computed once for a model.

Takes a loaded model and a source of pictures; gives the mean, which is kept in the cache. Knows no truth and no method.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.checked_arrays import read_checked, write_checked
from analysis.companions import reference_images
from analysis.models import OpenedModel, preprocessed
from analysis.own_code import code_sha256
from analysis.pictures import PictureSource
from attribution.ablation import mean_context
from attribution.checkpoint import backbone_settings
from attribution.packaged import cache_folder

REFERENCES_AT_ONCE = 16


@lru_cache(maxsize=2)
def held_context(opened: OpenedModel, source: PictureSource) -> Tensor:
    """`reference_context` of the models and pictures asked for last, not to be read again for every piece."""
    return reference_context(opened, source)


def reference_context(opened: OpenedModel, source: PictureSource) -> Tensor:
    """Mean context over the reference pictures, `[layer token head head_dim]` float64; computed once, then cached."""
    path = cache_folder() / f"mean-context-{made_of(opened, source, (mean_context,))}.safetensors"
    stored = read_checked(path)
    if stored is not None:
        return torch.from_numpy(stored["mean_context"])
    lots = range(0, source.num_references, REFERENCES_AT_ONCE)
    pictures = (
        preprocessed(
            opened,
            reference_images(source, range(first, min(first + REFERENCES_AT_ONCE, source.num_references))),
        )
        for first in lots
    )
    found = mean_context(opened.model, pictures)
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checked(path, {"mean_context": found.cpu().numpy()})
    return found


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
