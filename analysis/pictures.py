"""The pictures to be explained: from the synthesizer, or from a folder of one's own.

Takes a data name (a preset of ``data_synth``, or a folder with ``metadata.csv``) and a number; gives a
:class:`PictureSource`, which draws or reads the pictures it is asked for, a few at a time: pixels, labels in units,
patch labels and region masks where the truth is known, and the mean picture that path methods start from. Knows no
model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ft2font
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.checked_arrays import read_checked, write_checked
from analysis.own_code import code_sha256
from attribution.datasets import LabelledPictures, open_dataset
from attribution.packaged import cache_folder
from data_synth import (
    NUM_REFERENCE_PICTURES,
    REGIONS,
    SYNTHESIZER_VERSION,
    TEXT_REGIONS,
    ChirpDataset,
    SynthConfig,
    task_of,
)
from data_synth.chirp import PRESETS
from data_synth.dataset import render, render_image
from data_synth.folder import read_mask
from data_synth.published import PublishedFigure
from data_synth.twins import Edit, has_region, replace_text, twin_scene, without

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
    is given; ``mean_image`` float64 [row col 3] in 0 to 255.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.float64]
    indices: NDArray[np.int64]
    patch_labels: NDArray[np.uint8] | None
    masks: dict[str, NDArray[np.float32]] | None
    mean_image: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Twin:
    """A picture after one edit: ``image`` uint8 [row col 3], ``patch_labels`` uint8 [row col]."""

    image: NDArray[np.uint8]
    patch_labels: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class PictureSource:
    """``count`` pictures that are drawn or read when they are asked for.

    ``draw(rows)`` gives the pictures of these numbers, and remembers those it gave last. ``identity`` says what they
    are, for manifests. ``draw`` raises ValueError or OSError with one line for an unreadable or wrong-size picture or
    mask.

    ``reference(rows)`` gives some of the ``num_references`` reference pictures, uint8 [image row col 3]: training
    pictures, or where a folder has no others its own first ones (``references_are_own``). ``counterfactual(rows)``
    gives the pictures without the thing to be read, None where nobody knows them. ``occupancy()`` is the mean coverage
    of the thing to be read over the reference pictures, [row col], None where masks are not known. ``twin(edit, row)``
    gives a picture after an edit, None where the picture does not show the thing or cannot be edited so; it is itself
    None where pictures have no twins. ``answer_regions`` are those that tell what is to be read, where that is known.
    ``reference_labels(rows)`` are their labels in units, float64 [image target].
    ``references_sha256`` tells reference pictures that were read from others; drawn ones follow from ``identity``.
    """

    count: int
    draw: Callable[[Sequence[int]], Pictures]
    identity: dict[str, Any]
    reference: Callable[[Sequence[int]], NDArray[np.uint8]] | None = None
    reference_labels: Callable[[Sequence[int]], NDArray[np.float64]] | None = None
    num_references: int = 0
    references_are_own: bool = False
    counterfactual: Callable[[Sequence[int]], NDArray[np.uint8]] | None = None
    occupancy: Callable[[], NDArray[np.float64]] | None = None
    twin: Callable[[Edit, int], Twin | None] | None = None
    answer_regions: tuple[str, ...] = ()
    references_sha256: str = ""


def region_indices() -> dict[str, tuple[int, ...]]:
    """Scored region -> numbers of its regions in patch labels."""
    return {name: tuple(REGIONS.index(part) for part in parts) for name, parts in SCORED_REGIONS.items()}


def open_pictures(
    data: str, num_pictures: int, *, seed: int, image_size: int, patch_size: int, target_names: tuple[str, ...]
) -> Pictures:
    """All pictures of :func:`open_source` at once."""
    source = open_source(
        data, num_pictures, seed=seed, image_size=image_size, patch_size=patch_size, target_names=target_names
    )
    return source.draw(range(source.count))


def open_source(
    data: str, num_pictures: int, *, seed: int, image_size: int, patch_size: int, target_names: tuple[str, ...]
) -> PictureSource:
    """Pictures of the test split of a preset, or the first of a folder.

    Raises ValueError or OSError with one line for an unknown name, a missing or NaN label, an empty folder, or, among
    the first 512 pictures of a folder, an unreadable or wrong-size one.
    """
    if num_pictures < 2:
        raise ValueError(f"--num-pictures: expected at least 2, got {num_pictures}")
    if data in PRESETS:
        targets = task_of(data).target_names
        if target_names != targets:
            raise ValueError(
                f"--data {data}: its targets are {', '.join(targets)}, the model's {', '.join(target_names)}"
            )
        config = SynthConfig(preset=data, seed=seed, image_size=image_size, patch_size=patch_size)
        return _synthetic(config, num_pictures)
    if not Path(data).is_dir():
        raise FileNotFoundError(f"--data {data}: expected one of {', '.join(PRESETS)}, or a folder with metadata.csv")
    return _folder(Path(data), num_pictures, image_size, patch_size, target_names)


def _remembering(draw: Callable[[Sequence[int]], Pictures]) -> Callable[[Sequence[int]], Pictures]:
    """The same function, which does not draw the same pictures twice in a row."""
    last: list[tuple[tuple[int, ...], Pictures]] = []

    def remembered(rows: Sequence[int]) -> Pictures:
        wanted = tuple(rows)
        if not last or last[0][0] != wanted:
            last.clear()  # before drawing: only one lot is ever in memory
            last.append((wanted, draw(wanted)))
        return last[0][1]

    return remembered


def _masks_of(coverage: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Coverage of the regions of pixel localization, of pictures with coverage [region row col]."""
    parts = {name: [REGIONS.index(part) for part in SCORED_REGIONS[name]] for name in PIXEL_REGIONS}
    return {name: np.stack([each[numbers].sum(axis=0) for each in coverage]) for name, numbers in parts.items()}


def _synthetic(config: SynthConfig, num_pictures: int) -> PictureSource:
    dataset = ChirpDataset("test", num_pictures, config, compact=True)
    mean_image = reference_mean(config)

    def draw(rows: Sequence[int]) -> Pictures:
        samples = [dataset[row] for row in rows]
        return Pictures(
            images=np.stack([sample.image for sample in samples]),
            labels=np.stack([sample.labels for sample in samples]),
            indices=np.array(rows, dtype=np.int64),
            patch_labels=np.stack([sample.patch_labels for sample in samples]),
            masks=_masks_of([sample.coverage for sample in samples]),
            mean_image=mean_image,
        )

    identity = {
        "synthesizer": "data_synth",
        "version": SYNTHESIZER_VERSION,
        "split": "test",
        **asdict(config),
        "baseline": f"mean of training pictures 0 to {NUM_REFERENCE_PICTURES - 1}",
    }
    training = ChirpDataset("train", NUM_REFERENCE_PICTURES, config, compact=True)
    without_answer = without(task_of(config.preset).answer)
    return PictureSource(
        num_pictures,
        _remembering(draw),
        identity,
        reference=lambda rows: np.stack([training.image(row) for row in rows]),
        reference_labels=lambda rows: np.stack([training.labels(row) for row in rows]),
        num_references=NUM_REFERENCE_PICTURES,
        counterfactual=lambda rows: np.stack(
            [render_image(twin_scene(dataset, row, without_answer), config) for row in rows]
        ),
        occupancy=lambda: reference_occupancy(config),
        twin=lambda edit, row: _twin(dataset, edit, row),
        answer_regions=task_of(config.preset).answer_regions,
    )


def _twin(dataset: ChirpDataset, edit: Edit, row: int) -> Twin | None:
    scene = dataset.scene(row)
    if edit.kind != "chirp_elsewhere":
        fixed = isinstance(scene.projection, PublishedFigure)  # a figure without room for most edits
        if not has_region(scene, edit.region) or (fixed and edit != replace_text("title") and edit.kind != "without"):
            return None
    sample = render(twin_scene(dataset, row, edit), dataset.config)
    return Twin(sample.image, sample.patch_labels)


def reference_mean(config: SynthConfig) -> NDArray[np.float64]:
    """Mean of the reference pictures (training pictures 0 to 511), [row col 3] in 0 to 255; computed once, cached."""
    shape = (config.image_size, config.image_size, 3)
    return _mean_over_references("mean", config, shape, lambda dataset, index: dataset.image(index))


def reference_occupancy(config: SynthConfig) -> NDArray[np.float64]:
    """Mean coverage by the thing to be read over the reference pictures, [row col] in 0 to 1; computed once, cached."""
    regions = [REGIONS.index(name) for name in task_of(config.preset).answer_regions]
    shape = (config.image_size, config.image_size)
    return _mean_over_references(
        "occupancy", config, shape, lambda dataset, index: dataset[index].coverage[regions].sum(axis=0)
    )


def _mean_over_references(
    what: str,
    config: SynthConfig,
    shape: tuple[int, ...],
    of: Callable[[ChirpDataset, int], NDArray[Any]],
) -> NDArray[np.float64]:
    drawn_by = [code_sha256(ChirpDataset, of), matplotlib.__version__, str(matplotlib.ft2font.__freetype_version__)]
    key = json.dumps([NUM_REFERENCE_PICTURES, drawn_by, asdict(config)], sort_keys=True)
    path = cache_folder() / f"reference-{what}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    stored = read_checked(path)
    if stored is not None and stored["sum"].shape == shape:
        return stored["sum"] / NUM_REFERENCE_PICTURES
    dataset = ChirpDataset("train", NUM_REFERENCE_PICTURES, config, compact=True)
    total = np.zeros(shape)
    for index in range(NUM_REFERENCE_PICTURES):
        total += of(dataset, index)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checked(path, {"sum": total})
    return total / NUM_REFERENCE_PICTURES


def _folder(
    folder: Path, num_pictures: int, image_size: int, patch_size: int, target_names: tuple[str, ...]
) -> PictureSource:
    # The mean picture is that of the folder's first pictures, however many are explained: more of them is no new start.
    dataset = open_dataset(str(folder), "all", max(num_pictures, NUM_REFERENCE_PICTURES), targets=target_names)
    count = min(num_pictures, len(dataset))
    if count < 2:
        raise ValueError(f"{folder}: expected at least 2 pictures, got {count}")
    num_averaged = min(len(dataset), NUM_REFERENCE_PICTURES)
    total = np.zeros((image_size, image_size, 3))
    digest = hashlib.sha256()
    for row in range(num_averaged):
        image = _read(folder, dataset, row, image_size)["image"]
        total += image
        digest.update(np.ascontiguousarray(image).tobytes())
    mean_image = total / num_averaged
    table = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    mask_names = table["mask_file_name"].tolist() if "mask_file_name" in table else None

    def draw(rows: Sequence[int]) -> Pictures:
        items = [_read(folder, dataset, row, image_size) for row in rows]
        read = (
            None
            if mask_names is None
            else [read_mask(_below(folder, mask_names[row]), image_size, patch_size) for row in rows]
        )
        return Pictures(
            images=np.stack([item["image"] for item in items]),
            labels=np.stack([item["labels"] for item in items]),
            indices=np.array(rows, dtype=np.int64),
            patch_labels=None if read is None else np.stack([labels for _, labels in read]),
            masks=None if read is None else _masks_of([coverage for coverage, _ in read]),
            mean_image=mean_image,
        )

    identity = {
        "folder": folder.name,
        "baseline": f"mean of the first {num_averaged} pictures of the folder",
        "masks": mask_names is not None,
    }
    return PictureSource(
        count,
        _remembering(draw),
        identity,
        reference=lambda rows: np.stack([_read(folder, dataset, row, image_size)["image"] for row in rows]),
        reference_labels=lambda rows: np.stack([_read(folder, dataset, row, image_size)["labels"] for row in rows]),
        num_references=num_averaged,
        references_are_own=True,
        references_sha256=digest.hexdigest(),
    )


def _read(folder: Path, dataset: LabelledPictures, row: int, image_size: int) -> dict[str, NDArray[Any]]:
    item = dataset[row]
    if item["image"].shape != (image_size, image_size, 3):
        height, width = item["image"].shape[:2]
        raise ValueError(
            f"{folder}: picture {row}: expected {image_size} x {image_size} pixels, got {height} x {width}"
        )
    return item


def _below(folder: Path, name: object) -> Path:
    path = (folder / str(name)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{folder / 'metadata.csv'}: mask_file_name {name!r}: expected a path below the folder")
    return path
