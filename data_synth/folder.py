"""Data sets on disk: an image folder with a metadata table, written once and read back without the synthesizer.

Takes a :class:`~data_synth.dataset.ChirpDataset`; gives ``metadata.csv`` (one row a picture: ``file_name``,
``mask_file_name``, labels in units, chirp parameters), ``images/*.png`` (RGB) and ``masks/*.png`` (the region of every
pixel of the 480 x 640 canvas as its index in ``REGIONS``), and ``dataset.json`` (what made it). The same bytes whatever
the number of processes; a killed run goes on where it was.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from .dataset import SYNTHESIZER_VERSION, ChirpDataset, label_map, labels_of, render_image
from .raster import REGIONS, canvas_weights, coverage_counts, patch_counts, patch_labels

CHUNK = 32
MAX_PIXELS = 4096 * 4096


def write_atomic(path: Path, content: bytes) -> None:
    """Write bytes under a temporary name in the same folder, then rename: never half a file under the final name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG file under a temporary name, then rename."""
    # Renamed, not synced: a picture lost in a power cut is found missing and drawn again.
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)


def file_names(index: int) -> tuple[str, str]:
    """Where a picture and its mask are, below the folder."""
    return f"images/{index:07d}.png", f"masks/{index:07d}.png"


def _write_chunk(start: int, dataset: ChirpDataset, folder: Path) -> int:
    stop = min(start + CHUNK, dataset.count)
    written = 0
    for index in range(start, stop):
        image_name, mask_name = file_names(index)
        if not (folder / mask_name).exists() or not (folder / image_name).exists():
            scene = dataset.scene(index)
            write_png(folder / image_name, render_image(scene, dataset.config))
            write_png(folder / mask_name, label_map(scene))
        written += 1
    return written


def write_folder(dataset: ChirpDataset, folder: Path, num_processes: int = 1) -> Iterator[int]:
    """Write a data set; yields the number of pictures done as it goes. ``metadata.csv`` appears last.

    Raises ValueError if the folder holds another data set, OSError if it cannot be written.
    """
    description = {
        "synthesizer": "data_synth",
        "version": SYNTHESIZER_VERSION,
        "split": dataset.split,
        "regions": list(REGIONS),
        **asdict(dataset.config),
    }
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    identity = folder / "dataset.json"
    if identity.exists():
        found = json.loads(identity.read_text(encoding="utf-8"))
        if found != description:
            different = sorted(key for key in description if found.get(key) != description[key])
            raise ValueError(
                f"{identity}: holds another data set (differs in {', '.join(different)}); choose another folder"
            )
    else:
        write_atomic(identity, (json.dumps(description, indent=2) + "\n").encode())
    work = partial(_write_chunk, dataset=dataset, folder=folder)
    starts = range(0, dataset.count, CHUNK)
    done = 0
    if num_processes == 1:
        for count in map(work, starts):
            yield (done := done + count)
    else:
        with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
            for count in pool.imap_unordered(work, starts):
                yield (done := done + count)
    write_atomic(folder / "metadata.csv", metadata_table(dataset).to_csv(index=False, lineterminator="\n").encode())


def metadata_table(dataset: ChirpDataset) -> pd.DataFrame:
    """One row a picture: files, labels in units, chirp parameters."""
    rows = []
    for index in range(dataset.count):
        params = dataset.params(index)
        image_name, mask_name = file_names(index)
        start_time_s, start_freq_hz, end_freq_hz = labels_of(params)
        colorbar_max = dataset.colorbar_max(index)
        rows.append(
            {
                "file_name": image_name,
                "mask_file_name": mask_name,
                **({} if colorbar_max is None else {"colorbar_max": colorbar_max}),
                "start_time_s": start_time_s,
                "start_freq_hz": start_freq_hz,
                "end_freq_hz": end_freq_hz,
                "duration_s": params.duration_s,
                "chirp_type": params.chirp_type,
                "noise_level": params.noise_level,
                "snr_db": params.snr_db,
                "split": dataset.split,
            }
        )
    return pd.DataFrame(rows)


def read_mask(path: Path, image_size: int, patch_size: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Coverage float32 [region row col] and patch labels uint8 [row col] of a stored mask.

    Raises ValueError for a file that is no 480 x 640 8-bit greyscale PNG of region numbers.
    """
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.width * picture.height > MAX_PIXELS or picture.mode != "L":
                raise ValueError(f"{path}: expected an 8-bit greyscale mask, got {picture.mode} {picture.size}")
            labels = np.asarray(picture)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable PNG mask ({error})") from error
    try:
        counts = coverage_counts(labels, image_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    whole = canvas_weights(image_size)[2]
    coverage = counts.astype(np.float32) * np.float32(1 / whole)
    return coverage, patch_labels(patch_counts(counts, patch_size), whole * patch_size**2)
