"""Make a data folder of this project from one that `chirp-spectrogram-generator` wrote, with the masks that one lacks.

examples:
  python -m data_synth.published_folder output chirps
  python -m data_synth.published_folder output chirps --resize bilinear --max-pictures 1000
  python -m analysis.compare --data chirps --output-dir results/chirps
  python -m attribution.finetune --data chirps --targets start_time_s,start_freq_hz,end_freq_hz --output-dir model

Takes a folder as chirp-spectrogram-generator 0.1.6 writes it: labels.csv, whose row i (from 1) belongs to
spectrogram_{i}.png of 640 x 480 pixels. Gives metadata.csv, images/, masks/ and dataset.json, as python -m data_synth
does. Does not know who will read it.

Masks are made of the picture and its row (data_synth/published_masks.py); a picture that is no such figure, or that
shows its chirp elsewhere than its row says, is refused.

A killed run goes on where it was; the bytes do not depend on the number of processes. A picture of the source that has
changed since is converted anew.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from .chirp import FREQ_SPAN_HZ, TIME_SPAN_S, ChirpParams, ChirpType
from .folder import CHUNK, file_names, fill_folder, require_image_size, require_own
from .published import averaged
from .published_masks import canvas_of, read_source, reconstruct_label_map
from .raster import REGIONS
from .writing import is_own_png, require_folder_name, write_png

GENERATOR = "chirp-spectrogram-generator"
COLUMNS = ("Chirp_Start_Time", "Chirp_Start_Freq", "Chirp_End_Freq", "Chirp_Duration", "Chirp_Type")
PICTURE_NAME = re.compile(r"spectrogram_([1-9][0-9]*)\.png")
Resize = Literal["area", "bilinear"]
NUM_CHECKED_FIRST = 16


def resized(canvas: NDArray[np.uint8], image_size: int, resize: Resize) -> NDArray[np.uint8]:
    """The picture, uint8 [row col 3]: ``area`` averages as this project's own pictures are, ``bilinear`` is Pillow's
    filter, which torchvision's Resize applies to a Pillow picture."""
    if resize == "area":
        return averaged(canvas, image_size)
    picture = Image.fromarray(canvas).resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.array(picture)


def read_labels(path: Path, max_pictures: int | None = None) -> tuple[list[ChirpParams], int]:
    """The first chirps of a labels.csv, whose noise level is not known (NaN), and the number of all its rows.

    Raises FileNotFoundError or ValueError naming the row (the header is row 1) and the column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, expected the columns {', '.join(COLUMNS)}")
    try:
        _require_plain_columns(path)
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except csv.Error as error:
        raise ValueError(f"{path}: not a readable table ({error})") from error
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


def _require_plain_columns(path: Path) -> None:
    """Raise ValueError for a column that is there twice, whose first pandas takes, and naming the first row of more
    fields than the header, whose last it drops where all rows have as many."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        width, twice = len(header), [name for name in COLUMNS if header.count(name) > 1]
        if twice:
            raise ValueError(f"{path}: expected one column {', '.join(twice)}, found {', '.join(header)}")
        for number, row in enumerate(reader, start=2):
            if len(row) > width:
                raise ValueError(
                    f"{path}: not a readable table (row {number}: expected {width} fields, got {len(row)})"
                )


def _params(path: Path, number: int, cells: dict[str, str]) -> ChirpParams:
    found: dict[str, float] = {}
    ranges = {name: (0.0, FREQ_SPAN_HZ if name.endswith("Freq") else TIME_SPAN_S) for name in COLUMNS[:4]}
    for name, (low, high) in ranges.items():
        try:
            found[name] = math.nan if "_" in cells[name] else float(cells[name])  # Python reads 1_0 as 10
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


def _convert(content: bytes, path: Path, params: ChirpParams) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    canvas = canvas_of(content, path)
    try:
        return canvas, reconstruct_label_map(canvas, params)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _write_lot(lot: _Lot, folder: Path, image_size: int, resize: Resize) -> int:
    for index, (path, params) in enumerate(zip(lot.paths, lot.chirps, strict=True), start=lot.first):
        content = read_source(path)
        image_name, mask_name = file_names(index)
        of_mask = json.dumps([GENERATOR, REGIONS, hashlib.sha256(content).hexdigest(), astuple(params)])
        of_image = json.dumps([of_mask, image_size, resize])  # which masks do not depend on
        if not all([is_own_png(folder, image_name, of_image), is_own_png(folder, mask_name, of_mask)]):
            canvas, labels = _convert(content, path, params)
            write_png(folder, image_name, resized(canvas, image_size, resize), of_image)
            write_png(folder, mask_name, labels, of_mask)
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
    require_image_size(image_size)
    for name, number in (("max_pictures", max_pictures), ("num_processes", num_processes)):
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
    table = metadata_table(chirps)
    require_own(destination, description, table)
    for path, params in zip(paths[:NUM_CHECKED_FIRST], chirps[:NUM_CHECKED_FIRST], strict=True):
        _convert(read_source(path), path, params)
    lots = [
        _Lot(first, paths[first : first + CHUNK], chirps[first : first + CHUNK])
        for first in range(0, len(paths), CHUNK)
    ]
    work = partial(_write_lot, folder=destination, image_size=image_size, resize=resize)
    yield from fill_folder(destination, description, table, work, lots, num_processes)


def metadata_table(chirps: list[ChirpParams]) -> pd.DataFrame:
    """One row a picture: files, labels in units, and the rest that is known of its chirp."""
    rows = []
    for index, params in enumerate(chirps):
        image_name, mask_name = file_names(index)
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
    """Run the command; returns the exit code (0 done, 2 bad input, 3 stopped before the end)."""
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
    parser.add_argument("destination", help="folder to write")
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
            require_folder_name(options.destination, "destination"),
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
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 3
    print(f"{done} pictures in {options.destination} (metadata.csv, images/, masks/)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
