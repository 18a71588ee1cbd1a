"""What a training leaves to look at: a table with a row per validation, its curve, and the settings with versions.

Takes the log of a training and the options it ran with; writes files to a folder that nobody looks at yet. Does not
know how the model was trained.
"""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from attribution.training_state import Progress

LOG_FILES = ("training_log.csv", "training_curve.png", "training_config.json")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "safetensors", "matplotlib")


def write_log(
    output: Path, settings: dict[str, Any], progress: Progress, precision: str, num_processes: int, sha256: str
) -> None:
    """training_log.csv (one row per validation), training_curve.png and training_config.json."""
    table = pd.DataFrame(progress.rows)
    figure = Figure(figsize=(7, 4), layout="constrained")
    plot_training(table, figure.add_subplot(), progress.best_step)
    record = {
        "settings": {**settings, "output_dir": Path(settings["output_dir"]).name},
        "precision": precision,
        "num_processes": num_processes,
        "steps": progress.step,
        "pictures": progress.step * settings["batch_size"],
        "elapsed_s": round(progress.elapsed_s, 1),
        "best_step": progress.best_step,
        "best_validation_mse": progress.best_mse,
        "weights_sha256": sha256,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }
    table.to_csv(output / "training_log.csv", index=False)
    figure.savefig(output / "training_curve.png", dpi=150)
    (output / "training_config.json").write_text(json.dumps(record, indent=2) + "\n")


def plot_training(table: pd.DataFrame, ax: Any, best_step: int) -> Any:
    """Training and validation error over pictures seen, on a log axis; the step whose weights are kept is marked."""
    ax.plot(table["pictures"], table["train_mse"], label="training (mean since the row before)", color="0.6")
    ax.plot(table["pictures"], table["validation_mse"], label="validation", color="C0")
    kept = table[table["step"] == best_step]
    ax.plot(kept["pictures"], kept["validation_mse"], "o", color="C3", label="kept")
    ax.set(
        xlabel="pictures seen",
        ylabel="mean squared error (label variances)",
        yscale="log",
        title="Fine-tuning",
    )
    ax.grid(True, which="both", alpha=0.3)
    ax.legend()
    return ax
