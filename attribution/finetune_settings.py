"""The options of `attribution.finetune`, and what makes no sense among them.

Takes strings and numbers as they were given; knows neither files nor models.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from attribution.own_folder import require_folder_name
from attribution.preprocessing import mean_and_std


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
    preprocessing: str = _option("of pixels: imagenet, unit (/255 alone) or half", default="imagenet")
    num_pictures: int = _option("training pictures, seen once where the data set has so many", default=30000)
    validation_pictures: int = _option("validation pictures", default=200)
    batch_size: int = _option("pictures per step, over all processes", default=16)
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
    workers: int = _option("processes that draw pictures, for each that trains", default=1)
    seed: int = _option("of initial weights, pictures and their order", default=0)


def check_settings(settings: FinetuneSettings, num_processes: int = 1) -> None:
    """Raise `ValueError` naming the first option that makes no sense for a training by so many processes."""
    require_folder_name(settings.output_dir)
    targets = names_of(settings.targets)
    twice = [name for name in dict.fromkeys(targets) if targets.count(name) > 1]
    if twice:
        raise ValueError(f"--targets: expected each label column once, got {', '.join(twice)} more than once")
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
    try:
        mean_and_std(settings.preprocessing)
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    if settings.device not in ("auto", "cpu"):
        raise ValueError(f"--device: expected auto or cpu, got {settings.device!r}")
    if settings.batch_size % num_processes:
        raise ValueError(
            f"--batch-size: {settings.batch_size} pictures cannot be split evenly over {num_processes} processes"
        )


def names_of(text: str) -> tuple[str, ...]:
    """The parts of a,b,c without blanks around them; nothing of an empty text."""
    return tuple(part.strip() for part in text.split(",")) if text.strip() else ()


def data_options_of(text: str) -> dict[str, Any]:
    """The arguments of name=value,name=value, values as JSON where they are; `ValueError` for a part without =."""
    options: dict[str, Any] = {}
    for part in names_of(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"--data-options: expected name=value, got {part!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
        except RecursionError:
            raise ValueError(f"--data-options: {name}: nested too deep") from None
    return options
