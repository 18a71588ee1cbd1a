"""How fast, side by side in one run: the sweep, the layer methods, localization, the synthesizer, on this machine.

examples:
  python -m analysis.bench                              # all of it, more than half an hour on two cores
  python -m analysis.bench --only sweep,layers --pictures 4
  python -m analysis.bench --quick                      # that it works: a small random network, seconds

Contenders take turns (A B C, A B C, ...), and a ratio is the median of the ratios within each turn, so that the drift
of a busy machine falls on all alike. Ratios say how many times faster than the baseline. Writes one table a benchmark
and machine.json to the output folder; a table is whole or not there. Times are of one run on one machine, no more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis.bench.cost_laws import cost_law_table
from analysis.bench.machine import available_device, describe_machine
from analysis.bench.model_benchmarks import estimate_rows, layer_rows, machine_rows, sweep_rows
from analysis.bench.paired_timing import COLUMNS
from analysis.bench.picture_benchmarks import localization_rows, synthesizer_rows
from analysis.models import OpenedModel, open_model
from analysis.own_files import Outputs, finish_writing, held, read_record, start_writing
from analysis.settings import BUNDLED_MODEL, CONTROL_MODEL
from analysis.tables import write_table
from attribution.batch import Batch
from attribution.own_folder import require_folder_name
from attribution.vit import head_layout
from data_synth import TARGET_NAMES, ChirpDataset, SynthConfig


@dataclass(frozen=True)
class Extent:
    """How much to measure: pictures of the sweep and of the layer methods, steps, sizes of everything else."""

    pictures: int = 16
    layer_pictures: int = 4
    batch_size: int = 16
    steps: int = 8
    repeats: int = 3
    matrix_size: int = 4096
    localization_pictures: int = 4
    heads_shape: tuple[int, int] = (12, 6)
    synthesizer_pictures: int = 128
    published_pictures: int = 10
    quick: bool = False


SHOWN = (
    *("contender", "baseline", "pictures", "seconds_median", "units_per_second", "unit", "ratio_to_baseline"),
    *("ratio_min", "ratio_max", "counted_ratio", "goal", "relative_difference", "share_of_matmul_rate"),
    *("kind", "stage", "varied", "model", "processes", "blocks", "heads", "width", "tokens", "seconds"),
    *("seconds_by_law", "peak_mb", "peak_mb_by_law", "hours", "disk_gb", "note"),
)
QUICK = Extent(
    pictures=4, layer_pictures=2, steps=2, repeats=2, matrix_size=256, localization_pictures=2, heads_shape=(2, 2),
    synthesizer_pictures=8, published_pictures=1, quick=True,
)  # fmt: skip


def batch_of(opened: OpenedModel, num_pictures: int) -> Batch:
    """The first test pictures of the default preset; path methods start from a picture of the mean colour."""
    model, layout = opened.model, head_layout(opened.model)
    if model.config.target_names != TARGET_NAMES:
        raise ValueError(
            f"--model {opened.name}: expected a model of {', '.join(TARGET_NAMES)}, "
            f"got {', '.join(model.config.target_names)}"
        )
    size = model.config.image_size
    dataset = ChirpDataset("test", num_pictures, SynthConfig(image_size=size, patch_size=size // layout.num_rows))
    samples = [dataset[index] for index in range(num_pictures)]
    pixel_values = model.preprocess(np.stack([sample.image for sample in samples])).to(model.dtype)
    labels = model.standardise(np.stack([sample.labels for sample in samples]))
    return Batch(pixel_values, labels, torch.arange(num_pictures), torch.zeros_like(pixel_values[0]))


def benchmarks(model_name: str, device: str, extent: Extent) -> dict[str, Callable[[], pd.DataFrame]]:
    """Benchmark by name -> its table; the model is opened when the first one needs it."""
    opened: list[OpenedModel] = []

    def pictures(count: int) -> tuple[Any, Batch]:
        if not opened:
            opened.append(open_model(model_name, device))
        return opened[0].model, batch_of(opened[0], count)

    def machine() -> list[dict[str, Any]]:
        return machine_rows(*pictures(extent.pictures), extent.repeats, extent.matrix_size)

    def sweep() -> list[dict[str, Any]]:
        return sweep_rows(*pictures(extent.pictures), extent.repeats, extent.matrix_size, extent.batch_size)

    def layers() -> list[dict[str, Any]]:
        return layer_rows(*pictures(extent.layer_pictures), extent.repeats, extent.steps)

    def localization() -> list[dict[str, Any]]:
        return localization_rows(extent.localization_pictures, extent.repeats, extent.heads_shape)

    def synthesizer() -> list[dict[str, Any]]:
        return synthesizer_rows(extent.synthesizer_pictures, extent.published_pictures, extent.repeats)

    def estimate() -> list[dict[str, Any]]:
        return estimate_rows(*pictures(extent.layer_pictures), extent.repeats, extent.batch_size)

    def table_of(rows: Callable[[], list[dict[str, Any]]]) -> pd.DataFrame:
        return pd.DataFrame(rows(), columns=list(COLUMNS))

    by_rows = (machine, sweep, layers, localization, synthesizer, estimate)
    tables: dict[str, Callable[[], pd.DataFrame]] = {rows.__name__: partial(table_of, rows) for rows in by_rows}
    return tables | {"cost_laws": partial(cost_law_table, quick=extent.quick)}


def readable(table: pd.DataFrame) -> str:
    """The table for a terminal: the columns that say most, numbers to four digits; laws as sentences."""
    laws: list[str] = []
    if "kind" in table:
        is_law = table["kind"] == "law"
        laws = [f"{stage}: {note}" for stage, note in zip(table["stage"][is_law], table["note"][is_law], strict=True)]
        table = table[~is_law]
    shown = table[[name for name in SHOWN if name in table]].dropna(axis=1, how="all")
    text = shown.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}", max_colwidth=None)
    return "\n".join([text, *laws])


def parse(argv: list[str]) -> tuple[argparse.Namespace, Extent]:
    """Options, and how much to measure. Raises ValueError for what is wrong with them."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", default="results/bench")
    parser.add_argument("--model", default=None, help="bundled (default), tiny-random, or a folder")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1; cost_laws are of the CPU")
    parser.add_argument("--pictures", type=int, default=None, help="pictures of the sweep (default: 16)")
    parser.add_argument("--layer-pictures", type=int, default=None, help="pictures of the layer methods (default: 4)")
    parser.add_argument("--batch-size", type=int, default=None, help="rows of one pass of a sweep (default: 16)")
    parser.add_argument("--repeats", type=int, default=None, help="turns of every contender (default: 3)")
    parser.add_argument("--only", default=None, help="names of benchmarks, comma-separated")
    parser.add_argument("--quick", action="store_true", help="a small random network and few pictures")
    options = parser.parse_args(argv)
    given = {name: getattr(options, name) for name in ("pictures", "layer_pictures", "batch_size", "repeats")}
    for name, value in given.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    start = QUICK if options.quick else Extent()
    extent = Extent(**{**vars(start), **{name: value for name, value in given.items() if value is not None}})
    if options.model is None:
        options.model = CONTROL_MODEL if options.quick else BUNDLED_MODEL
    return options, extent


def run(options: argparse.Namespace, extent: Extent) -> None:
    """Measure, print and write. Raises ValueError or OSError for bad input."""
    available = benchmarks(options.model, options.device, extent)
    chosen = list(available) if options.only is None else [name.strip() for name in options.only.split(",")]
    unknown = [name for name in chosen if name not in available]
    if unknown:
        raise ValueError(f"--only: unknown {', '.join(unknown)}, expected some of {', '.join(available)}")
    device = available_device(options.device)
    folder = require_folder_name(options.output_dir)
    outputs = outputs_of(folder, available)
    machine = describe_machine(device)
    record = {"machine": machine, "model": Path(options.model).name, "extent": vars(extent)}
    with held(outputs):
        start_writing(outputs, keep=True)
        print(f"{machine['cpu']}, {machine['torch_threads']} threads, {machine['memory_gb']} GB, {machine['device']}")
        for name in chosen:
            print(f"\n{name} ...", flush=True)
            table = available[name]()
            write_table(table, folder / f"{name}.csv")
            print(readable(table), flush=True)
        finish_writing(outputs, record)
    print(f"\nTables: {folder}")


def outputs_of(folder: Path, names: Iterable[str]) -> Outputs:
    """Every file that the command may write; in earlier makes ``machine.json`` named none."""
    earlier = {"machine", "model", "extent"}
    return Outputs(
        folder,
        "analysis.bench",
        tuple(f"{name}.csv" for name in names),
        "machine.json",
        lambda: set(read_record(folder / "machine.json")) == earlier,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    try:
        run(*parse(sys.argv[1:] if argv is None else argv))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
