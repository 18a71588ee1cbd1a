"""Measure how fast pictures are made: cold and warm pool, in memory and on disk, beside the published generator.

examples:
  python -m data_synth.bench
  python -m data_synth.bench --count 1000

One process, one thread. The published generator (chirp-spectrogram-generator 0.1.6, no masks) is timed if installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .dataset import ChirpDataset, SynthConfig
from .folder import write_folder


def _rate(count: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def _published_generator(count: int) -> float | None:
    if importlib.util.find_spec("chirp_spectrogram_generator") is None:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from chirp_spectrogram_generator import SpectrogramGenerator

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        generator = SpectrogramGenerator(output_dir=folder)
        return _rate(count, lambda: generator.generate_dataset(count))


def measure(count: int, published_count: int) -> list[tuple[str, float | None, str]]:
    """Rows of (what, pictures per second or None, masks or not)."""
    dataset = ChirpDataset("test", count, SynthConfig(num_layouts=min(count, 512)))
    pool = dataset._pool  # type: ignore[attr-defined]
    layouts = dataset.config.num_layouts
    rows: list[tuple[str, float | None, str]] = []
    rows.append(("layouts of a cold pool", _rate(layouts, lambda: [pool(i) for i in range(layouts)]), "all masks"))
    rows.append(("in memory, warm pool", _rate(count, lambda: [dataset[i] for i in range(count)]), "all masks"))
    rows.append(("picture alone, warm pool", _rate(count, lambda: [dataset.image(i) for i in range(count)]), "none"))
    with tempfile.TemporaryDirectory() as folder:
        rows.append(
            ("written to disk, warm pool", _rate(count, lambda: list(write_folder(dataset, Path(folder)))), "all masks")
        )
    published = ChirpDataset("test", published_count, SynthConfig(preset="published"))
    rows.append(
        (
            "preset published, in memory",
            _rate(published_count, lambda: [published[i] for i in range(published_count)]),
            "all masks",
        )
    )
    rows.append(("published generator, disk", _published_generator(published_count), "none"))
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print one line a rate."""
    parser = argparse.ArgumentParser(
        prog="python -m data_synth.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=512, help="pictures per rate")
    parser.add_argument("--published-count", type=int, default=10, help="pictures of the slow published figure")
    options = parser.parse_args(argv)
    if min(options.count, options.published_count) < 1:
        print("error: --count and --published-count: expected at least 1", file=sys.stderr)
        return 2
    for what, rate, masks in measure(options.count, options.published_count):
        figure = f"{rate:9.1f} pictures/s" if rate is not None else "not installed"
        print(f"{what:32s} {figure:>22s}   masks: {masks}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
