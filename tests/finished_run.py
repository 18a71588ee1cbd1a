"""One run of a tiny random model, made by the command as a user makes it, with what it printed.

Three layers of four heads: a table in head-then-layer order cannot pass for one in layer-then-head order.
"""

import contextlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from analysis.compare import main
from analysis.pictures import open_pictures
from analysis.score_files import read_scores

PICTURES, RESAMPLED, SHAPLEY, PATH = 6, 5, 3, 3
LAYERS, HEADS = 3, 4
REPLICATES, PERMUTATIONS, SEED = 50, 99, 0
TRUTHS = ("zero", "resample", "counterfactual")
METHODS = ("gate_ixg_out", "gate_ig", "cls_mass", "cls_entropy", "random", "layer_index", "saliency")
TARGETS = ("start_time_s", "start_freq_hz", "end_freq_hz")
OPTIONS = {
    "config": "analysis/configs/tiny.yaml",
    "num-pictures": PICTURES,
    "resample-pictures": RESAMPLED,
    "shapley-pictures": SHAPLEY,
    "path-pictures": PATH,
    "permutations": 2,
    "steps": 2,
    "bootstrap-replicates": REPLICATES,
    "num-permutations": PERMUTATIONS,
    "seed": SEED,
    "truths": ",".join((*TRUTHS, "shapley")),
    "checks": "roles",
    "methods": ",".join(METHODS),
}


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """Its folder, and the lines it printed."""

    folder: Path
    lines: list[str]

    def table(self, name):
        """A table as it lies on disk; an empty cell of text is an empty text."""
        return pd.read_csv(self.folder / f"{name}.csv", keep_default_na=False, na_values=[""])

    def stored(self, name):
        """The stored arrays of a name."""
        return read_scores(self.folder / "scores" / f"{name}.safetensors")[0]

    @cached_property
    def patch_labels(self):
        """Drawn anew, `[image row col]`."""
        return open_pictures(
            "default", PICTURES, seed=SEED, image_size=224, patch_size=14, target_names=TARGETS
        ).patch_labels


def make_run(folder):
    """Make the run in this folder."""
    printed = io.StringIO()
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    with contextlib.redirect_stdout(printed):
        assert main([*options, "--output-dir", str(folder)]) == 0
    return FinishedRun(folder, printed.getvalue().splitlines())
