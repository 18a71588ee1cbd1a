"""The training loop of a regressor: one pass over fresh pictures, validated, saved, resumed.

Takes a model whose trainable weights require gradients, two data sets and settings; leaves in the model the trainable
weights that validated best, and gives the log. Does not know what is trained (LoRA or all), nor where the model goes.

The learning rate follows the *progress*, max(step / steps, elapsed / time budget): linear warm-up, then a cosine to 0.
With a budget the rate so still ends at 0 when time is up. Pictures come in an order fixed by the seed; where the data
set is shorter than asked for, it is shuffled anew for every pass.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from attribution.vit import ViTRegressor, loss_per_image


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how fast, how often; `time_budget_min` None means all `num_pictures`."""

    num_pictures: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_fraction: float
    grad_clip: float
    validate_every: int
    time_budget_min: float | None
    save_every_min: float
    workers: int
    seed: int


@dataclass
class Progress:
    """What a resumed run needs to know besides weights, optimizer and random states."""

    step: int = 0
    elapsed_s: float = 0.0
    learning_rate: float = 0.0
    best_step: int = -1
    best_mse: float = math.inf
    rows: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)  # training losses since the last row


def learning_rate_factor(progress: float, warmup_fraction: float) -> float:
    """Share of the peak learning rate at a progress in [0, 1]: a linear rise, then half a cosine to 0."""
    if progress < warmup_fraction:
        return progress / warmup_fraction
    if progress >= 1:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup_fraction) / (1 - warmup_fraction)))


def picture_order(num_pictures: int, available: int, seed: int) -> np.ndarray:
    """Data set indices int64 `[position]` in the order of training, one shuffled pass after another."""
    passes = math.ceil(num_pictures / available)
    shuffled = [np.random.default_rng([seed, number]).permutation(available) for number in range(passes)]
    return np.concatenate(shuffled)[:num_pictures]


def collate(items: list[dict[str, np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Images uint8 `[image row col 3]` and labels float64 `[image target]` of some items."""
    images = np.stack([item["image"] for item in items])
    return torch.from_numpy(images), torch.from_numpy(
        np.stack([np.asarray(item["labels"], np.float64) for item in items])
    )


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights that learn, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def validate(model: torch.nn.Module, images: Tensor, labels: Tensor, batch_size: int = 32) -> tuple[float, np.ndarray]:
    """Mean squared error (standardised) and Pearson r `[target]` on preprocessed pictures; train mode is put back."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        parts = [model(pixel_values).float() for pixel_values in images.split(batch_size)]
    model.train(was_training)
    predictions = torch.cat(parts)
    mse = float(loss_per_image(predictions, labels.float()).double().mean())
    return mse, pearson(predictions.double().cpu().numpy(), labels.double().cpu().numpy())


def pearson(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Correlation per column of two `[image target]` arrays; 0 where a column is constant."""
    left, right = predictions - predictions.mean(0), labels - labels.mean(0)
    scale = np.sqrt((left**2).sum(0) * (right**2).sum(0))
    return np.divide((left * right).sum(0), scale, out=np.zeros_like(scale), where=scale > 0)


def train(
    model: ViTRegressor,
    pictures: Dataset,
    validation: tuple[Tensor, Tensor],
    settings: TrainingSettings,
    accelerator: Accelerator,
    resume_folder: Path,
    signature: dict[str, Any],
) -> Progress:
    """Train the model in place and give the log; `validation` is uint8 pictures and labels in units.

    States are kept in `resume_folder` under `signature` (all that shapes the result): a run killed at any instant and
    started again goes on from the last of them; another signature there is a `ValueError`.
    """
    weights = trainable(model)
    # lr is set before every step; torch multiplies the decay by it
    optimizer: Any = torch.optim.AdamW(weights.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    progress, best = _resume(accelerator, resume_folder, signature)
    steps = max(1, settings.num_pictures // settings.batch_size)
    budget_s = math.inf if settings.time_budget_min is None else 60 * settings.time_budget_min
    valid = (model.preprocess(validation[0]), model.standardise(validation[1]))
    batches = _batches(pictures, settings, steps, progress.step)
    start_s, saved_s = time.monotonic() - progress.elapsed_s, time.monotonic()
    fraction = max(progress.step / steps, progress.elapsed_s / budget_s)
    bar_format = "{l_bar}{bar}| [{elapsed} < {remaining}{postfix}]"
    interval_s = 1 if sys.stderr.isatty() else 30
    with tqdm(total=100, unit="%", initial=100 * fraction, mininterval=interval_s, bar_format=bar_format) as bar:
        prepared.train()
        for images, labels in batches:
            progress.elapsed_s = time.monotonic() - start_s
            fraction = max(progress.step / steps, progress.elapsed_s / budget_s)
            if fraction >= 1 and progress.step:
                break
            progress.learning_rate = settings.learning_rate * learning_rate_factor(fraction, settings.warmup_fraction)
            for group in optimizer.param_groups:
                group["lr"] = progress.learning_rate
            loss = loss_per_image(prepared(model.preprocess(images)), model.standardise(labels)).mean()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(weights.values(), settings.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            progress.recent.append(float(loss.detach()))
            if not math.isfinite(progress.recent[-1]):
                raise ValueError(
                    f"step {progress.step}: the loss is {progress.recent[-1]}; try a smaller --learning-rate"
                )
            progress.step += 1
            bar.update(100 * fraction - bar.n)
            bar.set_postfix(step=progress.step, mse=f"{np.mean(progress.recent[-20:]):.4f}", refresh=False)
            if progress.step % settings.validate_every == 0:
                progress.elapsed_s = time.monotonic() - start_s
                best = _validate_and_log(prepared, valid, settings, progress, best)
            if time.monotonic() - saved_s >= 60 * settings.save_every_min:
                progress.elapsed_s = time.monotonic() - start_s
                _save(accelerator, resume_folder, signature, progress, best)
                saved_s = time.monotonic()
        if progress.recent:
            best = _validate_and_log(prepared, valid, settings, progress, best)
        bar.update(100 - bar.n)
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(best[name])
    return progress


def _validate_and_log(
    model: Any, valid: tuple[Tensor, Tensor], settings: TrainingSettings, progress: Progress, best: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Append a row; gives the weights that are best so far."""
    mse, r = validate(model, *valid)
    row: dict[str, float] = {"step": progress.step, "pictures": progress.step * settings.batch_size}
    row |= {"elapsed_s": round(progress.elapsed_s, 1), "learning_rate": progress.learning_rate}
    row |= {"train_mse": float(np.mean(progress.recent)), "validation_mse": mse}
    row |= {f"r_{name}": float(value) for name, value in zip(model.config.target_names, r, strict=True)}
    progress.rows.append(row)
    progress.recent = []
    tqdm.write(_line(row, model.config.target_names), file=sys.stderr)
    if not math.isfinite(mse):
        raise ValueError(f"step {progress.step}: the validation error is {mse}; try a smaller --learning-rate")
    if mse >= progress.best_mse:
        return best
    progress.best_mse, progress.best_step = mse, progress.step
    return {name: value.detach().cpu().clone() for name, value in trainable(model).items()}


def _line(row: dict[str, float], target_names: tuple[str, ...]) -> str:
    r = " ".join(f"{name} {row[f'r_{name}']:.3f}" for name in target_names)
    rate = row["pictures"] / max(row["elapsed_s"], 1e-9)
    head = f"step {row['step']:.0f}  {row['elapsed_s'] / 60:.1f} min  {rate:.1f} pictures/s"
    return f"{head}  train {row['train_mse']:.4f}  validation {row['validation_mse']:.4f}  r: {r}"


def _batches(pictures: Any, settings: TrainingSettings, steps: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = picture_order(steps * settings.batch_size, len(pictures), settings.seed)
    batches = order.reshape(steps, settings.batch_size)[first:].tolist()
    kwargs: dict[str, Any] = {"prefetch_factor": 4} if settings.workers else {}
    kwargs["generator"] = torch.Generator()  # else every iterator draws from the global state, which dropout uses
    return iter(DataLoader(pictures, batch_sampler=batches, num_workers=settings.workers, collate_fn=collate, **kwargs))


def _save(
    accelerator: Accelerator,
    folder: Path,
    signature: dict[str, Any],
    progress: Progress,
    best: dict[str, Tensor],
) -> None:
    """A new state beside the old one, under its final name only when complete; then the old one goes."""
    scratch, final = folder / "unfinished", folder / f"step_{progress.step:09d}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    accelerator.save_state(str(scratch))
    save_file(best, scratch / "best.safetensors")
    record = {"signature": signature, "progress": vars(progress)}
    (scratch / "progress.json").write_text(json.dumps(record) + "\n")
    for path in scratch.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(scratch, final)
    for old in folder.glob("step_*"):
        if old != final:
            shutil.rmtree(old)


def _resume(accelerator: Accelerator, folder: Path, signature: dict[str, Any]) -> tuple[Progress, dict[str, Tensor]]:
    states = sorted(folder.glob("step_*"))
    if not states:
        return Progress(), {}
    record = json.loads((states[-1] / "progress.json").read_text())
    differing = [key for key in signature if record["signature"].get(key) != signature[key]]
    if differing:
        raise ValueError(
            f"{folder}: holds a run with other settings ({', '.join(differing)}); finish or delete it first"
        )
    accelerator.load_state(str(states[-1]))
    return Progress(**record["progress"]), load_file(states[-1] / "best.safetensors")
