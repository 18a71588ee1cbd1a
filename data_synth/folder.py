"""Data sets on disk: an image folder with a metadata table, written once and read back without the synthesizer.

Takes a :class:`~data_synth.dataset.ChirpDataset`; gives ``metadata.csv`` (one row a picture: ``file_name``,
``mask_file_name``, labels in units, chirp parameters), ``images/*.png`` (RGB) and ``masks/*.png`` (the region of every
pixel of the 480 x 640 canvas as its index in ``REGIONS``), and ``dataset.json`` (what made it). The same bytes whatever
the number of processes; a killed run goes on where it was, and draws anew what is not as it was written.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from .writing import is_own_png, only_run, remove_temporaries, write_atomic, write_png

CHUNK = 32
MAX_PIXELS = 4096 * 4096
LARGEST_SIDE = 4096  # of pictures, which nothing that reads these folders takes larger


def file_names(index: int) -> tuple[str, str]:
    """Where a picture and its mask are, below the folder."""
    return f"images/{index:07d}.png", f"masks/{index:07d}.png"


def _write_chunk(start: int, dataset: ChirpDataset, folder: Path) -> int:
    stop = min(start + CHUNK, dataset.count)
    made_from = json.dumps(_description(dataset))
    written = 0
    for index in range(start, stop):
        image_name, mask_name = file_names(index)
        # Both are looked at before either is drawn: a link in place of one of them is refused.
        if not all([is_own_png(folder, name, made_from) for name in (image_name, mask_name)]):
            scene = dataset.scene(index)
            write_png(folder, image_name, render_image(scene, dataset.config), made_from)
            write_png(folder, mask_name, label_map(scene), made_from)
        written += 1
    return written


def require_image_size(image_size: int) -> None:
    """Raise ValueError for a side of pictures, in pixels, that is none or beyond what is read back."""
    if image_size < 1:
        raise ValueError(f"image_size: expected at least 1, got {image_size}")
    if image_size > LARGEST_SIDE:
        raise ValueError(f"image_size: expected at most {LARGEST_SIDE}, got {image_size}")


def _description(dataset: ChirpDataset) -> dict[str, Any]:
    return {
        "synthesizer": "data_synth",
        "version": SYNTHESIZER_VERSION,
        "split": dataset.split,
        "regions": list(REGIONS),
        **asdict(dataset.config),
    }


def write_folder(dataset: ChirpDataset, folder: Path, num_processes: int = 1) -> Iterator[int]:
    """Write a data set; yields the number of pictures done as it goes. ``metadata.csv`` appears last.

    Raises ValueError if the folder holds another data set, files of others or links under its names, or pictures would
    be larger than is read back, OSError if it cannot be written or another run is under way in it.
    """
    require_image_size(dataset.config.image_size)
    description = _description(dataset)
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
    for path in (identity, folder / "metadata.csv"):
        if os.path.lexists(path) and not path.is_file():  # reading a pipe would wait for ever
            raise ValueError(f"{path}: expected a file or nothing")
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
    pool = None
    try:
        with _ctrl_c_held_back():
            pool = context.Pool(num_processes)
        return pool
    except KeyboardInterrupt:
        if pool is not None:
            pool.terminate()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block: another thread (of a library) may get the signal that this one blocks,
    and the exception would come here all the same, where half a process has been started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came:
        raise KeyboardInterrupt


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
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{path}: expected a PNG mask, not a {'folder' if path.is_dir() else 'device or pipe'}")
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
