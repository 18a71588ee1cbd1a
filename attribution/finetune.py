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

  the settings of the published study, for a machine with a GPU and a hub at hand:
    python -m attribution.finetune --config attribution/configs/published-vit-b16.yaml --output-dir vit-b16

  several processes, each with its part of every batch (OMP_NUM_THREADS: cores for each; GPUs: accelerate launch too):
    OMP_NUM_THREADS=8 torchrun --nproc_per_node 2 -m attribution.finetune --data my_pictures:labelled_pictures \\
        --output-dir model

Where nothing is dropped out, the result is that of one process but for rounding. All processes must see the same data
and the same --output-dir; a run goes on with as many processes as began it. Where the command ends with code 2,
torchrun reports that code and ends with its own, 1.
"""

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader, Subset
from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from attribution.backbone import load_backbone
from attribution.checkpoint import load_pretrained, saving, weights_sha256
from attribution.datasets import LabelledPictures, open_dataset, pictures_sha256, read_labels
from attribution.finetune_folder import FILLING, STATES, only_to_be_tidied, own_output, shaping
from attribution.finetune_settings import FinetuneSettings, check_settings, data_options_of, names_of
from attribution.preprocessing import mean_and_std
from attribution.processes import (
    alike,
    end,
    from_main,
    process_number,
    processes_launched,
    require_same,
    share,
    start,
    tell,
    together,
)
from attribution.training import TrainingSettings, collate, train
from attribution.training_log import write_log
from attribution.training_state import begin_states, remove_states
from attribution.vit import RegressorConfig, ViTRegressor, output_projections

STATISTICS_PICTURES, GOLDEN_PICTURES = 2000, 8


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
    image_mean, image_std = mean_and_std(settings.preprocessing)
    config = RegressorConfig(
        target_names=tuple(pictures.target_names),
        target_units=tuple(pictures.target_units),
        label_mean=tuple(float(value) for value in labels.mean(0)),
        label_std=tuple(float(value) for value in labels.std(0)),
        image_size=image.shape[0],
        image_mean=image_mean,
        image_std=image_std,
        backbone=settings.backbone,
        synthesizer=dict(pictures.synthesizer),
    )
    backbone = load_backbone(settings.backbone, attn_implementation=attention)
    _require_adaptable(backbone, settings)
    lora = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(names_of(settings.lora_targets)),
    )
    set_seed(settings.seed)
    wrapped: Any = get_peft_model(backbone, lora)  # freezes the backbone
    model = ViTRegressor(wrapped, config)
    output_projections(model)  # refuses a LoRA on the output projections
    return model


def _require_adaptable(backbone: torch.nn.Module, settings: FinetuneSettings) -> None:
    """`ValueError` for targets that are no projections of the backbone (peft passes over one among several), and for a
    rank above the width of one that is: more has no effect but on memory."""
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    found = {name: module for name, module in backbone.named_modules() if isinstance(module, layers)}
    outputs = {id(projection) for projection in output_projections(backbone)}
    there = {name.rpartition(".")[2] for name, module in found.items() if id(module) not in outputs}
    widths_of = {f".{name}": min(len(module.weight), module.weight[0].numel()) for name, module in found.items()}
    for target in names_of(settings.lora_targets) or ("",):
        widths = [width for name, width in widths_of.items() if name.endswith(f".{target}")]
        if not target or not widths:
            raise ValueError(f"--lora-targets: expected some of {', '.join(sorted(there))}, got {target!r}")
        if settings.lora_r > min(widths):
            raise ValueError(f"--lora-r: expected at most {min(widths)}, the width of {target}, got {settings.lora_r}")


def finetune(settings: FinetuneSettings) -> Path:
    """Train by the settings, with all processes that were launched, and write the model; gives its folder."""
    with alike():
        check_settings(settings, processes_launched())
    # accelerate joins processes on CPUs only where it is told to use them
    on_cpu = settings.device == "cpu" or (processes_launched() > 1 and not torch.cuda.is_available())
    precision = mixed_precision(settings.dtype, on_cpu or not torch.cuda.is_available())
    accelerator = start(on_cpu, precision)
    if not accelerator.is_main_process:
        disable_progress_bar()  # of loading weights
    output, finished = Path(settings.output_dir), False
    with ExitStack() as held:
        with together(accelerator):
            if accelerator.is_main_process:
                held.enter_context(own_output(output))
                finished = only_to_be_tidied(output, settings, lambda: _shown(*_open_splits(settings)))
        (finished,) = map(bool, from_main(accelerator, [finished]))
        if not finished:
            _finetune(settings, accelerator, output, precision)
    return output


def _finetune(settings: FinetuneSettings, accelerator: Accelerator, output: Path, precision: str) -> None:
    """Train and write in a folder that is held."""
    main_process = accelerator.is_main_process
    with together(accelerator):
        pictures, held_out = _open_splits(settings)
        if len(held_out) < accelerator.num_processes:
            raise ValueError(
                f"data {settings.data}: {len(held_out)} validation pictures for {accelerator.num_processes} processes, "
                "expected at least one for each"
            )
        # eager attention trains 1.3 times as fast as sdpa on CPUs (bf16, 257 tokens); on GPUs it is the other way round
        model = build_model(settings, pictures, "sdpa" if accelerator.device.type == "cuda" else "eager")
        shown = _shown(pictures, held_out)
    if not main_process:
        set_seed(settings.seed + accelerator.process_index)  # else dropout would drop the same in every process
    model.to(accelerator.device)
    signature = shaping(settings) | {"precision": precision, "synthesizer": model.config.synthesizer}
    signature |= {"output_dir": "", "num_processes": accelerator.num_processes, "pictures": shown}
    scales = [f"{value:.9g}" for value in (*model.config.label_mean, *model.config.label_std)]
    require_same(accelerator, {**signature, "labels": scales})
    with together(accelerator):
        if not output.is_dir():
            raise ValueError(f"--output-dir: {output} is not there; expected a folder that all processes share")
        if main_process:
            begin_states(output / STATES, shaping(settings), shown)
        mine = Subset(held_out, share(accelerator, len(held_out)))
        batches = list(DataLoader(mine, batch_size=16, num_workers=settings.workers, collate_fn=collate))
        images, labels = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    names = TrainingSettings.__dataclass_fields__
    progress = train(
        model,
        pictures,
        (images, labels),
        TrainingSettings(**{name: getattr(settings, name) for name in names}),
        accelerator,
        output / STATES,
        json.loads(json.dumps(signature)),
    )
    with together(accelerator):
        if main_process:
            model = accelerator.unwrap_model(model, keep_fp32_wrapper=False).to("cpu")
            model.set_attn_implementation("eager")
            golden = collate([held_out[index] for index in range(min(GOLDEN_PICTURES, len(held_out)))])[0]
            with saving(model.eval(), output, golden, FILLING) as scratch:
                sha256 = weights_sha256(load_pretrained(scratch))  # refuses what predicts other numbers
                write_log(scratch, asdict(settings), progress, precision, accelerator.num_processes, sha256)
            remove_states(output / STATES)
            if progress.best_mse >= 1:
                print("warning: the model predicts no better than the mean of the labels", file=sys.stderr)


def _open_splits(settings: FinetuneSettings) -> tuple[Any, Any]:
    return _open_split(settings, "train"), _open_split(settings, "validation")


def _shown(*data_sets: Any) -> list[str]:
    """Digests of the pictures of data sets."""
    return [pictures_sha256(pictures) for pictures in data_sets]


def _open_split(settings: FinetuneSettings, split: str) -> Any:
    return open_dataset(
        settings.data,
        split,
        settings.num_pictures if split == "train" else settings.validation_pictures,
        settings.seed,
        names_of(settings.targets),
        names_of(settings.target_units),
        data_options_of(settings.data_options),
    )


def words_of_config(words: list[str]) -> list[str]:
    """The options in the YAML file that --config names, as on the command line; none without one.

    Raises `ValueError` naming file and option for one that is unknown or has no plain value, `OSError` for no file.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    path = finder.parse_known_args(words)[0].config
    if path is None:
        return []
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path}: expected option: value lines")
    known = {item.name for item in fields(FinetuneSettings)}
    found = []
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{path}: unknown option {name}, expected some of {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"{path}: {name}: expected a text or a number, got {value!r}")
        found += [f"--{name}", str(value)]
    return found


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The module's text as it is, defaults beside the options."""


def main(argv: list[str] | None = None) -> int:
    """The command; 0, 2 after one line about what was wrong, 3 where it was stopped before the end."""
    options: Any = FinetuneSettings
    parser = HfArgumentParser(
        options,
        prog="python -m attribution.finetune",
        description=__doc__,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument(
        "--config", default=None, metavar="FILE", help="YAML file with any of these, which they override"
    )
    try:
        with alike():
            words = sys.argv[1:] if argv is None else list(argv)
            settings, _ = parser.parse_args_into_dataclasses([*words_of_config(words), *words])
        folder = finetune(settings)
    except (ValueError, OSError) as error:
        tell(error)
        return 2
    except KeyboardInterrupt:
        if process_number() == 0:
            print("\nstopped; the same command goes on from the last state that was saved", file=sys.stderr)
        return 3
    if process_number() == 0:
        print(folder)
    end()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
