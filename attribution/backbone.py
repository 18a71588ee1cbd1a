"""Pretrained vision transformers by name: the packaged default, a local folder, or a hub id.

Takes a name; gives a transformers model without pooler, in eval mode, every weight of it loaded (a checkpoint that
leaves one out is refused). Safetensors only, never a pickle. Does not know regression heads, LoRA, or data.

The packaged default is told of in `attribution.packaged`.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)

from attribution.packaged import packaged_folder, summary
from attribution.vit import attention_modules

TINY = ("tiny-vit", "tiny-dinov2")
HEADS_OF_TASKS = (
    "classifier",
    "cls_classifier",
    "distillation_classifier",
    "pooler",
    "vit.pooler",
    "decoder",
    "mask_token",
)


def load_backbone(
    name_or_path: str | Path = "packaged",
    attn_implementation: str = "eager",
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """The backbone of that name: `packaged`, a folder with config.json and model.safetensors, or a hub id.

    `tiny-vit` and `tiny-dinov2` are small random ones for trying things out.

    Raises `ValueError` for a model that is no vision transformer or lacks a weight, `OSError` where nothing is found.
    """
    if str(name_or_path) in TINY:
        kind = str(name_or_path).removeprefix("tiny-")
        tiny: Any = tiny_backbone(kind, image_size=224, patch_size=14, attn_implementation=attn_implementation)
        return tiny.to(dtype)
    path = packaged_folder() if str(name_or_path) == "packaged" else name_or_path
    try:
        config: Any = AutoConfig.from_pretrained(path)
        model_class: Any = AutoModel._model_mapping[type(config)]  # the class AutoModel would take
    except (OSError, KeyError, ValueError) as error:
        raise OSError(f"backbone {name_or_path}: no model found ({_first_line(error)})") from error
    kwargs: dict[str, Any] = {}
    if "add_pooling_layer" in inspect.signature(model_class).parameters:
        kwargs["add_pooling_layer"] = False
    try:
        model, report = model_class.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            **kwargs,
        )
    except OSError as error:
        raise OSError(f"backbone {name_or_path}: no safetensors weights ({_first_line(error)})") from error
    except SafetensorError as error:  # cut short, or not what its header says
        where = Path(path) / "model.safetensors" if Path(path).is_dir() else f"backbone {name_or_path}"
        raise ValueError(f"{where}: not a whole safetensors file ({_first_line(error)})") from error
    unexpected = [key for key in report["unexpected_keys"] if not key.startswith(HEADS_OF_TASKS)]
    unmatched = {"missing": sorted(report["missing_keys"]), "unexpected": sorted(unexpected)}
    unmatched["misshaped"] = sorted(str(key) for key in report["mismatched_keys"])
    if any(unmatched.values()):
        raise ValueError(f"backbone {name_or_path}: weights do not match the architecture: {summary(unmatched)}")
    check_vision_transformer(model, str(name_or_path))
    return model.eval()


def check_vision_transformer(model: Any, name: str) -> None:
    """Raise `ValueError` unless the model reads pictures and has attention modules of a ViT."""
    kind = type(model).__name__
    if getattr(model, "main_input_name", "") != "pixel_values" or not hasattr(model.config, "hidden_size"):
        raise ValueError(f"backbone {name}: expected a vision transformer, got {kind}")
    try:
        attention_modules(model)
    except ValueError as error:
        raise ValueError(f"backbone {name}: expected a vision transformer, but {error}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def tiny_backbone(
    kind: str = "vit",
    seed: int = 0,
    *,
    image_size: int = 32,
    patch_size: int = 8,
    num_layers: int = 3,
    num_heads: int = 4,
    hidden_size: int = 32,
    attn_implementation: str = "eager",
) -> PreTrainedModel:
    """A small `vit` or `dinov2` (with LayerScale) of random weights, the same for the same seed.

    Initial weights are drawn wider than transformers draws them, so that the heads matter and differ.
    """
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "image_size": image_size,
        "patch_size": patch_size,
        "initializer_range": 0.2,
        "attn_implementation": attn_implementation,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "vit":
            model: PreTrainedModel = ViTModel(
                ViTConfig(intermediate_size=2 * hidden_size, **sizes), add_pooling_layer=False
            )
        elif kind == "dinov2":
            model = Dinov2Model(Dinov2Config(mlp_ratio=2, layerscale_value=0.5, use_mask_token=False, **sizes))
        else:
            raise ValueError(f"tiny backbone: expected kind vit or dinov2, got {kind!r}")
    return model.eval()
