"""A trained regressor in a folder, and back: safetensors and JSON only, nothing is guessed.

Gives and takes a `ViTRegressor`. A LoRA model on a named backbone is stored as PEFT stores adapters, without the
backbone; any other model is stored whole. `regressor_config.json` is written last and holds the sha256 of every other
file, so a folder that was half-written or changed afterwards is refused. `golden.safetensors` holds a few pictures and
the predictions on them: they are predicted again on every load. Does not know how the model was trained.

    adapter_config.json  adapter_model.safetensors   LoRA (PEFT's own layout)
    backbone/config.json  backbone/model.safetensors  where the backbone has no name or was itself changed
    head.safetensors  golden.safetensors  regressor_config.json
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.backbone import TINY, load_backbone
from attribution.own_folder import Filling, filled_at_once
from attribution.packaged import sha256_of_file
from attribution.vit import RegressorConfig, ViTRegressor, unwrapped

FORMAT = 1
CONFIG_FILE, HEAD_FILE, GOLDEN_FILE = "regressor_config.json", "head.safetensors", "golden.safetensors"
ADAPTER_CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
BACKBONE_FILES = ("backbone/config.json", "backbone/model.safetensors")
PARTS = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, *BACKBONE_FILES, HEAD_FILE, GOLDEN_FILE)
MODEL_FILES = (*PARTS, CONFIG_FILE)
SAVING = Filling("attribution.checkpoint", MODEL_FILES, CONFIG_FILE)
# Largest differences from the golden predictions, in standardised units. Rounding a prediction of 3 to bfloat16 alone
# moves it by up to 0.008.
TOLERANCE_CPU, TOLERANCE_DEVICE, TOLERANCE_HALF = 1e-4, 1e-2, 5e-2


def save_pretrained(model: ViTRegressor, folder: str | Path, golden_images: np.ndarray | Tensor) -> None:
    """Write the model and its predictions on `golden_images` (uint8 `[image row col 3]`) to the folder.

    The model must be in float32 on the CPU and in eval mode. Files are replaced one by one, each atomically; other
    files in the folder are left alone. Raises `ValueError` for a LoRA model whose adapters change nothing.
    """
    with saving(model, folder, golden_images, SAVING, replacing=True):
        pass


@contextmanager
def saving(
    model: ViTRegressor,
    folder: str | Path,
    golden_images: np.ndarray | Tensor,
    filling: Filling,
    *,
    replacing: bool = False,
) -> Iterator[Path]:
    """As `save_pretrained`; gives the block the whole model in a scratch folder, to be looked at or added to.

    Only when the block ends do files get their names in `folder`, the one that says it is finished last of all; unless
    `replacing`, they are refused where files are that no killed run of `filling` has left.
    """
    if model.training or model.device.type != "cpu" or model.dtype != torch.float32:
        raise ValueError(f"save a model in eval mode, float32, on the CPU, got {model.dtype} on {model.device}")
    folder = Path(folder)
    if isinstance(model.backbone, PeftModel):
        _require_effect(model, str(folder))
    with torch.no_grad():
        predictions = model(model.preprocess(golden_images))
    golden = {"images": torch.as_tensor(np.ascontiguousarray(golden_images)), "predictions": predictions}
    with filled_at_once(folder, filling, replacing=replacing) as scratch:
        try:
            _write(model, scratch, golden)
            yield scratch
        except SafetensorError as error:  # of a file that it cannot write
            raise OSError(f"{folder}: cannot be written ({error})") from error
        except (ValueError, OSError) as error:
            if str(scratch) in str(error):
                raise type(error)(str(error).replace(str(scratch), str(folder))) from error
            raise


def _write(model: ViTRegressor, folder: Path, golden: dict[str, Tensor]) -> None:
    wrapped = isinstance(model.backbone, PeftModel)
    named = model.config.backbone not in TINY and not Path(model.config.backbone).exists()
    if wrapped:
        _write_adapter(model, folder)
    if not (wrapped and named):
        base: Any = unwrapped(model.backbone)
        (folder / "backbone").mkdir()
        save_file(_base_weights(model.backbone), folder / BACKBONE_FILES[1], metadata={"format": "pt"})
        base.config.save_pretrained(folder / "backbone")
    save_file(_contiguous(model.head.state_dict()), folder / HEAD_FILE)
    save_file(golden, folder / GOLDEN_FILE)
    record: dict[str, Any] = {"format": FORMAT, **asdict(model.config)}
    record["backbone_sha256"] = _sha256_of_tensors(_base_weights(model.backbone))
    record["files"] = {name: sha256_of_file(folder / name) for name in PARTS if (folder / name).is_file()}
    (folder / CONFIG_FILE).write_text(json.dumps(record, indent=2) + "\n")


def load_pretrained(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    merge: bool = False,
) -> ViTRegressor:
    """The regressor in the folder: eval mode, eager attention, no gradients for weights, golden predictions met.

    `merge=True` folds the LoRA into the weights it adapts. Raises `ValueError` naming file and keys where anything is
    missing, left over, of another shape, changed since it was written, or predicts other numbers than it did.
    """
    folder = Path(folder)
    config, files, backbone_sha256 = _read_config(folder)
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: not found, but {CONFIG_FILE} names it")
        if sha256_of_file(folder / name) != expected:
            raise ValueError(f"{folder / name}: its sha256 is not the one in {CONFIG_FILE}: changed or half-written")
    embedded = BACKBONE_FILES[1] in files
    backbone: Any = load_backbone(folder / "backbone" if embedded else config.backbone)
    found = _sha256_of_tensors(_base_weights(backbone))
    if found != backbone_sha256:
        raise ValueError(
            f"{folder}: backbone {config.backbone} has weights {found[:12]}, expected {backbone_sha256[:12]}"
        )
    if ADAPTER_FILE in files:
        lora = LoraConfig.from_pretrained(str(folder))
        lora.base_model_name_or_path = None  # peft would warn of another name; the sha256 was compared above
        backbone = get_peft_model(backbone, lora)
        adapter = _read_tensors(folder / ADAPTER_FILE)
        _require_match(adapter, get_peft_model_state_dict(backbone), folder / ADAPTER_FILE)
        set_peft_model_state_dict(backbone, adapter)
    model = ViTRegressor(backbone, config)
    head = _read_tensors(folder / HEAD_FILE)
    _require_match(head, model.head.state_dict(), folder / HEAD_FILE)
    model.head.load_state_dict(head, strict=True)
    if ADAPTER_FILE in files:
        _require_effect(model, str(folder / ADAPTER_FILE))
        if merge:
            model.backbone = backbone.merge_and_unload()
    model.set_attn_implementation("eager")
    model = model.eval().requires_grad_(False).to(device=torch.device(device), dtype=dtype)
    _check_golden(model, folder / GOLDEN_FILE)
    return model


def backbone_settings(model: ViTRegressor) -> dict[str, Any]:
    """What the backbone computes besides its weights: its configuration and that of adapters, no paths; for digests."""
    backbone: Any = model.backbone
    adapters = {name: config.to_dict() for name, config in getattr(backbone, "peft_config", {}).items()}
    base: Any = unwrapped(backbone)
    own = base.config.to_dict() if hasattr(base, "config") and hasattr(base.config, "to_dict") else {}
    left_out = ("_name_or_path", "name_or_path", "base_model_name_or_path", "transformers_version")

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(found) for key, found in value.items() if key not in left_out}
        return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)

    return {"backbone": plain(own), "adapters": plain(adapters)}


def weights_sha256(model: torch.nn.Module) -> str:
    """Hexadecimal sha256 over names, dtypes, shapes and bytes of all weights and buffers, sorted by name."""
    return _sha256_of_tensors(model.state_dict())


def _write_adapter(model: ViTRegressor, folder: Path) -> None:
    backbone: Any = model.backbone
    save_file(_contiguous(get_peft_model_state_dict(backbone)), folder / ADAPTER_FILE, metadata={"format": "pt"})
    backbone.peft_config["default"].save_pretrained(str(folder))
    record = json.loads((folder / ADAPTER_CONFIG_FILE).read_text())
    record["target_modules"] = sorted(record["target_modules"])  # a set, written in an order that changes
    record["base_model_name_or_path"], record["inference_mode"] = model.config.backbone, True
    (folder / ADAPTER_CONFIG_FILE).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def _require_effect(model: ViTRegressor, where: str) -> None:
    norms = [float(value.detach().norm()) for name, value in model.backbone.named_parameters() if ".lora_B." in name]
    if not norms or max(norms) == 0:
        raise ValueError(f"{where}: the LoRA matrices B are all zero, expected trained adapters")


def _base_weights(backbone: torch.nn.Module) -> dict[str, Tensor]:
    """Weights of the transformer itself, under the names it has without PEFT."""
    state = unwrapped(backbone).state_dict()
    return _contiguous(
        {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    )


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in state.items()}


def _sha256_of_tensors(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_config(folder: Path) -> tuple[RegressorConfig, dict[str, str], str]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, expected a folder written by attribution.finetune")
    try:
        record = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    names = {item.name for item in fields(RegressorConfig)}
    expected = names | {"format", "files", "backbone_sha256"}
    if not isinstance(record, dict) or record.keys() != expected:
        found = set(record) if isinstance(record, dict) else set()
        raise ValueError(f"{path}: missing keys {sorted(expected - found)}, unknown keys {sorted(found - expected)}")
    if record["format"] != FORMAT:
        raise ValueError(f"{path}: format {record['format']}, expected {FORMAT}")
    if not isinstance(record["files"], dict) or not isinstance(record["backbone_sha256"], str):
        raise ValueError(f"{path}: expected files with the sha256 of each, and that of the backbone")
    allowed = {*PARTS}
    if set(record["files"]) - allowed or not {HEAD_FILE, GOLDEN_FILE} <= set(record["files"]):
        raise ValueError(f"{path}: files: expected some of {sorted(allowed)}, got {sorted(record['files'])}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value := record[name], list) else value for name in names
    }
    return RegressorConfig(**values), record["files"], record["backbone_sha256"]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error


def _require_match(found: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    problems = [f"missing {key}" for key in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected {key}" for key in sorted(found.keys() - expected.keys())]
    for key in sorted(expected.keys() & found.keys()):
        if found[key].shape != expected[key].shape:
            problems.append(f"{key} is {list(found[key].shape)}, expected {list(expected[key].shape)}")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")


def _check_golden(model: ViTRegressor, path: Path) -> None:
    golden = _read_tensors(path)
    if golden.keys() != {"images", "predictions"}:
        raise ValueError(f"{path}: expected images and predictions, got {sorted(golden)}")
    tolerance = TOLERANCE_CPU if model.device.type == "cpu" else TOLERANCE_DEVICE
    if model.dtype in (torch.bfloat16, torch.float16):
        tolerance = TOLERANCE_HALF
    with torch.no_grad():
        predictions = model(model.preprocess(golden["images"])).to("cpu", torch.float64)
    if predictions.shape != golden["predictions"].shape:
        raise ValueError(
            f"{path}: predictions are {list(golden['predictions'].shape)}, expected {list(predictions.shape)}"
        )
    difference = float((predictions - golden["predictions"].double()).abs().max())
    if not difference <= tolerance:
        raise ValueError(
            f"{path}: predictions differ by {difference:.2g} from those stored, expected at most {tolerance:g}"
        )
