"""Data sets on disk: an image folder with a metadata table, written once and read back without the synthesizer.

Takes a :class:`~data_synth.dataset.ChirpDataset`; gives ``metadata.csv`` (one row a picture: ``file_name``,
``mask_file_name``, labels in units, chirp parameters), ``images/*.png`` (RGB) and ``masks/*.png`` (the region of every
pixel of the 480 x 640 canvas as its index in ``REGIONS``), and ``dataset.json`` (what made it). The same bytes whatever
the number of processes; a killed run goes on where it was, and draws anew what is not whole.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from .dataset import SYNTHESIZER_VERSION, ChirpDataset, label_map, labels_of, render_image
from .raster import REGIONS, canvas_weights, coverage_counts, patch_counts, patch_labels
from .writing import is_whole_png, only_run, remove_temporaries, write_atomic, write_png

CHUNK = 32
MASK_SIZE = (640, 480)
MAX_PIXELS = 4096 * 4096


def file_names(index: int) -> tuple[str, str]:
    """Where a picture and its mask are, below the folder."""
    return f"images/{index:07d}.png", f"masks/{index:07d}.png"


def _write_chunk(start: int, dataset: ChirpDataset, folder: Path) -> int:
    stop = min(start + CHUNK, dataset.count)
    written = 0
    for index in range(start, stop):
        if not is_written(folder, index, dataset.config.image_size):
            image_name, mask_name = file_names(index)
            scene = dataset.scene(index)
            write_png(folder / image_name, render_image(scene, dataset.config))
            write_png(folder / mask_name, label_map(scene))
        written += 1
    return written


def is_written(folder: Path, index: int, image_size: int) -> bool:
    """Whether a picture and its mask are there and whole."""
    image_name, mask_name = file_names(index)
    found_image = is_whole_png(folder / image_name, (image_size, image_size), "RGB")
    return found_image and is_whole_png(folder / mask_name, MASK_SIZE, "L")


def write_folder(dataset: ChirpDataset, folder: Path, num_processes: int = 1) -> Iterator[int]:
    """Write a data set; yields the number of pictures done as it goes. ``metadata.csv`` appears last.

    Raises ValueError if the folder holds another data set or files of others under its names, OSError if it cannot be
    written or another run is under way in it.
    """
    description = {
        "synthesizer": "data_synth",
        "version": SYNTHESIZER_VERSION,
        "split": dataset.split,
        "regions": list(REGIONS),
        **asdict(dataset.config),
    }
    table = metadata_table(dataset)
    require_own(folder, description, table)
    work = partial(_write_chunk, dataset=dataset, folder=folder)
    yield from fill_folder(folder, description, table, work, range(0, dataset.count, CHUNK), num_processes)


def require_own(folder: Path, description: dict[str, Any], table: pd.DataFrame) -> None:
    """Raise ValueError naming the file where a folder holds another data set, or names of one that nothing describes,
    or a metadata.csv that is not the first rows of this ``table``, nor it of that."""
    identity = folder / "dataset.json"
    if not os.path.lexists(identity):
        # A run that was killed at its very start has left empty folders.
        taken = ["metadata.csv"] if os.path.lexists(folder / "metadata.csv") else []
        taken += [name for name in ("images", "masks") if not _is_empty(folder / name)]
        if taken:
            raise ValueError(f"{identity}: not found, but {', '.join(taken)} beside it; choose another folder")
        return
    try:
        found = json.loads(identity.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{identity}: expected what describes a data set, got other text ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{identity}: expected what describes a data set, got a {type(found).__name__}")
    different = sorted(key for key in found.keys() | description.keys() if found.get(key) != description.get(key))
    if different:
        raise ValueError(
            f"{identity}: holds another data set (differs in {', '.join(different)}); choose another folder"
        )
    path = folder / "metadata.csv"
    if os.path.lexists(path):
        there, ours = path.read_bytes(), _as_csv(table)
        if not (ours.startswith(there) or there.startswith(ours)):
            raise ValueError(f"{path}: not the table of this data set; choose another folder, or move it away")


def fill_folder(
    folder: Path,
    description: dict[str, Any],
    table: pd.DataFrame,
    work: Callable[[Any], int],
    lots: Sequence[Any],
    num_processes: int,
) -> Iterator[int]:
    """Write what describes a data set, then its pictures lot by lot, then its table; yields the number of pictures
    done. The folder is held meanwhile: OSError where another run is under way in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with only_run(folder):
        require_own(folder, description, table)  # another run may have come and gone since the first look
        remove_temporaries(folder)
        write_atomic(folder / "dataset.json", (json.dumps(description, indent=2) + "\n").encode())
        for name in ("images", "masks"):
            (folder / name).mkdir(exist_ok=True)
        done = 0
        if num_processes == 1:
            for count in map(work, lots):
                yield (done := done + count)
        else:
            before = multiprocessing.active_children()
            with _pool(num_processes) as pool:
                drawing = [process for process in multiprocessing.active_children() if process not in before]
                for count in _until_one_dies(pool.imap_unordered(work, lots), drawing):
                    yield (done := done + count)
        write_atomic(folder / "metadata.csv", _as_csv(table))


def _until_one_dies(counts: Any, drawing: Sequence[multiprocessing.process.BaseProcess]) -> Iterator[int]:
    """What the processes of a pool give; OSError where one of them is gone: the pool starts another, but would wait for
    its lot without end."""
    while True:
        try:
            yield counts.next(timeout=1.0)
        except StopIteration:
            return
        except multiprocessing.TimeoutError:
            if not all(process.is_alive() for process in drawing):
                raise OSError(
                    "a process that draws was killed, perhaps for want of memory; the same command goes on from there"
                ) from None


def _pool(num_processes: int) -> Any:
    """Processes that leave Ctrl-C to this one, from their first moment on."""
    context = multiprocessing.get_context("spawn")
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return context.Pool(num_processes)
    resource_tracker.ensure_running()  # the first pool starts it otherwise, and it lets the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which they inherit
    try:
        return context.Pool(num_processes)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_empty(folder: Path) -> bool:
    return not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))


def _as_csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()


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
