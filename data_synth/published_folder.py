"""Make a data folder of this project from one that `chirp-spectrogram-generator` wrote, with the masks that one lacks.

examples:
  python -m data_synth.published_folder output chirps
  python -m data_synth.published_folder output chirps --resize bilinear --max-pictures 1000
  python -m analysis.compare --data chirps --output-dir results/chirps
  python -m attribution.finetune --data chirps --targets start_time_s,start_freq_hz,end_freq_hz --output-dir model

Takes a folder as chirp-spectrogram-generator 0.1.6 writes it: labels.csv, whose row i (from 1) belongs to
spectrogram_{i}.png of 640 x 480 pixels. Gives metadata.csv, images/, masks/ and dataset.json, as python -m data_synth
does. Does not know who will read it.

Masks come from the picture and its row: the chirp is the generator's ridge above half its peak, computed from the row;
the frame and the colour bar stand where matplotlib's default figure has them; texts are boxes around the ink that is
seen, so other versions of matplotlib will do. A picture that is no such figure, or that shows its chirp elsewhere than
its row says, is refused.

A killed run goes on where it was; the bytes do not depend on the number of processes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion
from tqdm import tqdm

from .chirp import FREQ_SPAN_HZ, NUM_BINS, TIME_SPAN_S, ChirpParams, ChirpType, chirp_mask, ridge
from .figure import Layout
from .folder import CHUNK, _file_names, _write_png, write_atomic
from .layouts import grid_cols, grid_rows
from .published import published_layout
from .raster import CANVAS_COLS, CANVAS_ROWS, REGION_INDEX, REGIONS, area_sums, canvas_weights

GENERATOR = "chirp-spectrogram-generator"
COLUMNS = ("Chirp_Start_Time", "Chirp_Start_Freq", "Chirp_End_Freq", "Chirp_Duration", "Chirp_Type")
PICTURE_NAME = re.compile(r"spectrogram_([1-9][0-9]*)\.png")
Resize = Literal["area", "bilinear"]
NUM_CHECKED_FIRST = 16
# Lines are black and colours viridis, but for their last bits and the half-inked pixels beside a line.
DARKEST_LINE, COLOUR_TOLERANCE = 64, 8
MIN_BLANK_PX = 4
# In standard deviations of the background: refused is what is fainter than FAINT where the chirp should be and brighter
# than BRIGHT elsewhere, or fainter than NOTHING. That held for none of 34,000 spectrograms of the published recipe, nor
# for 21,000 of its shortest and noisiest chirps; for five of six that were given the row of another.
FAINT, BRIGHT, NOTHING = 1.0, 6.0, -0.5


@dataclass(frozen=True)
class Figure:
    """What every figure of the generator has in the same place, from one that is drawn here.

    ``labels`` uint8 [480 640]: frame, colour bar, background and margin alone. ``lines`` [480 640]: the middle of each
    spine and tick line. ``bar_tick_cols``: the columns of the tick lines of the colour bar, whose rows differ.
    """

    layout: Layout
    labels: NDArray[np.uint8]
    lines: NDArray[np.bool_]
    bar: tuple[slice, slice]
    bar_tick_cols: slice
    x_ticks: NDArray[np.float64]
    y_ticks: NDArray[np.float64]


@lru_cache(maxsize=1)
def default_figure() -> Figure:
    """Where matplotlib's default figure has its frame and its colour bar."""
    layout = published_layout("", (0.0, 1.0))
    labels = layout.label_map.copy()
    bar = _box(labels == REGION_INDEX["colorbar"])
    labels[labels < REGION_INDEX["colorbar"]] = REGION_INDEX["margin"]
    frame = labels == REGION_INDEX["frame"]
    # Ticks at both ends of this bar: their lines begin on the bar, and half of each lies above or below it.
    bar_ticks = frame.copy()
    bar_ticks[:, : bar[1].start] = False
    labels[bar_ticks] = REGION_INDEX["margin"]
    frame &= ~bar_ticks
    rows, cols = _box(frame)
    return Figure(
        layout,
        labels,
        binary_erosion(frame, np.ones((3, 3), dtype=bool)),
        bar,
        _box(bar_ticks)[1],
        _centres(frame[rows.stop - 2]),
        _centres(frame[:, cols.start + 1]),
    )


def read_canvas(path: Path) -> NDArray[np.uint8]:
    """The pixels uint8 [480 640 3] of a picture as the generator wrote it.

    Raises FileNotFoundError if there is none, ValueError for another format or size, or transparent pixels.
    """
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.mode not in ("RGB", "RGBA") or picture.size != (CANVAS_COLS, CANVAS_ROWS):
                found = f"{picture.mode} of {picture.width} x {picture.height}"
                raise ValueError(f"{path}: expected RGB or RGBA of {CANVAS_COLS} x {CANVAS_ROWS} pixels, got {found}")
            pixels = np.asarray(picture)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable PNG file ({error})") from error
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        raise ValueError(f"{path}: has transparent pixels, expected opaque ones")
    return np.ascontiguousarray(pixels[..., :3])


def shown_values(canvas: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The spectrogram [frequency bin, time bin] that a picture shows, in shares of its colour bar.

    Read from the green channel, which grows all along viridis, in the middle of each bin.
    """
    axes = default_figure().layout.axes
    middle = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    rows = axes.row1 - 1 - (middle * (axes.row1 - axes.row0)).astype(int)
    cols = axes.col0 + (middle * (axes.col1 - axes.col0)).astype(int)
    ramp = _viridis()[:, 1]
    return np.interp(canvas[np.ix_(rows, cols)][..., 1], ramp, np.linspace(0, 1, len(ramp)))


def reconstruct_label_map(canvas: NDArray[np.uint8], params: ChirpParams) -> NDArray[np.uint8]:
    """The region of every pixel uint8 [480 640] of the generator's picture of a chirp.

    Raises ValueError saying what was expected where the picture is no such figure or does not show this chirp.
    """
    figure = default_figure()
    if canvas.shape != (CANVAS_ROWS, CANVAS_COLS, 3):
        raise ValueError(f"expected pixels [{CANVAS_ROWS} {CANVAS_COLS} 3], got {list(canvas.shape)}")
    _check_figure(canvas, figure)
    labels = figure.labels.copy()
    ink = canvas.min(axis=2) < 255
    # The outline of the bar inks the column beside it too: a tick line goes further out.
    ticked = ink[:, figure.bar[1].stop + 1 : figure.bar_tick_cols.stop - 1].all(axis=1)
    labels[ticked, figure.bar_tick_cols] = np.minimum(labels[ticked, figure.bar_tick_cols], REGION_INDEX["frame"])
    _label_texts(labels, ink, figure, _centres(ticked))
    clean = ridge(params, "published")
    mask = chirp_mask(clean)
    if mask.any():
        _check_chirp(shown_values(canvas), clean, mask)
    axes = figure.layout.axes
    labels[axes.slices][mask[np.ix_(grid_rows(axes), grid_cols(axes))]] = REGION_INDEX["chirp"]
    return labels


def _check_figure(canvas: NDArray[np.uint8], figure: Figure) -> None:
    dark = canvas.max(axis=2) <= DARKEST_LINE
    if not dark[figure.lines].all():
        row, col = np.argwhere(figure.lines & ~dark)[0]
        axes = figure.layout.axes
        where = f"rows {axes.row0} to {axes.row1}, columns {axes.col0} to {axes.col1}"
        raise ValueError(f"expected axes around {where}, but row {row}, column {col} is not dark")
    rows, cols = figure.bar
    shown = canvas[rows.start + 3 : rows.stop - 3, (cols.start + cols.stop) // 2].astype(float)
    ramp = _viridis()
    place = np.linspace(len(ramp) - 1, 0, len(shown))
    expected = np.stack([np.interp(place, np.arange(len(ramp)), band) for band in ramp.T], axis=1)
    if np.abs(shown - expected).max() > COLOUR_TOLERANCE:
        where = f"rows {rows.start} to {rows.stop - 1}, columns {cols.start} to {cols.stop - 1}"
        raise ValueError(f"expected a colour bar of viridis in {where}, got other colours")


def _check_chirp(values: NDArray[np.float64], clean: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
    background = values[clean < 0.01 * clean.max()]
    middle = np.median(background)
    spread = max(1.4826 * float(np.median(np.abs(background - middle))), 1e-3)
    chirp, brightest = (values[mask].mean() - middle) / spread, (background.max() - middle) / spread
    if (chirp < FAINT and brightest > BRIGHT) or chirp < NOTHING:
        raise ValueError(
            f"expected a chirp where its row of labels.csv says, but it is {chirp:.1f} standard deviations above the "
            f"background there, and the brightest spot elsewhere {brightest:.1f}"
        )


def _label_texts(
    labels: NDArray[np.uint8], ink: NDArray[np.bool_], figure: Figure, bar_ticks: NDArray[np.float64]
) -> None:
    """Label the boxes of all texts; ``bar_ticks``: the rows of the ticks of the colour bar."""
    rows, cols = _box(figure.lines)
    # The highest tick label of an axis reaches above it, and a long title beside it: there a blank column parts them.
    top, above, below = figure.bar[0].start, figure.bar[0].start - 6, rows.stop + 2
    left, right = cols.start - 1 - MIN_BLANK_PX, figure.bar_tick_cols.stop
    title = ink.copy()
    title[above:, :left] = title[above:, right:] = title[top:] = False
    if not title.any():
        raise ValueError("expected a title above the axes, got none")
    _label_box(labels, title, "title")
    between = slice(top, below), slice(left, right)
    stray = ink[between] & (labels[between] == REGION_INDEX["margin"]) & ~_beside_bar(figure)[between]
    if stray.any():
        row, col = np.argwhere(stray)[0] + (top, left)
        raise ValueError(f"expected white paper around axes and colour bar, but row {row}, column {col} is not white")
    beside_y, beside_bar = (slice(above, below), slice(None, left)), (slice(above, below), slice(right, None))
    _label_axis(labels[below:], ink[below:], "x", ("ticks", "label"), figure.x_ticks)
    _label_axis(labels[beside_y].T, ink[beside_y].T, "y", ("label", "ticks"), figure.y_ticks - above)
    _label_axis(labels[beside_bar].T, ink[beside_bar].T, "colorbar", ("ticks", "label"), bar_ticks - above)


def _label_axis(
    labels: NDArray[np.uint8],
    ink: NDArray[np.bool_],
    name: str,
    order: tuple[str, str],
    ticks: NDArray[np.float64],
) -> None:
    """Label the texts of one axis that runs along the columns; ``order``: which of them comes first, row by row."""
    used = np.flatnonzero(ink.any(axis=1))
    gaps = np.diff(used)
    # The label stands 4 points from the tick labels; nothing within either is as far apart.
    if len(ticks) < 2 or len(gaps) == 0 or gaps.max() <= MIN_BLANK_PX:
        raise ValueError(f"expected ticks, tick labels and a label apart from them at the {name} axis")
    cut = int(used[gaps.argmax()]) + 1
    nearest = np.abs(np.arange(ink.shape[1])[:, None] - ticks).argmin(axis=1)
    for kind, part in zip(order, (slice(None, cut), slice(cut, None)), strict=True):
        if kind == "label":
            _label_box(labels[part], ink[part], f"{name}_label")
            continue
        for number in range(len(ticks)):
            own = ink[part] & (nearest == number)
            if not own.any():
                raise ValueError(f"expected a label at each of the {len(ticks)} ticks of the {name} axis")
            _label_box(labels[part], own, f"{name}_ticks")


def _label_box(labels: NDArray[np.uint8], ink: NDArray[np.bool_], region: str) -> None:
    inside = labels[_box(ink)]
    np.minimum(inside, REGION_INDEX[region], out=inside)


def _box(ink: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, cols = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def _beside_bar(figure: Figure) -> NDArray[np.bool_]:
    near = np.zeros(figure.labels.shape, dtype=bool)
    rows, cols = figure.bar
    near[rows.start - 1 : rows.stop + 1, cols.start - 1 : cols.stop + 1] = True
    return near


def _centres(used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The middle of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], used, [False]]).astype(np.int8)))
    return (edges[::2] + edges[1::2] - 1) / 2


def _viridis() -> NDArray[np.float64]:
    return colormaps["viridis"](np.arange(256))[:, :3] * 255


def resized(canvas: NDArray[np.uint8], image_size: int, resize: Resize) -> NDArray[np.uint8]:
    """A picture at ``image_size`` squared, uint8 [row col 3].

    ``area`` averages exactly, as the pictures of this project are; ``bilinear`` is what Pillow, and torchvision of a
    Pillow picture, makes of it.
    """
    if resize == "bilinear":
        small = Image.fromarray(canvas).resize((image_size, image_size), Image.Resampling.BILINEAR)
        return np.asarray(small)
    whole = canvas_weights(image_size)[2]
    values = canvas.astype(np.float32)
    total = np.stack([area_sums(values[..., band], image_size) for band in range(3)], axis=-1)
    return np.floor(total / np.float32(whole) + np.float32(0.5 + 1e-4)).astype(np.uint8)


def read_labels(path: Path, max_pictures: int | None = None) -> tuple[list[ChirpParams], int]:
    """The first chirps of a labels.csv, whose noise level is not known (NaN), and the number of all its rows.

    Raises FileNotFoundError or ValueError naming the row (the header is row 1) and the column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, expected the columns {', '.join(COLUMNS)}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable table ({' '.join(str(error).split())})") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}, found {', '.join(table.columns)}")
    if not len(table):
        raise ValueError(f"{path}: expected at least one row, got none")
    cells = table[list(COLUMNS)].to_numpy(dtype=str)[:max_pictures].tolist()
    chirps = [_params(path, number, dict(zip(COLUMNS, row, strict=True))) for number, row in enumerate(cells, start=2)]
    return chirps, len(table)


def _params(path: Path, number: int, cells: dict[str, str]) -> ChirpParams:
    found: dict[str, float] = {}
    ranges = {name: (0.0, FREQ_SPAN_HZ if name.endswith("Freq") else TIME_SPAN_S) for name in COLUMNS[:4]}
    for name, (low, high) in ranges.items():
        try:
            found[name] = float(cells[name])
        except ValueError:
            found[name] = math.nan
        if not low <= found[name] <= high:
            expected = f"expected a finite number from {low:g} to {high:g}"
            raise ValueError(f"{path}: row {number}, {name}: {expected}, got {cells[name]!r}")
    start, start_hz, end_hz, duration = found.values()
    if start + duration > TIME_SPAN_S:
        expected = f"expected an end at {TIME_SPAN_S:g} s or before"
        raise ValueError(f"{path}: row {number}, Chirp_Duration: {expected}, got {start + duration:g} s")
    chirp_types: tuple[ChirpType, ...] = get_args(ChirpType)
    for chirp_type in chirp_types:
        if cells["Chirp_Type"] == chirp_type:
            return ChirpParams(start, duration, start_hz, end_hz, chirp_type, math.nan)
    expected = f"expected one of {', '.join(chirp_types)}"
    raise ValueError(f"{path}: row {number}, Chirp_Type: {expected}, got {cells['Chirp_Type']!r}")


def picture_paths(source: Path, num_rows: int, num_wanted: int) -> list[Path]:
    """The first ``num_wanted`` pictures of a folder whose labels.csv has ``num_rows`` rows.

    Raises FileNotFoundError naming the first that is missing, ValueError naming a picture that has no row.
    """
    found = {int(match[1]) for path in source.iterdir() if (match := re.fullmatch(PICTURE_NAME, path.name))}
    paths = [source / f"spectrogram_{number}.png" for number in range(1, num_wanted + 1)]
    for number, path in enumerate(paths, start=1):
        if number not in found:
            raise FileNotFoundError(f"{path}: not found, expected a picture for each row of labels.csv")
    if found and max(found) > num_rows:
        extra = min(number for number in found if number > num_rows)
        raise ValueError(
            f"{source / f'spectrogram_{extra}.png'}: expected a row for it in labels.csv, which has {num_rows}; "
            "a generator that was stopped between a picture and its row leaves all later rows one picture off"
        )
    return paths


@dataclass(frozen=True)
class _Lot:
    """Consecutive pictures for one process: where they are, their chirps, and the number of the first."""

    first: int
    paths: list[Path]
    chirps: list[ChirpParams]


def _convert(path: Path, params: ChirpParams) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    canvas = read_canvas(path)
    try:
        return canvas, reconstruct_label_map(canvas, params)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _write_lot(lot: _Lot, folder: Path, image_size: int, resize: Resize) -> int:
    for index, (path, params) in enumerate(zip(lot.paths, lot.chirps, strict=True), start=lot.first):
        image_name, mask_name = _file_names(index)
        if not (folder / mask_name).exists() or not (folder / image_name).exists():
            canvas, labels = _convert(path, params)
            _write_png(folder / image_name, resized(canvas, image_size, resize))
            _write_png(folder / mask_name, labels)
    return len(lot.paths)


def convert_folder(
    source: Path,
    destination: Path,
    *,
    resize: Resize = "area",
    image_size: int = 224,
    max_pictures: int | None = None,
    num_processes: int = 1,
) -> Iterator[int]:
    """Write ``destination`` from ``source``; yields the number of pictures done as it goes. metadata.csv appears last.

    Raises ValueError or OSError with one line for a source that is not what the generator writes, rows that do not
    belong to their pictures, or a destination that holds another data set. The first pictures are read before anything
    is written.
    """
    for name, number in (("image_size", image_size), ("max_pictures", max_pictures), ("num_processes", num_processes)):
        if number is not None and number < 1:
            raise ValueError(f"{name}: expected at least 1, got {number}")
    labels_path = source / "labels.csv"
    chirps, num_rows = read_labels(labels_path, max_pictures)
    paths = picture_paths(source, num_rows, len(chirps))
    if destination.resolve() == source.resolve():
        raise ValueError(f"{destination}: expected a destination that is not the source")
    description = {
        "source": GENERATOR,
        "labels_sha256": hashlib.sha256(labels_path.read_bytes()).hexdigest(),
        "resize": resize,
        "image_size": image_size,
        "regions": list(REGIONS),
    }
    _check_identity(destination / "dataset.json", description)
    for path, params in zip(paths[:NUM_CHECKED_FIRST], chirps[:NUM_CHECKED_FIRST], strict=True):
        _convert(path, params)
    destination.mkdir(parents=True, exist_ok=True)
    write_atomic(destination / "dataset.json", (json.dumps(description, indent=2) + "\n").encode())
    for name in ("images", "masks"):
        (destination / name).mkdir(exist_ok=True)
    lots = [
        _Lot(first, paths[first : first + CHUNK], chirps[first : first + CHUNK])
        for first in range(0, len(paths), CHUNK)
    ]
    work = partial(_write_lot, folder=destination, image_size=image_size, resize=resize)
    done = 0
    if num_processes == 1:
        for count in map(work, lots):
            yield (done := done + count)
    else:
        with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
            for count in pool.imap_unordered(work, lots):
                yield (done := done + count)
    table = metadata_table(chirps).to_csv(index=False, lineterminator="\n")
    write_atomic(destination / "metadata.csv", table.encode())


def _check_identity(path: Path, description: dict[str, Any]) -> None:
    if not path.exists():
        there = [name for name in ("metadata.csv", "images", "masks") if (path.parent / name).exists()]
        if there:
            raise ValueError(f"{path}: not found, but {', '.join(there)} beside it; choose another folder")
        return
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: expected what describes a data set, got other text ({error})") from error
    different = sorted(key for key in found.keys() | description.keys() if found.get(key) != description.get(key))
    if different:
        raise ValueError(f"{path}: holds another data set (differs in {', '.join(different)}); choose another folder")


def metadata_table(chirps: list[ChirpParams]) -> pd.DataFrame:
    """One row a picture: files, labels in units, and the rest that is known of its chirp."""
    rows = []
    for index, params in enumerate(chirps):
        image_name, mask_name = _file_names(index)
        rows.append(
            {
                "file_name": image_name,
                "mask_file_name": mask_name,
                "start_time_s": params.start_time_s,
                "start_freq_hz": params.start_freq_hz,
                "end_freq_hz": params.end_freq_hz,
                "duration_s": params.duration_s,
                "chirp_type": params.chirp_type,
            }
        )
    return pd.DataFrame(rows)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m data_synth.published_folder",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", type=Path, help="folder with labels.csv and spectrogram_1.png, spectrogram_2.png, ..."
    )
    parser.add_argument("destination", type=Path, help="folder to write")
    parser.add_argument(
        "--resize",
        choices=get_args(Resize),
        default="area",
        help="area, the exact average that this project draws with, or bilinear, for models trained on pictures that "
        "torchvision resized (default: area)",
    )
    parser.add_argument("--image-size", type=int, default=224, help="side of the pictures (default: 224)")
    parser.add_argument("--max-pictures", type=int, help="only the first ones (default: all)")
    parser.add_argument("--num-processes", type=int, default=1)
    options = parser.parse_args(argv)
    done = 0
    try:
        steps = convert_folder(
            options.source,
            options.destination,
            resize=options.resize,
            image_size=options.image_size,
            max_pictures=options.max_pictures,
            num_processes=options.num_processes,
        )
        with tqdm(unit="picture", desc="writing") as bar:
            for done in steps:
                bar.update(done - bar.n)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{done} pictures in {options.destination} (metadata.csv, images/, masks/)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
