"""The training loop of a regressor: one pass over fresh pictures, validated, saved, resumed.

Takes a model whose trainable weights require gradients, two data sets and settings; leaves in the model the trainable
weights that validated best, and gives the log. Does not know what is trained (LoRA or all), nor where the model goes.

The learning rate follows the *progress*, max(step / steps, elapsed / time budget): linear warm-up, then a cosine to 0.
With a budget the rate so still ends at 0 when time is up. Pictures come in an order fixed by the seed; where the data
set is shorter than asked for, it is shuffled anew for every pass.

Several processes split every batch, and the validation pictures, into equal or nearly equal stretches and average their
gradients, so that they take the steps of one process. The clock that counts is that of the main process, which alone
prints; what it decides by it, all follow.
"""

import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from attribution.processes import AgreedError, from_main, joined, mean_over_processes, together
from attribution.training_state import Progress, resume, save_state
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


def validate(
    model: torch.nn.Module, images: Tensor, labels: Tensor, accelerator: Accelerator, batch_size: int = 32
) -> tuple[float, np.ndarray]:
    """Mean squared error (standardised) and Pearson r `[target]` on preprocessed pictures; train mode is put back.

    `images` are the share of this process, `labels` are standardised and those of all; the results are of all too.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        parts = [model(pixel_values).float() for pixel_values in images.split(batch_size)]
    model.train(was_training)
    predictions = torch.from_numpy(joined(accelerator, torch.cat(parts).cpu().numpy()))
    truth = labels.float().cpu()
    mse = float(loss_per_image(predictions, truth).double().mean())
    return mse, pearson(predictions.double().numpy(), truth.double().numpy())


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

    With several processes each gives its stretch of the validation pictures, all else alike, and every process leaves
    with the same weights. States are kept in `resume_folder` under `signature` (all that shapes the result): a run
    killed at any instant and started again goes on from the last of them; another signature there is a `ValueError`.
    """
    weights = trainable(model)
    # lr is set before every step; torch multiplies the decay by it
    optimizer: Any = torch.optim.AdamW(weights.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    progress, best = resume(accelerator, resume_folder, signature)
    steps = max(1, settings.num_pictures // settings.batch_size)
    budget_s = math.inf if settings.time_budget_min is None else 60 * settings.time_budget_min
    with together(accelerator):
        valid = (model.preprocess(validation[0]), model.standardise(validation[1]))
    valid = (valid[0], torch.from_numpy(joined(accelerator, valid[1].cpu().numpy())))
    batches = _batches(pictures, settings, steps, progress.step, accelerator)
    start_s, saved_s, saved_step = time.monotonic() - progress.elapsed_s, time.monotonic(), progress.step
    prepared.train()
    with _bar(accelerator, 100 * max(progress.step / steps, progress.elapsed_s / budget_s)) as bar:
        while progress.step < steps:
            due = progress.step > saved_step and time.monotonic() - saved_s >= 60 * settings.save_every_min
            progress.elapsed_s, save_now = from_main(accelerator, [time.monotonic() - start_s, due])
            if save_now:
                save_state(accelerator, resume_folder, signature, progress, best)
                saved_s, saved_step = time.monotonic(), progress.step
            fraction = max(progress.step / steps, progress.elapsed_s / budget_s)
            if fraction >= 1 and progress.step:
                break
            progress.learning_rate = settings.learning_rate * learning_rate_factor(fraction, settings.warmup_fraction)
            for group in optimizer.param_groups:
                group["lr"] = progress.learning_rate
            with together(accelerator):
                images, labels = next(batches)
                pixel_values, targets = model.preprocess(images), model.standardise(labels)
            loss = loss_per_image(prepared(pixel_values), targets).mean()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(weights.values(), settings.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            progress.recent.append(mean_over_processes(accelerator, loss.detach()))
            if not math.isfinite(progress.recent[-1]):
                raise AgreedError(
                    f"step {progress.step}: the loss is {progress.recent[-1]}; try a smaller --learning-rate"
                )
            progress.step += 1
            bar.update(100 * fraction - bar.n)
            bar.set_postfix(step=progress.step, mse=f"{np.mean(progress.recent[-20:]):.4f}", refresh=False)
            if progress.step % settings.validate_every == 0:
                progress.elapsed_s = time.monotonic() - start_s
                best = _validate_and_log(model, valid, settings, progress, best, accelerator)
        if progress.recent:
            best = _validate_and_log(model, valid, settings, progress, best, accelerator)
        if progress.step > saved_step:  # what comes now can fail too: a full disk is not to cost the training
            save_state(accelerator, resume_folder, signature, progress, best)
        bar.update(100 - bar.n)
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(best[name])
    return progress


def _bar(accelerator: Accelerator, percent: float) -> tqdm:
    interval_s = 1 if sys.stderr.isatty() else 30
    bar_format = "{l_bar}{bar}| [{elapsed} < {remaining}{postfix}]"
    silent = not accelerator.is_main_process
    return tqdm(total=100, unit="%", initial=percent, mininterval=interval_s, bar_format=bar_format, disable=silent)


def _validate_and_log(
    model: ViTRegressor,
    valid: tuple[Tensor, Tensor],
    settings: TrainingSettings,
    progress: Progress,
    best: dict[str, Tensor],
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Append a row; gives the weights that are best so far."""
    mse, r = validate(model, *valid, accelerator)
    row: dict[str, float] = {"step": progress.step, "pictures": progress.step * settings.batch_size}
    row |= {"elapsed_s": round(progress.elapsed_s, 1), "learning_rate": progress.learning_rate}
    row |= {"train_mse": float(np.mean(progress.recent)), "validation_mse": mse}
    row |= {f"r_{name}": float(value) for name, value in zip(model.config.target_names, r, strict=True)}
    progress.rows.append(row)
    progress.recent = []
    if accelerator.is_main_process:
        tqdm.write(_line(row, model.config.target_names), file=sys.stderr)
    if not math.isfinite(mse):
        raise AgreedError(f"step {progress.step}: the validation error is {mse}; try a smaller --learning-rate")
    if mse >= progress.best_mse:
        return best
    progress.best_mse, progress.best_step = mse, progress.step
    return {name: value.detach().cpu().clone() for name, value in trainable(model).items()}


def _line(row: dict[str, float], target_names: tuple[str, ...]) -> str:
    r = " ".join(f"{name} {row[f'r_{name}']:.3f}" for name in target_names)
    rate = row["pictures"] / max(row["elapsed_s"], 1e-9)
    head = f"step {row['step']:.0f}  {row['elapsed_s'] / 60:.1f} min  {rate:.1f} pictures/s"
    return f"{head}  train {row['train_mse']:.4f}  validation {row['validation_mse']:.4f}  r: {r}"


def _batches(
    pictures: Any, settings: TrainingSettings, steps: int, first: int, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor]]:
    """What this process takes of every batch from step `first` on."""
    order = picture_order(steps * settings.batch_size, len(pictures), settings.seed)
    shares = order.reshape(steps, accelerator.num_processes, -1)  # [step process picture]
    batches = shares[first:, accelerator.process_index].tolist()
    kwargs: dict[str, Any] = {"prefetch_factor": 4} if settings.workers else {}
    kwargs["generator"] = torch.Generator()  # else every iterator draws from the global state, which dropout uses
    kwargs |= {"num_workers": settings.workers, "worker_init_fn": _give_way}
    return iter(DataLoader(pictures, batch_sampler=batches, collate_fn=collate, **kwargs))


def _give_way(worker: int) -> None:
    """Processes that draw ahead take what time training leaves: on few cores both would wait for each other."""
    if hasattr(os, "nice"):  # not on Windows
        os.nice(10)
