"""Is the model worth explaining? How well it reads, whether it leaks, and what distracts it.

examples:
  python -m analysis.quality
  python -m analysis.quality --model my-model --num-pictures 500 --output-dir my-model
  python -m analysis.quality --num-pictures 64 --distractor-pictures 16 --output-dir results/quick

Writes three tables: model_quality.csv (Pearson r, R2 and RMSE of each target on test pictures whose layouts were never
seen, and of the sweep end - start, which the correlation of start and end frequency cannot flatter), leak.csv (what can
still be read when the chirp is taken out of the picture: nothing should be) and distractors.csv (how far predictions
move when what does not matter is removed, moved or replaced); and quality.json, which says how and names the tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from tqdm import tqdm

from analysis.intervals import bootstrap_indices, bootstrap_interval, interval_over_images
from analysis.manifest import git_state, versions
from analysis.models import open_model
from analysis.own_files import Outputs, finish_writing, held, require_own, start_writing
from analysis.settings import BUNDLED_MODEL, MOST
from analysis.tables import write_table
from attribution.own_folder import require_folder_name
from attribution.vit import ViTRegressor
from data_synth import TARGET_NAMES, ChirpDataset, SynthConfig
from data_synth.dataset import render_image
from data_synth.twins import CHIRP_ELSEWHERE, Edit, grey_box, has_region, move, replace_text, twin_scene, without

Floats = NDArray[np.float64]

# By which tables of an earlier make are told, which wrote no manifest.
HEADERS = {
    "model_quality.csv": ("target", "statistic", "unit", "value", "ci_low", "ci_high", "n"),
    "leak.csv": ("target", "squared_correlation", "ci_low", "ci_high", "probe_test_r2", "n"),
    "distractors.csv": ("item", "edit", "target", "abs_shift", "abs_shift_ci_low", "abs_shift_ci_high"),
}
DISTRACTOR_EDITS: tuple[Edit, ...] = (
    *(without(region) for region in ("text", "title", "x_label", "y_label", "x_ticks", "y_ticks", "colorbar", "frame")),
    move("colorbar"),
    move("title"),
    replace_text("text"),
    grey_box("text"),
)


def distractor_edits(preset: str) -> tuple[Edit, ...]:
    """The edits a preset allows; the published figure has no room to move things, and fixed labels."""
    if preset == "published":
        regions = [edit for edit in DISTRACTOR_EDITS if edit.kind == "without" and edit.region != "frame"]
        return (*regions, replace_text("title"), CHIRP_ELSEWHERE)
    return (*DISTRACTOR_EDITS, CHIRP_ELSEWHERE)


def predict(
    model: ViTRegressor, images: Iterable[NDArray[np.uint8]], total: int, label: str, batch_size: int = 16
) -> tuple[Floats, Floats]:
    """Predictions in units [image target] and CLS features [image channel]."""
    features: list[torch.Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, args: features.append(args[0].detach().float().cpu()))
    predictions: list[torch.Tensor] = []
    waiting: list[NDArray[np.uint8]] = []

    def flush() -> None:
        if waiting:
            pixel_values = model.preprocess(np.stack(waiting)).to(model.device, model.dtype)
            predictions.append(model.to_units(model(pixel_values).float().cpu()))
            waiting.clear()

    try:
        with torch.inference_mode(), tqdm(total=total, desc=label, unit="picture", leave=False) as bar:
            for image in images:
                waiting.append(image)
                bar.update()
                if len(waiting) == batch_size:
                    flush()
            flush()
    finally:
        handle.remove()
    return torch.cat(predictions).double().numpy(), torch.cat(features).double().numpy()


def quality_table(predicted: Floats, labels: Floats, indices: NDArray[np.int64]) -> pd.DataFrame:
    """Rows target x statistic with BCa intervals over pictures; ``sweep_hz`` is end - start frequency."""
    names = [*TARGET_NAMES, "sweep_hz"]
    predicted = np.column_stack([predicted, predicted[:, 2] - predicted[:, 1]])
    labels = np.column_stack([labels, labels[:, 2] - labels[:, 1]])
    statistics: dict[str, Callable[[Floats], Floats]] = {
        "pearson_r": lambda counts: _pearson(predicted, labels, counts),
        "r2": lambda counts: _r_squared(predicted, labels, counts),
        "rmse": lambda counts: np.sqrt((counts @ (predicted - labels) ** 2) / counts.sum(axis=1, keepdims=True)),
    }
    rows = []
    for place, name in enumerate(names):
        for statistic, function in statistics.items():
            interval = bootstrap_interval(function, indices)
            rows.append(
                {
                    "target": name,
                    "statistic": statistic,
                    "unit": {"rmse": name.rsplit("_", 1)[-1]}.get(statistic, ""),
                    "value": interval.value[place],
                    "ci_low": interval.low[place],
                    "ci_high": interval.high[place],
                    "n": len(labels),
                }
            )
    return pd.DataFrame(rows)


def leak_table(
    predicted: Floats, features: Floats, labels: Floats, indices: NDArray[np.int64], seed: int
) -> pd.DataFrame:
    """What predictions and CLS features of chirp-free twins still know about the labels of their originals.

    Squared correlation per target with its 95 % interval, and the test R2 of a ridge probe trained on one random half
    of the pictures and judged on the other.
    """
    squared = bootstrap_interval(lambda counts: _pearson(predicted, labels, counts) ** 2, indices, method="percentile")
    order = np.random.default_rng([seed, 5]).permutation(len(labels))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    centre, scale = features[train].mean(axis=0), features[train].std(axis=0) + 1e-12
    scaled = (features - centre) / scale
    rows = []
    for place, name in enumerate(TARGET_NAMES):
        probe = RidgeCV(alphas=np.logspace(0, 6, 13)).fit(scaled[train], labels[train, place])
        rows.append(
            {
                "target": name,
                "squared_correlation": squared.value[place],
                "ci_low": squared.low[place],
                "ci_high": squared.high[place],
                "probe_test_r2": probe.score(scaled[test], labels[test, place]),
                "n": len(labels),
            }
        )
    return pd.DataFrame(rows)


def distractor_rows(
    edit: Edit, before: Floats, after: Floats, labels: Floats, twin_labels: Floats, indices: NDArray[np.int64]
) -> list[dict[str, object]]:
    """One row a target: mean absolute and mean signed shift of the prediction in units, and change of squared error.

    The shift is that of the error (prediction - label), so that a chirp drawn elsewhere, whose labels move with it,
    shows a shift only as far as the model does not follow.
    """
    shift = (after - twin_labels) - (before - labels)
    parts = {
        "abs_shift": np.abs(shift),
        "shift": shift,
        "squared_error_change": (after - twin_labels) ** 2 - (before - labels) ** 2,
    }
    intervals = {name: interval_over_images(values, indices) for name, values in parts.items()}
    return [
        {
            "item": edit.region,
            "edit": edit.kind,
            "target": name,
            **{
                key: value
                for part, interval in intervals.items()
                for key, value in (
                    (part, interval.value[place]),
                    (f"{part}_ci_low", interval.low[place]),
                    (f"{part}_ci_high", interval.high[place]),
                )
            },
            "n": len(labels),
        }
        for place, name in enumerate(TARGET_NAMES)
    ]


def measure(
    model: ViTRegressor, dataset: ChirpDataset, num_distractor_pictures: int, replicates: int = 2000
) -> dict[str, pd.DataFrame]:
    """The three tables, by name."""
    config, count = dataset.config, len(dataset)
    indices = bootstrap_indices(count, replicates, seed=config.seed)
    labels = np.stack([[getattr(dataset.params(index), name) for name in TARGET_NAMES] for index in range(count)])
    before, _ = predict(model, (dataset.image(index) for index in range(count)), count, "intact")
    bare = (render_image(twin_scene(dataset, index, without("chirp")), config) for index in range(count))
    blind, features = predict(model, bare, count, "without chirp")
    rows: list[dict[str, object]] = []
    for edit in distractor_edits(config.preset):
        chosen = [
            index
            for index in range(min(num_distractor_pictures, count))
            if edit == CHIRP_ELSEWHERE or has_region(dataset.scene(index), edit.region)
        ]
        if len(chosen) < 2:
            continue
        twins = [twin_scene(dataset, index, edit) for index in chosen]
        after, _ = predict(model, (render_image(scene, config) for scene in twins), len(chosen), str(edit))
        truth = np.stack([[getattr(scene.params, name) for name in TARGET_NAMES] for scene in twins])
        resampled = bootstrap_indices(len(chosen), replicates, seed=config.seed)
        rows += distractor_rows(edit, before[chosen], after, labels[chosen], truth, resampled)
    return {
        "model_quality": quality_table(before, labels, indices),
        "leak": leak_table(blind, features, labels, indices, config.seed),
        "distractors": pd.DataFrame(rows),
    }


def _moments(values: Floats, counts: Floats) -> Floats:
    return (counts @ values) / counts.sum(axis=1, keepdims=True)


def _pearson(a: Floats, b: Floats, counts: Floats) -> Floats:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    mean_a, mean_b = _moments(a, counts), _moments(b, counts)
    covariance = _moments(a * b, counts) - mean_a * mean_b
    spread = (_moments(a**2, counts) - mean_a**2) * (_moments(b**2, counts) - mean_b**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return covariance / np.sqrt(spread)


def _r_squared(predicted: Floats, labels: Floats, counts: Floats) -> Floats:
    centred = labels - labels.mean(axis=0)
    spread = _moments(centred**2, counts) - _moments(centred, counts) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - _moments((predicted - labels) ** 2, counts) / spread


def outputs_of(folder: Path) -> Outputs:
    """Every file that the command may write, beside a model's own; earlier makes wrote no manifest."""
    return Outputs(folder, "analysis.quality", tuple(HEADERS), "quality.json", headers=HEADERS)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=BUNDLED_MODEL, help="bundled, or a folder written by attribution.finetune")
    parser.add_argument("--num-pictures", type=int, default=500, help="test pictures")
    parser.add_argument("--distractor-pictures", type=int, default=128, help="test pictures edited in every way")
    parser.add_argument("--preset", default=None, help="default: the preset that the model was trained on")
    parser.add_argument("--output-dir", default="results/quality")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the test pictures")
    options = parser.parse_args(argv)
    try:
        for name, least in (("num_pictures", 8), ("distractor_pictures", 2), ("seed", 0)):
            if not least <= getattr(options, name) <= MOST:
                told = f"--{name.replace('_', '-')}: expected {least} or more, up to {MOST}"
                raise ValueError(f"{told}, got {getattr(options, name)}")
        folder = require_folder_name(options.output_dir)
        outputs = outputs_of(folder)
        require_own(outputs)
        opened = open_model(options.model, options.device)
        model = opened.model
        if model.config.target_names != TARGET_NAMES:
            raise ValueError(f"{options.model}: reads {', '.join(model.config.target_names)}, not chirps")
        preset = options.preset or model.config.synthesizer.get("preset", "default")
        config = SynthConfig(preset=preset, seed=options.seed, image_size=model.config.image_size)
        dataset = ChirpDataset("test", options.num_pictures, config)
        settings = {"num_pictures": options.num_pictures, "distractor_pictures": options.distractor_pictures}
        record = {"model": opened.identity, "preset": preset, "seed": options.seed, "settings": settings}
        record |= {"versions": versions(), "git": git_state()}
        with held(outputs):
            tables = measure(model, dataset, options.distractor_pictures)
            start_writing(outputs)
            for name, table in tables.items():
                write_table(table, folder / f"{name}.csv")
            finish_writing(outputs, record)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    with pd.option_context("display.width", 160, "display.max_columns", 20, "display.precision", 4):
        for name, table in tables.items():
            print(f"\n{name}\n{table.to_string(index=False)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
