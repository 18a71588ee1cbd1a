"""Labelled pictures by name, for training: an import string `module:callable`, or a folder of PNG files.

Gives a map-style dataset whose items are `{"image": uint8 [row col 3], "labels": float64 [target]}` with the attributes
`target_names`, `target_units` and `synthesizer` (a dict telling where the pictures come from), and optionally a method
`labels_array(count) -> float64 [image target]` that gives labels without drawing pictures, and a method
`pictures_sha256() -> str` by which a training that goes on knows its pictures again. Does not know models.

A callable is called as `callable(split=..., count=..., seed=...)`, split being `train`, `validation` or `test`.
A folder holds `metadata.csv` with the column `file_name`, label columns, and perhaps `split`; without that column a
tenth of the rows, drawn by the seed, is for validation. The split `all` is every row, in the order of the table.
"""

import hashlib
import importlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from PIL import Image

from attribution.packaged import sha256_of_file

MAX_PIXELS = 4096 * 4096
SPLITS = ("train", "validation", "test")
SAMPLED = 8  # pictures that stand for those of a callable


class LabelledPictures(Protocol):
    """What a data set offers."""

    target_names: tuple[str, ...]
    target_units: tuple[str, ...]
    synthesizer: dict[str, Any]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


def open_dataset(
    data: str,
    split: str,
    count: int,
    seed: int = 0,
    targets: tuple[str, ...] = (),
    target_units: tuple[str, ...] = (),
    options: dict[str, Any] | None = None,
) -> LabelledPictures:
    """The data set `data` names; `targets` and `target_units` are for folders, `options` go to the callable.

    Raises `ValueError` or `FileNotFoundError` naming what was expected.
    """
    if Path(data).is_dir():
        if options:
            raise ValueError(f"data {data}: a folder takes no data options, got {sorted(options)}")
        return PictureFolder(Path(data), split, count, seed, targets, target_units)
    module_name, colon, attribute = data.partition(":")
    if not colon:
        raise FileNotFoundError(f"data {data}: no such folder, and not of the form module:callable")
    if targets or target_units:
        raise ValueError(f"data {data}: targets are for folders, a callable names its own")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"data {data}: cannot be imported ({error})") from error
    try:
        dataset = function(split=split, count=count, seed=seed, **(options or {}))
    except TypeError as error:
        raise ValueError(f"data {data}: cannot be called with split, count, seed and options ({error})") from error
    for name in ("target_names", "target_units", "synthesizer", "__len__", "__getitem__"):
        if not hasattr(dataset, name):
            raise ValueError(f"data {data}: the {split} data set has no {name}")
    return dataset


def read_labels(dataset: Any, count: int) -> np.ndarray:
    """Labels of the first `count` pictures, float64 `[image target]`, not drawing pictures where that is offered."""
    count = min(count, len(dataset))
    if hasattr(dataset, "labels_array"):
        labels = np.asarray(dataset.labels_array(count), dtype=np.float64)
    else:
        labels = np.stack([np.asarray(dataset[index]["labels"], dtype=np.float64) for index in range(count)])
    if labels.shape != (count, len(dataset.target_names)) or not np.isfinite(labels).all():
        raise ValueError(f"labels: expected finite numbers [{count} {len(dataset.target_names)}], got {labels.shape}")
    return labels


def pictures_sha256(dataset: Any) -> str:
    """Digest of what a data set shows: as its own method `pictures_sha256` says, else that of a few of its pictures
    with their labels, evenly spaced, for drawing all of them would take as long as a training."""
    if hasattr(dataset, "pictures_sha256"):
        return str(dataset.pictures_sha256())
    digest = hashlib.sha256(str(len(dataset)).encode())
    for index in sorted({*np.linspace(0, len(dataset) - 1, SAMPLED).astype(int).tolist()}):
        item = dataset[index]
        image, labels = np.ascontiguousarray(item["image"]), np.asarray(item["labels"], dtype=np.float64)
        digest.update(f"{image.dtype} {image.shape}".encode() + image.tobytes() + labels.tobytes())
    return digest.hexdigest()


class PictureFolder:
    """Square RGB pictures in PNG files, with their labels in `metadata.csv`."""

    def __init__(
        self,
        folder: Path,
        split: str,
        count: int,
        seed: int,
        targets: tuple[str, ...],
        units: tuple[str, ...],
    ) -> None:
        table_path = folder / "metadata.csv"
        if split not in (*SPLITS, "all"):
            raise ValueError(f"{folder}: split {split!r}, expected one of {', '.join(SPLITS)}, all")
        if not targets:
            raise ValueError(f"{table_path}: name its label columns with --targets a,b,c")
        if units and len(units) != len(targets):
            raise ValueError(f"{table_path}: {len(units)} units for {len(targets)} targets")
        if not table_path.is_file():
            raise FileNotFoundError(f"{table_path}: not found, expected file_name and label columns")
        table = pd.read_csv(table_path, dtype=str, keep_default_na=False)
        missing = [name for name in ("file_name", *targets) if name not in table.columns]
        if missing:
            raise ValueError(f"{table_path}: no column {', '.join(missing)}, found {', '.join(table.columns)}")
        rows = _rows_of_split(table, table_path, split, seed)[:count]
        if len(rows) == 0:
            raise ValueError(f"{table_path}: no pictures for the split {split}")
        self.target_names, self.target_units = targets, units or ("",) * len(targets)
        self.synthesizer = {
            "name": folder.name,
            "metadata_sha256": hashlib.sha256(table_path.read_bytes()).hexdigest(),
        }
        self._labels = np.array([[_number(table_path, table, row, name) for name in targets] for row in rows])
        self._paths = [_path_below(folder, table_path, table, row) for row in rows]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": read_picture(self._paths[index]), "labels": self._labels[index]}

    def labels_array(self, count: int) -> np.ndarray:
        """Labels of the first `count` pictures, float64 `[image target]`."""
        return self._labels[:count]

    def pictures_sha256(self) -> str:
        """Digest of the bytes of all its files, in order. Raises `OSError` or `ValueError` for one that is no file."""
        digest = hashlib.sha256()
        for path in self._paths:
            _require_file(path)
            digest.update(bytes.fromhex(sha256_of_file(path)))
        return digest.hexdigest()


def _require_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found")
    if not path.is_file():  # reading a pipe would wait for ever
        raise ValueError(f"{path}: expected a PNG file, not a {'folder' if path.is_dir() else 'device or pipe'}")


def read_picture(path: Path) -> np.ndarray:
    """The pixels uint8 `[row col 3]` of a PNG file, RGB or opaque RGBA; refuses other formats, modes and sizes."""
    _require_file(path)
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS or image.mode not in ("RGB", "RGBA"):
                found = f"{image.mode} of {image.width} x {image.height}"
                raise ValueError(f"{path}: expected RGB or RGBA of at most {MAX_PIXELS} pixels, got {found}")
            pixels = np.asarray(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable PNG file ({error})") from error
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        raise ValueError(f"{path}: has transparent pixels, expected opaque ones")
    return np.ascontiguousarray(pixels[..., :3])


def _rows_of_split(table: pd.DataFrame, path: Path, split: str, seed: int) -> list[int]:
    if "split" in table.columns:
        unknown = table.index[~table["split"].isin(SPLITS)]
        if len(unknown):
            found = table["split"][unknown[0]]
            raise ValueError(f"{path}: row {unknown[0] + 2}, split: expected one of {', '.join(SPLITS)}, got {found!r}")
        return list(range(len(table)) if split == "all" else np.flatnonzero(table["split"] == split))
    if split == "all":
        return list(range(len(table)))
    order = np.random.default_rng(seed).permutation(len(table))
    num_validation = max(1, len(table) // 10)
    if split == "test":
        raise ValueError(f"{path}: has no column split, so it has no test pictures")
    return sorted(order[:num_validation] if split == "validation" else order[num_validation:])


def _number(path: Path, table: pd.DataFrame, row: int, name: str) -> float:
    text = str(table[name].iloc[row])
    try:
        value = float("nan" if "_" in text else text)  # Python reads 1_0 as 10
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ValueError(f"{path}: row {row + 2}, {name}: expected a finite number, got {text!r}")
    return value


def _path_below(folder: Path, table_path: Path, table: pd.DataFrame, row: int) -> Path:
    name = str(table["file_name"].iloc[row])
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{table_path}: row {row + 2}, file_name: {name!r} lies outside the folder")
    return path
