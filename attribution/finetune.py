"""Fine-tune a vision transformer to read numbers off pictures: LoRA on attention, a regression head on the first token.

Writes to --output-dir the model folder (`attribution.checkpoint`), training_log.csv, training_curve.png and
training_config.json. The weights kept are those with the lowest error on the validation pictures. A run that was killed
goes on where it was when the same command is given again; its states lie in <output-dir>/resume until it is done.

examples (options may be spelt with - or _):

  a callable that gives data sets, one hour at most:
    python -m attribution.finetune --data my_pictures:labelled_pictures --output-dir model --time-budget-min 60

  a folder of PNG files with metadata.csv (file_name, label columns, perhaps split):
    python -m attribution.finetune --data pictures --targets width_mm,height_mm --output-dir model --num-pictures 5000

  a small random backbone and few pictures, to see it run:
    python -m attribution.finetune --data my_pictures:labelled_pictures --backbone tiny-dinov2 \\
        --output-dir trial --num-pictures 320 --validation-pictures 32 --validate-every 5
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import HfArgumentParser

from attribution.backbone import load_backbone
from attribution.checkpoint import CONFIG_FILE, load_pretrained, save_pretrained, weights_sha256
from attribution.datasets import LabelledPictures, open_dataset, read_labels
from attribution.training import TrainingSettings, collate, train
from attribution.training_log import write_log
from attribution.vit import RegressorConfig, ViTRegressor, output_projections

STATISTICS_PICTURES, GOLDEN_PICTURES = 2000, 8


def _option(text: str, **kwargs: Any) -> Any:
    return field(metadata={"help": text}, **kwargs)


@dataclass(frozen=True)
class FinetuneSettings:
    """The options of the command."""

    data: str = _option("module:callable, called with split, count, seed; or a folder with metadata.csv")
    output_dir: str = _option("where the model and its log go")
    targets: str = _option("label columns of a folder, a,b,c", default="")
    target_units: str = _option("their units, s,Hz,Hz", default="")
    data_options: str = _option("more arguments of the callable, name=value,name=value", default="")
    backbone: str = _option("packaged, a folder, a hub id, tiny-vit or tiny-dinov2", default="packaged")
    num_pictures: int = _option("training pictures, seen once where the data set has so many", default=30000)
    validation_pictures: int = _option("validation pictures", default=200)
    batch_size: int = _option("pictures per step", default=16)
    learning_rate: float = _option("at the end of the warm-up", default=1e-3)
    weight_decay: float = _option("of AdamW", default=0.01)
    warmup_fraction: float = _option("share of the run in which the learning rate rises", default=0.03)
    grad_clip: float = _option("largest gradient norm", default=1.0)
    lora_r: int = _option("rank of the LoRA matrices", default=8)
    lora_alpha: int = _option("their scale is alpha / r", default=16)
    lora_dropout: float = _option("on their input", default=0.0)
    lora_targets: str = _option("which projections they adapt", default="q_proj,v_proj")
    validate_every: int = _option("steps between validations", default=100)
    time_budget_min: float | None = _option("minutes of training after which it ends, annealed", default=None)
    save_every_min: float = _option("minutes between states for resuming", default=5.0)
    dtype: str = _option("auto, bf16 or float32", default="auto")
    device: str = _option("auto or cpu", default="auto")
    workers: int = _option("processes that draw pictures", default=1)
    seed: int = _option("of initial weights, pictures and their order", default=0)


def check_settings(settings: FinetuneSettings) -> None:
    """Raise `ValueError` naming the first option that makes no sense."""
    for name in (
        "num_pictures",
        "validation_pictures",
        "batch_size",
        "validate_every",
        "lora_r",
        "lora_alpha",
    ):
        if getattr(settings, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(settings, name)}")
    for name in ("learning_rate", "grad_clip", "time_budget_min"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')}: expected a positive number, got {value}")
    for name in ("warmup_fraction", "lora_dropout"):
        if not 0 <= getattr(settings, name) < 1:
            raise ValueError(
                f"--{name.replace('_', '-')}: expected 0 or more and less than 1, got {getattr(settings, name)}"
            )
    for name in ("weight_decay", "workers", "seed", "save_every_min"):
        if not getattr(settings, name) >= 0:
            raise ValueError(f"--{name.replace('_', '-')}: expected 0 or more, got {getattr(settings, name)}")
    if settings.num_pictures < settings.batch_size:
        raise ValueError(f"--num-pictures: {settings.num_pictures} do not fill one batch of {settings.batch_size}")
    if settings.dtype not in ("auto", "bf16", "float32"):
        raise ValueError(f"--dtype: expected auto, bf16 or float32, got {settings.dtype!r}")
    if settings.device not in ("auto", "cpu"):
        raise ValueError(f"--device: expected auto or cpu, got {settings.device!r}")
    if (Path(settings.output_dir) / CONFIG_FILE).exists():
        raise ValueError(f"--output-dir: {settings.output_dir} holds a finished model, choose another folder")


def mixed_precision(dtype: str, on_cpu: bool) -> str:
    """What accelerate is asked for: bf16 where the hardware multiplies it natively or it is demanded, else none."""
    if dtype == "auto":
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        supported = native if on_cpu else torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return "bf16" if supported else "no"
    return "bf16" if dtype == "bf16" else "no"


def build_model(settings: FinetuneSettings, pictures: LabelledPictures, attention: str) -> ViTRegressor:
    """The regressor before training, float32 on the CPU; label scaling from the first 2000 training labels."""
    labels = read_labels(pictures, STATISTICS_PICTURES)
    image = pictures[0]["image"]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3:
        raise ValueError(
            f"data {settings.data}: expected square pictures uint8 [row col 3], got {image.dtype} {image.shape}"
        )
    constant = [name for name, std in zip(pictures.target_names, labels.std(0), strict=True) if not std > 0]
    if constant:
        raise ValueError(f"data {settings.data}: the label {constant[0]} is the same in all of {len(labels)} pictures")
    config = RegressorConfig(
        target_names=tuple(pictures.target_names),
        target_units=tuple(pictures.target_units),
        label_mean=tuple(float(value) for value in labels.mean(0)),
        label_std=tuple(float(value) for value in labels.std(0)),
        image_size=image.shape[0],
        backbone=settings.backbone,
        synthesizer=dict(pictures.synthesizer),
    )
    backbone = load_backbone(settings.backbone, attn_implementation=attention)
    lora = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(_names(settings.lora_targets)),
    )
    set_seed(settings.seed)
    wrapped: Any = get_peft_model(backbone, lora)  # freezes the backbone; refuses names that match nothing
    model = ViTRegressor(wrapped, config)
    output_projections(model)  # refuses a LoRA on the output projections
    return model


def finetune(settings: FinetuneSettings) -> Path:
    """Train by the settings and write the model; gives its folder."""
    check_settings(settings)
    output = Path(settings.output_dir)
    precision = mixed_precision(settings.dtype, settings.device == "cpu" or not torch.cuda.is_available())
    accelerator = Accelerator(mixed_precision=precision, cpu=settings.device == "cpu")
    if accelerator.num_processes > 1:
        raise ValueError(
            f"{accelerator.num_processes} processes: training runs in one process, start it with python -m"
        )
    open_split: dict[str, Any] = {
        "seed": settings.seed,
        "targets": _names(settings.targets),
        "target_units": _names(settings.target_units),
        "options": _options(settings.data_options),
    }
    pictures: Any = open_dataset(settings.data, "train", settings.num_pictures, **open_split)
    held_out: Any = open_dataset(settings.data, "validation", settings.validation_pictures, **open_split)
    # eager attention trains 1.3 times as fast as sdpa on CPUs (bf16, 257 tokens); on GPUs it is the other way round
    model = build_model(settings, pictures, "sdpa" if accelerator.device.type == "cuda" else "eager")
    model.to(accelerator.device)
    output.mkdir(parents=True, exist_ok=True)
    batches = list(DataLoader(held_out, batch_size=16, num_workers=settings.workers, collate_fn=collate))
    images, labels = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    names = TrainingSettings.__dataclass_fields__
    training_settings = TrainingSettings(**{name: getattr(settings, name) for name in names})
    signature = {name: value for name, value in asdict(settings).items() if name not in ("workers", "save_every_min")}
    signature |= {"output_dir": "", "precision": precision, "synthesizer": model.config.synthesizer}
    progress = train(
        model,
        pictures,
        (images, labels),
        training_settings,
        accelerator,
        output / "resume",
        json.loads(json.dumps(signature)),
    )
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False).to("cpu")
    model.set_attn_implementation("eager")
    save_pretrained(model.eval(), output, images[:GOLDEN_PICTURES])
    write_log(output, asdict(settings), progress, precision, weights_sha256(load_pretrained(output)))
    shutil.rmtree(output / "resume", ignore_errors=True)
    if progress.best_mse >= 1:
        print("warning: the model predicts no better than the mean of the labels", file=sys.stderr)
    return output


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text.strip() else ()


def _options(text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in _names(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"--data-options: expected name=value, got {part!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The module's text as it is, defaults beside the options."""


def main(argv: list[str] | None = None) -> int:
    """The command; 0, or 2 after one line about what was wrong."""
    options: Any = FinetuneSettings
    parser = HfArgumentParser(
        options,
        prog="python -m attribution.finetune",
        description=__doc__,
        formatter_class=_HelpFormatter,
    )
    try:
        (settings,) = parser.parse_args_into_dataclasses(argv)
        print(finetune(settings))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
