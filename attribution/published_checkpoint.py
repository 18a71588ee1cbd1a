"""The study's checkpoint as a model folder: from transformers 4 names to today's, every tensor accounted for.

Takes the whole state_dict of the released code of Bahador (arXiv 2503.22713, 2503.18762), say best_vit_regression.pth,
and the scaling of the labels, which is not in it; gives the folder of `attribution.checkpoint` (LoRA kept apart). Sizes
are read off the tensors. Not in the file, hence options: the number of attention heads and LoRA's alpha. Assumed, as in
google/vit-base-patch16-224: GELU and a layer norm epsilon of 1e-12. Does not know pictures or how well the model
predicts them; the pictures kept with the folder, by which it is checked on loading, are random.

examples:

  label scaling from the labels it was trained on (mean and population standard deviation, ddof 0, over all rows):
    python -m attribution.published_checkpoint best_vit_regression.pth --allow-pickle --output-dir model \\
        --labels labels.csv

  label scaling as numbers (start time in s, start and end frequency in Hz); safetensors needs no --allow-pickle:
    python -m attribution.published_checkpoint best_vit_regression.safetensors --output-dir model \\
        --label-mean 22.5,50,50 --label-std 13,29,30

A .pth, .pt or .bin file is a pickle: --allow-pickle reads it, by a loader that takes tensors and refuses all else. The
pooler may be in the file: the regression head never reads it, so it is left out, which is said.
"""

import argparse
import csv
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import ViTConfig, ViTModel

from attribution.checkpoint import CONFIG_FILE, MODEL_FILES, load_pretrained, saving
from attribution.own_folder import Filling, require_folder_name, require_free
from attribution.packaged import sha256_of_file, summary
from attribution.preprocessing import PREPROCESSING, mean_and_std
from attribution.vit import RegressorConfig, ViTRegressor, unwrapped

TARGET_NAMES, TARGET_UNITS = ("start_time_s", "start_freq_hz", "end_freq_hz"), ("s", "Hz", "Hz")
LABEL_COLUMNS = ("Chirp_Start_Time", "Chirp_Start_Freq", "Chirp_End_Freq")
PICKLES = (".pth", ".pt", ".bin")
CHANNELS_PER_HEAD = 64  # of every ViT that google published
LORA_ALPHA, LORA_DROPOUT = 16, 0.1
GOLDEN_PICTURES = 4
FILLING = Filling("attribution.published_checkpoint", MODEL_FILES, CONFIG_FILE)

Rule = tuple[str, str, str]  # name in the file, name here, shape

_VIT, _OURS = "vit.base_model.model.", "backbone.base_model.model."
_PATCHES = "embeddings.patch_embeddings.projection"
_LAYER = re.compile(re.escape(_VIT) + r"encoder\.layer\.(\d+)\.")
RULES: tuple[Rule, ...] = (
    (f"{_VIT}embeddings.cls_token", f"{_OURS}embeddings.cls_token", "1 1 hidden"),
    (f"{_VIT}embeddings.position_embeddings", f"{_OURS}embeddings.position_embeddings", "1 tokens hidden"),
    (f"{_VIT}{_PATCHES}.weight", f"{_OURS}{_PATCHES}.weight", "hidden 3 patch patch"),
    (f"{_VIT}{_PATCHES}.bias", f"{_OURS}{_PATCHES}.bias", "hidden"),
    (f"{_VIT}layernorm.weight", f"{_OURS}layernorm.weight", "hidden"),
    (f"{_VIT}layernorm.bias", f"{_OURS}layernorm.bias", "hidden"),
    ("regression_head.0.weight", "head.0.weight", "256 hidden"),
    ("regression_head.0.bias", "head.0.bias", "256"),
    ("regression_head.2.weight", "head.2.weight", "128 256"),
    ("regression_head.2.bias", "head.2.bias", "128"),
    ("regression_head.4.weight", "head.4.weight", "3 128"),
    ("regression_head.4.bias", "head.4.bias", "3"),
)
RULES_OF_LAYER: tuple[Rule, ...] = (  # below encoder.layer.N there, below layers.N here
    ("attention.attention.query.base_layer.weight", "attention.q_proj.base_layer.weight", "hidden hidden"),
    ("attention.attention.query.base_layer.bias", "attention.q_proj.base_layer.bias", "hidden"),
    ("attention.attention.query.lora_A.default.weight", "attention.q_proj.lora_A.default.weight", "rank hidden"),
    ("attention.attention.query.lora_B.default.weight", "attention.q_proj.lora_B.default.weight", "hidden rank"),
    ("attention.attention.key.weight", "attention.k_proj.weight", "hidden hidden"),
    ("attention.attention.key.bias", "attention.k_proj.bias", "hidden"),
    ("attention.attention.value.base_layer.weight", "attention.v_proj.base_layer.weight", "hidden hidden"),
    ("attention.attention.value.base_layer.bias", "attention.v_proj.base_layer.bias", "hidden"),
    ("attention.attention.value.lora_A.default.weight", "attention.v_proj.lora_A.default.weight", "rank hidden"),
    ("attention.attention.value.lora_B.default.weight", "attention.v_proj.lora_B.default.weight", "hidden rank"),
    ("attention.output.dense.weight", "attention.o_proj.weight", "hidden hidden"),
    ("attention.output.dense.bias", "attention.o_proj.bias", "hidden"),
    ("layernorm_before.weight", "layernorm_before.weight", "hidden"),
    ("layernorm_before.bias", "layernorm_before.bias", "hidden"),
    ("layernorm_after.weight", "layernorm_after.weight", "hidden"),
    ("layernorm_after.bias", "layernorm_after.bias", "hidden"),
    ("intermediate.dense.weight", "mlp.fc1.weight", "intermediate hidden"),
    ("intermediate.dense.bias", "mlp.fc1.bias", "intermediate"),
    ("output.dense.weight", "mlp.fc2.weight", "hidden intermediate"),
    ("output.dense.bias", "mlp.fc2.bias", "hidden"),
)
UNREAD = {f"{_VIT}pooler.dense.weight": "hidden hidden", f"{_VIT}pooler.dense.bias": "hidden"}
_SIZES_READ_OFF = {  # size -> tensor and axis
    "hidden": (f"{_VIT}embeddings.position_embeddings", 2),
    "tokens": (f"{_VIT}embeddings.position_embeddings", 1),
    "patch": (f"{_VIT}{_PATCHES}.weight", 2),
    "intermediate": (f"{_VIT}encoder.layer.0.intermediate.dense.bias", 0),
    "rank": (f"{_VIT}encoder.layer.0.attention.attention.query.lora_A.default.weight", 0),
}


@dataclass(frozen=True)
class Architecture:
    """Sizes of the study's model; all but `num_heads` are those of its tensors."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    patch_size: int
    image_size: int
    lora_rank: int


def read_state(path: str | Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or, where that is allowed, of a pickled state_dict, by the names they have.

    The prefix `module.`, which data-parallel training puts before every name, is taken off. Raises `ValueError` for a
    pickle without `allow_pickle` or that holds anything but named tensors, `OSError` where nothing can be read.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", *PICKLES):
        raise ValueError(f"{path}: expected a file named .safetensors, {', '.join(PICKLES)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found")
    if path.suffix in PICKLES and not allow_pickle:
        raise ValueError(
            f"{path}: is a pickle file, which could run code; --allow-pickle reads it by a loader that takes tensors "
            "and refuses all else (or store its tensors as .safetensors)"
        )
    state = _read_pickle(path) if path.suffix in PICKLES else _read_safetensors(path)
    prefix = "module."
    if state and all(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def architecture_of(state: dict[str, Tensor], num_attention_heads: int | None = None) -> Architecture:
    """The sizes of a complete state; by default heads have 64 channels.

    Raises `ValueError` telling of tensors that are missing, unexpected, misshaped or not finite numbers.
    """
    num_layers = len({match[1] for name in state if (match := _LAYER.match(name))})
    shapes = {name: shape for name, _, shape in _rules(num_layers)}
    if any(name in state for name in UNREAD):  # both or none
        shapes |= UNREAD
    sizes = {
        size: state[name].shape[axis]
        for size, (name, axis) in _SIZES_READ_OFF.items()
        if name in state and state[name].dim() == len(shapes[name].split())
    }
    expected = {name: _in_numbers(shape, sizes) for name, shape in shapes.items()}
    both = sorted(expected.keys() & state.keys())
    misshaped = [name for name in both if not _fits(state[name], expected[name])]
    unmatched = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "misshaped": [f"{name} {list(state[name].shape)}, expected [{expected[name]}]" for name in misshaped],
        "not finite floating-point numbers": [name for name in both if not _is_finite(state[name])],
    }
    if any(unmatched.values()):
        raise ValueError(f"tensors are not those of the study's model: {summary(unmatched)}")
    if not num_layers or min(sizes.values()) < 1:
        raise ValueError(f"tensors are not those of the study's model: {num_layers} layers, sizes {sizes}")
    hidden, side = sizes["hidden"], math.isqrt(sizes["tokens"] - 1)
    if side * side != sizes["tokens"] - 1 or not side:
        raise ValueError(f"{sizes['tokens']} positions are not one and a square number of patches")
    if num_attention_heads is None and hidden % CHANNELS_PER_HEAD:
        raise ValueError(
            f"--num-attention-heads: is not in the file, and {hidden} channels do not split into heads of "
            f"{CHANNELS_PER_HEAD}; expected a number"
        )
    num_heads = hidden // CHANNELS_PER_HEAD if num_attention_heads is None else num_attention_heads
    if num_heads < 1 or hidden % num_heads:
        raise ValueError(f"--num-attention-heads: {hidden} channels do not split into {num_heads} heads")
    return Architecture(
        hidden_size=hidden,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=sizes["intermediate"],
        patch_size=sizes["patch"],
        image_size=side * sizes["patch"],
        lora_rank=sizes["rank"],
    )


def map_state(state: dict[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """The tensors of a complete state in float32, by the names they have in a `ViTRegressor` with LoRA."""
    return {ours: state[theirs].to(torch.float32) for theirs, ours, _ in _rules(architecture.num_layers)}


def build_model(
    state: dict[str, Tensor],
    label_mean: tuple[float, ...],
    label_std: tuple[float, ...],
    *,
    preprocessing: str = "unit",
    num_attention_heads: int | None = None,
    lora_alpha: int = LORA_ALPHA,
    backbone: str = ".",
    synthesizer: dict[str, Any] | None = None,
) -> ViTRegressor:
    """The regressor with these weights: float32, on the CPU, eval mode, eager attention, LoRA unmerged.

    `backbone` and `synthesizer` go to its `RegressorConfig`. `attribution.checkpoint` stores the backbone's weights
    too only where `backbone` is a path that exists: anything else is a name to load them by.
    """
    architecture = architecture_of(state, num_attention_heads)
    if lora_alpha < 1:
        raise ValueError(f"--lora-alpha: expected at least 1, got {lora_alpha}")
    image_mean, image_std = mean_and_std(preprocessing)
    config = RegressorConfig(
        target_names=TARGET_NAMES,
        target_units=TARGET_UNITS,
        label_mean=label_mean,
        label_std=label_std,
        image_size=architecture.image_size,
        image_mean=image_mean,
        image_std=image_std,
        backbone=backbone,
        synthesizer=dict(synthesizer or {}),
    )
    settings = ViTConfig(
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.num_heads,
        intermediate_size=architecture.intermediate_size,
        image_size=architecture.image_size,
        patch_size=architecture.patch_size,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        qkv_bias=True,
    )
    lora = LoraConfig(
        r=architecture.lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=LORA_DROPOUT,
        target_modules=["q_proj", "v_proj"],
    )
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced
        wrapped: Any = get_peft_model(ViTModel(settings, add_pooling_layer=False), lora)
        model = ViTRegressor(wrapped, config)
    model.load_state_dict(map_state(state, architecture), strict=True)
    model.set_attn_implementation("eager")
    return model.eval().requires_grad_(False)


def label_statistics(path: str | Path) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean, population standard deviation (ddof 0) and number of rows of the three labels in a labels.csv.

    Other columns are ignored. Raises `ValueError` naming file, row (the header is row 1) and column.
    """
    path = Path(path)
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            wrong = [name for name in LABEL_COLUMNS if columns.count(name) != 1]
            if wrong:
                raise ValueError(f"{path}: expected one column {', '.join(wrong)}, found {', '.join(columns)}")
            for record in reader:
                if None in record:
                    raise ValueError(f"{path}: row {reader.line_num}: more than {len(columns)} fields")
                rows.append([_finite(path, reader.line_num, name, record[name]) for name in LABEL_COLUMNS])
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table in CSV ({error})") from error
    if not rows:
        raise ValueError(f"{path}: no rows below the header")
    labels = np.array(rows, dtype=np.float64)
    constant = [name for name, column in zip(LABEL_COLUMNS, labels.T, strict=True) if np.ptp(column) == 0]
    if constant:
        raise ValueError(f"{path}: {constant[0]} is the same in all of {len(rows)} rows, it cannot be standardised")
    return tuple(labels.mean(0).tolist()), tuple(labels.std(0).tolist()), len(rows)


def _rules(num_layers: int) -> list[Rule]:
    rules = list(RULES)
    for layer in range(num_layers):
        there, here = f"{_VIT}encoder.layer.{layer}.", f"{_OURS}layers.{layer}."
        rules += [(there + theirs, here + ours, shape) for theirs, ours, shape in RULES_OF_LAYER]
    return rules


def _in_numbers(shape: str, sizes: dict[str, int]) -> str:
    """`1 tokens hidden` as `1 197 768`; a size that could not be read off stays a name."""
    return " ".join(str(sizes.get(part, part)) for part in shape.split())


def _fits(value: Tensor, shape: str) -> bool:
    parts = shape.split()
    return value.dim() == len(parts) and all(
        not part.isdigit() or int(part) == size for part, size in zip(parts, value.shape, strict=True)
    )


def _is_finite(value: Tensor) -> bool:
    plain = value.layout == torch.strided and value.device.type == "cpu" and value.is_floating_point()
    return plain and bool(torch.isfinite(value.to(torch.float32)).all())


def _number(text: str) -> float:
    """NaN for what is no number; Python would read 1_0 as 10."""
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _finite(path: Path, row: int, column: str, text: str | None) -> float:
    value = _number(text or "")
    if not math.isfinite(value):
        raise ValueError(f"{path}: row {row}, {column}: expected a finite number, got {text or ''!r}")
    return value


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file may break the loader anywhere
        refused = re.search(r"GLOBAL (\S+)", str(error))  # torch goes on to tell how to run it all the same
        reason = f"holds {refused[1]}, which is no tensor" if refused else "cannot be read"
        raise ValueError(f"{path}: {reason}; expected a state_dict of tensors alone") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}, expected a state_dict of tensors")
    for name, value in found.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            continue
        advice = f"; store its {name!r} alone" if name in ("model_state_dict", "state_dict", "model") else ""
        raise ValueError(f"{path}: {name!r} is a {type(value).__name__}, expected a state_dict of tensors{advice}")
    return {name: value.detach() for name, value in found.items()}


def _three_numbers(option: str, text: str) -> tuple[float, ...]:
    values = tuple(map(_number, text.split(",")))
    if len(values) != len(TARGET_NAMES) or not all(map(math.isfinite, values)):
        raise ValueError(f"{option}: expected three numbers, of {', '.join(TARGET_NAMES)}, got {text!r}")
    if option == "--label-std" and min(values) <= 0:
        raise ValueError(f"{option}: expected positive numbers, got {text!r}")
    return values


def _label_scaling(options: argparse.Namespace) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Mean, standard deviation, and where they are from."""
    numbers = (options.label_mean, options.label_std)
    if (options.labels is None) == (numbers == (None, None)) or numbers.count(None) == 1:
        raise ValueError("labels: expected --labels, or both of --label-mean and --label-std")
    if options.labels is None:
        mean, std = (
            _three_numbers(name, text) for name, text in zip(("--label-mean", "--label-std"), numbers, strict=True)
        )
        return mean, std, "as given"
    mean, std, count = label_statistics(options.labels)
    return mean, std, f"mean and population standard deviation of {count} rows of {options.labels}"


def _convert(options: argparse.Namespace) -> list[str]:
    """Write the folder; gives the lines to be said about what is in it."""
    options.output_dir = require_folder_name(options.output_dir)
    if (options.output_dir / CONFIG_FILE).exists():
        raise ValueError(f"--output-dir: {options.output_dir} holds a finished model, choose another folder")
    require_free(options.output_dir, FILLING)
    label_mean, label_std, source = _label_scaling(options)
    state = read_state(options.checkpoint, options.allow_pickle)
    try:
        model = build_model(
            state,
            label_mean,
            label_std,
            preprocessing=options.preprocessing,
            num_attention_heads=options.num_attention_heads,
            lora_alpha=options.lora_alpha,
            backbone=str(options.checkpoint),
            # The preset is that of data_synth which draws as the study's generator draws.
            synthesizer={
                "name": "chirp-spectrogram-generator",
                "preset": "published",
                "checkpoint": options.checkpoint.name,
                "checkpoint_sha256": sha256_of_file(options.checkpoint),
            },
        )
    except ValueError as error:
        raise ValueError(f"{options.checkpoint}: {error}") from error
    size = model.config.image_size
    golden = np.random.default_rng(0).integers(0, 256, (GOLDEN_PICTURES, size, size, 3), dtype=np.uint8)
    with saving(model, options.output_dir, golden, FILLING) as scratch:
        load_pretrained(scratch)  # refuses a folder that predicts other numbers
    unread = [name for name in UNREAD if name in state]
    base: Any = unwrapped(model.backbone)
    lines = [f"{len(state)} tensors in the file, {len(state) - len(unread)} in the model"]
    if unread:
        lines.append(f"left out, as the regression head does not read the pooler: {', '.join(unread)}")
    num_heads = base.config.num_attention_heads
    lines.append(f"not in the file, so taken as told: {num_heads} heads per layer, LoRA alpha {options.lora_alpha}")
    for name, unit, mean, std in zip(TARGET_NAMES, TARGET_UNITS, label_mean, label_std, strict=True):
        lines.append(f"{name}: mean {mean:.6g} {unit}, standard deviation {std:.6g} {unit}")
    return [*lines, f"label scaling: {source}"]


def main(argv: list[str] | None = None) -> int:
    """The command; 0, or 2 after one line about what was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m attribution.published_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="the state_dict: .safetensors, or .pth, .pt, .bin (pickles)")
    parser.add_argument("--output-dir", required=True, help="where the model goes")
    parser.add_argument("--labels", type=Path, help=f"a labels.csv with {', '.join(LABEL_COLUMNS)}")
    parser.add_argument("--label-mean", help="instead of --labels: three numbers, a,b,c")
    parser.add_argument("--label-std", help="and their standard deviations, a,b,c")
    parser.add_argument(
        "--preprocessing",
        default="unit",
        choices=PREPROCESSING,
        help="of pixels: unit (/255 alone, as the study trained; default), imagenet (as its released code analyses)",
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read a pickle file, tensors and nothing else")
    parser.add_argument("--num-attention-heads", type=int, help="per layer; default: one for every 64 channels")
    parser.add_argument("--lora-alpha", type=int, default=LORA_ALPHA, help="LoRA's scale is alpha / rank; default: 16")
    options = parser.parse_args(argv)
    try:
        lines = _convert(options)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print("\n".join([*lines, str(options.output_dir)]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
