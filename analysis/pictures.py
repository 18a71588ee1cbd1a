"""The pictures to be explained: from the synthesizer, or from a folder of one's own.

Takes a data name (a preset of ``data_synth``, or a folder with ``metadata.csv``) and a number; gives
:class:`Pictures`: pixels, labels in units, patch labels and region masks where the truth is known, and the mean picture
that path methods start from. Knows no model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ft2font
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

import data_synth
from analysis.report import write_atomically
from attribution.datasets import open_dataset, read_labels
from attribution.packaged import cache_folder
from data_synth import (
    NUM_REFERENCE_PICTURES,
    REGIONS,
    SYNTHESIZER_VERSION,
    TARGET_NAMES,
    TEXT_REGIONS,
    ChirpDataset,
    SynthConfig,
)
from data_synth.chirp import PRESETS
from data_synth.folder import read_mask

# What localization is scored on: name -> regions it is made of, coarse ones first.
SCORED_REGIONS: dict[str, tuple[str, ...]] = {
    "chirp": ("chirp",),
    "text": TEXT_REGIONS,
    "colorbar": ("colorbar",),
    **{name: (name,) for name in TEXT_REGIONS},
    "frame": ("frame",),
    "plot_background": ("plot_background",),
    "margin": ("margin",),
}
PIXEL_REGIONS = ("chirp", "text", "colorbar")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures and what is known of them.

    ``images`` uint8 [image row col 3]; ``labels`` float64 [image target] in units; ``indices`` int64 [image];
    ``patch_labels`` uint8 [image row col] and ``masks`` name -> float32 [image row col] coverage, None where no truth
    is given; ``mean_image`` float64 [row col 3] in 0 to 255; ``identity`` says what they are, for manifests.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.float64]
    indices: NDArray[np.int64]
    patch_labels: NDArray[np.uint8] | None
    masks: dict[str, NDArray[np.float32]] | None
    mean_image: NDArray[np.float64]
    identity: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Over pixels, labels, patch labels and the mean picture."""
        digest = hashlib.sha256()
        for array in (self.images, self.labels, self.patch_labels, self.mean_image):
            digest.update(np.ascontiguousarray(array).tobytes() if array is not None else b"none")
        return digest.hexdigest()


def region_indices() -> dict[str, tuple[int, ...]]:
    """Scored region -> numbers of its regions in patch labels."""
    return {name: tuple(REGIONS.index(part) for part in parts) for name, parts in SCORED_REGIONS.items()}


def open_pictures(
    data: str, num_pictures: int, *, seed: int, image_size: int, patch_size: int, target_names: tuple[str, ...]
) -> Pictures:
    """Pictures of the test split of a preset, or the first of a folder.

    Raises ValueError or OSError with one line for an unknown name, an unreadable or wrong-size picture, a missing or
    NaN label, a mask of another size, or an empty folder.
    """
    if num_pictures < 2:
        raise ValueError(f"--num-pictures: expected at least 2, got {num_pictures}")
    if data in PRESETS:
        if target_names != TARGET_NAMES:
            raise ValueError(
                f"--data {data}: its targets are {', '.join(TARGET_NAMES)}, the model's {', '.join(target_names)}"
            )
        config = SynthConfig(preset=data, seed=seed, image_size=image_size, patch_size=patch_size)
        return _synthetic(config, num_pictures)
    if not Path(data).is_dir():
        raise FileNotFoundError(f"--data {data}: expected one of {', '.join(PRESETS)}, or a folder with metadata.csv")
    return _folder(Path(data), num_pictures, image_size, patch_size, target_names)


def _synthetic(config: SynthConfig, num_pictures: int) -> Pictures:
    dataset = ChirpDataset("test", num_pictures, config)
    samples = [dataset[index] for index in range(num_pictures)]
    parts = {name: [REGIONS.index(part) for part in SCORED_REGIONS[name]] for name in PIXEL_REGIONS}
    return Pictures(
        images=np.stack([sample.image for sample in samples]),
        labels=np.stack([sample.labels for sample in samples]),
        indices=np.arange(num_pictures),
        patch_labels=np.stack([sample.patch_labels for sample in samples]),
        masks={
            name: np.stack([sample.coverage[numbers].sum(axis=0) for sample in samples])
            for name, numbers in parts.items()
        },
        mean_image=reference_mean(config),
        identity={
            "synthesizer": "data_synth",
            "version": SYNTHESIZER_VERSION,
            "split": "test",
            **asdict(config),
            "baseline": f"mean of training pictures 0 to {NUM_REFERENCE_PICTURES - 1}",
        },
    )


def reference_mean(config: SynthConfig) -> NDArray[np.float64]:
    """Mean of the reference pictures (training pictures 0 to 511), [row col 3]; computed once, then cached."""
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(data_synth.__file__).parent.glob("*.py"))))
    drawn_by = [code.hexdigest(), matplotlib.__version__, str(matplotlib.ft2font.__freetype_version__)]
    key = json.dumps([NUM_REFERENCE_PICTURES, drawn_by, asdict(config)], sort_keys=True)
    path = cache_folder() / f"reference-mean-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    shape = (config.image_size, config.image_size, 3)
    try:
        total = load_file(path)["sum"]
        if total.shape == shape and np.isfinite(total).all():
            return total / NUM_REFERENCE_PICTURES
    except (FileNotFoundError, SafetensorError, KeyError):
        pass  # not there, or not whole: computed anew
    dataset = ChirpDataset("train", NUM_REFERENCE_PICTURES, config)
    total = np.zeros(shape)
    for index in range(NUM_REFERENCE_PICTURES):
        total += dataset.image(index)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save({"sum": total}))
    return total / NUM_REFERENCE_PICTURES


def _folder(
    folder: Path, num_pictures: int, image_size: int, patch_size: int, target_names: tuple[str, ...]
) -> Pictures:
    dataset = open_dataset(str(folder), "all", num_pictures, targets=target_names)
    count = len(dataset)
    if count < 2:
        raise ValueError(f"{folder}: expected at least 2 pictures, got {count}")
    images = []
    for index in range(count):
        image = dataset[index]["image"]
        if image.shape != (image_size, image_size, 3):
            raise ValueError(
                f"{folder}: picture {index}: expected {image_size} x {image_size} pixels, got "
                f"{image.shape[0]} x {image.shape[1]}"
            )
        images.append(image)
    table = pd.read_csv(folder / "metadata.csv")
    patch_labels, masks = None, None
    if "mask_file_name" in table:
        read = [read_mask(_below(folder, name), image_size, patch_size) for name in table["mask_file_name"][:count]]
        patch_labels = np.stack([labels for _, labels in read])
        masks = {
            name: np.stack(
                [coverage[[REGIONS.index(p) for p in SCORED_REGIONS[name]]].sum(axis=0) for coverage, _ in read]
            )
            for name in PIXEL_REGIONS
        }
    stacked = np.stack(images)
    return Pictures(
        images=stacked,
        labels=read_labels(dataset, count),
        indices=np.arange(count),
        patch_labels=patch_labels,
        masks=masks,
        mean_image=stacked.mean(axis=0, dtype=np.float64),
        identity={"folder": folder.name, "baseline": "mean of the pictures themselves", "masks": masks is not None},
    )


def _below(folder: Path, name: object) -> Path:
    path = (folder / str(name)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{folder / 'metadata.csv'}: mask_file_name {name!r}: expected a path below the folder")
    return path
