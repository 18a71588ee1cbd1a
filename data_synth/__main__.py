"""Write a data set of chirp pictures with masks and labels to disk.

examples:
  python -m data_synth --count 1000 --out chirps
  python -m data_synth --count 200 --out chirps-test --split test --seed 1 --processes 2
  python -m data_synth --count 100 --out published --preset published

The folder holds metadata.csv, images/, masks/ and dataset.json. A killed run goes on where it was; the bytes do not
depend on the number of processes.
"""

from __future__ import annotations

import argparse
import os
import sys

from tqdm import tqdm

from .chirp import PRESETS
from .dataset import ChirpDataset, SynthConfig
from .folder import write_folder
from .layouts import SPLITS
from .writing import require_folder_name


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input, 3 stopped before the end)."""
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m data_synth",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, required=True, help="number of pictures")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--split", choices=SPLITS, default="train", help="train, validation and test share nothing")
    parser.add_argument(
        "--preset", choices=PRESETS, default="default", help="default, the published recipe, or the colour bar's task"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    try:
        if options.processes < 1:
            raise ValueError(f"--processes: expected at least 1, got {options.processes}")
        folder = require_folder_name(options.out, "--out")
        dataset = ChirpDataset(options.split, options.count, SynthConfig(preset=options.preset, seed=options.seed))
        with tqdm(total=options.count, unit="picture", desc="writing") as bar:
            for done in write_folder(dataset, folder, options.processes):
                bar.update(done - bar.n)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 3
    print(f"{options.count} pictures in {options.out} (metadata.csv, images/, masks/)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
