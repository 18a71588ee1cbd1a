"""Folders written and read back, and everything that must be refused on the way back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from attribution import checkpoint, own_folder
from attribution.backbone import tiny_backbone
from attribution.checkpoint import load_pretrained, save_pretrained, weights_sha256
from attribution.packaged import sha256_of_file
from attribution.vit import IMAGENET_MEAN

GOLDEN = np.random.default_rng(5).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def saved(regressor_factory, tmp_path):
    """A LoRA model on a tiny DINOv2 and the folder it was saved to."""
    model = regressor_factory("dinov2", lora=True)
    save_pretrained(model, tmp_path / "model", GOLDEN)
    return model, tmp_path / "model"


def sign_again(folder, name):
    """Make regressor_config.json agree with a changed file, so that the next check is reached."""
    record = json.loads((folder / "regressor_config.json").read_text())
    record["files"][name] = sha256_of_file(folder / name)
    (folder / "regressor_config.json").write_text(json.dumps(record))


def change_tensors(folder, name, change):
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})
    sign_again(folder, name)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_round_trip_is_exact(regressor_factory, tmp_path, kind, lora):
    model = regressor_factory(kind, lora)
    save_pretrained(model, tmp_path, GOLDEN)
    loaded = load_pretrained(tmp_path)
    assert loaded.config == model.config
    assert isinstance(loaded.backbone, PeftModel) == lora
    pixel_values = model.preprocess(GOLDEN)
    assert torch.equal(loaded(pixel_values), model(pixel_values))
    assert weights_sha256(loaded) == weights_sha256(model)
    assert not any(module.training for module in loaded.modules())
    assert not any(value.requires_grad for value in loaded.parameters())
    assert loaded.backbone.config._attn_implementation == "eager"
    in_double = load_pretrained(tmp_path, dtype=torch.float64)
    assert in_double.dtype == torch.float64
    assert (in_double(pixel_values) - model(pixel_values)).abs().max() <= 1e-5
    assert load_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_merged_is_unmerged(saved):
    model, folder = saved
    merged = load_pretrained(folder, merge=True)
    assert not isinstance(merged.backbone, PeftModel)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    pixel_values = model.preprocess(GOLDEN)
    assert (merged(pixel_values) - model(pixel_values)).abs().max() <= 1e-5
    model.backbone.disable_adapter_layers()
    assert (merged(pixel_values) - model(pixel_values)).abs().max() > 1e-3  # the adapters do something


def test_named_backbone_is_not_copied(saved, tmp_path, monkeypatch):
    model, _ = saved
    model.config = checkpoint.RegressorConfig(**{**vars(model.config), "backbone": "someone/some-vit"})
    save_pretrained(model, tmp_path / "named", GOLDEN)
    assert not (tmp_path / "named" / "backbone").exists()
    assert (
        json.loads((tmp_path / "named" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "someone/some-vit"
    )
    monkeypatch.setattr(checkpoint, "load_backbone", lambda name: tiny_backbone("dinov2", seed=0))
    assert weights_sha256(load_pretrained(tmp_path / "named")) == weights_sha256(model)
    monkeypatch.setattr(checkpoint, "load_backbone", lambda name: tiny_backbone("dinov2", seed=1))
    with pytest.raises(ValueError, match="backbone someone/some-vit has weights"):
        load_pretrained(tmp_path / "named")


def test_no_pickles_and_the_same_bytes_twice(saved, tmp_path):
    model, folder = saved
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    save_pretrained(model, tmp_path / "again", GOLDEN)
    for path in sorted(folder.rglob("*.*")):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()
    (folder / "notes.txt").write_text("kept")
    save_pretrained(model, folder, GOLDEN)
    assert (folder / "notes.txt").exists() and not list(folder.glob(".saving*"))


def drop(key):
    return lambda tensors: tensors.pop(key)


def put(key, value):
    return lambda tensors: tensors.update({key: value})


LORA_B = "base_model.model.encoder.layer.1.attention.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("head.safetensors", drop("2.bias"), r"head\.safetensors: missing 2\.bias"),
        ("head.safetensors", put("6.bias", torch.zeros(1)), r"unexpected 6\.bias"),
        ("head.safetensors", put("2.bias", torch.zeros(5)), r"2\.bias is \[5\], expected \[128\]"),
        ("adapter_model.safetensors", drop(LORA_B), rf"adapter_model\.safetensors: missing {LORA_B}"),
        ("adapter_model.safetensors", put("base_model.surplus", torch.zeros(1)), r"unexpected base_model\.surplus"),
        ("adapter_model.safetensors", put(LORA_B, torch.zeros(32, 3)), r"is \[32, 3\], expected \[32, 2\]"),
        ("adapter_model.safetensors", put(LORA_B, torch.ones(32, 2)), "predictions differ by"),
        ("head.safetensors", put("4.bias", torch.ones(3)), "predictions differ by"),
        ("golden.safetensors", put("predictions", torch.zeros(8, 3)), r"golden\.safetensors: predictions differ by"),
        ("golden.safetensors", put("predictions", torch.full((8, 3), torch.nan)), "predictions differ by nan"),
        ("golden.safetensors", put("predictions", torch.zeros(8, 2)), r"are \[8, 2\], expected \[8, 3\]"),
        ("golden.safetensors", drop("images"), "expected images and predictions"),
        ("backbone/model.safetensors", drop("layernorm.bias"), r"1 missing \(layernorm\.bias\)"),
        ("backbone/model.safetensors", put("layernorm.bias", torch.ones(32)), "backbone tiny-dinov2 has weights"),
    ],
)
def test_other_tensors_are_refused(saved, name, change, message):
    _, folder = saved
    change_tensors(folder, name, change)
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(folder)
    assert "\n" not in str(error.value)


def test_lora_that_was_never_trained_is_refused(saved, tmp_path):
    model, folder = saved

    def zero(tensors):
        tensors.update({name: value * 0 for name, value in tensors.items() if "lora_B" in name})

    change_tensors(folder, "adapter_model.safetensors", zero)
    with pytest.raises(ValueError, match="the LoRA matrices B are all zero"):
        load_pretrained(folder)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.zero_()
    with pytest.raises(ValueError, match="the LoRA matrices B are all zero"):
        save_pretrained(model, tmp_path / "untrained", GOLDEN)
    assert not (tmp_path / "untrained").exists()


@pytest.mark.parametrize(
    "name", ["head.safetensors", "golden.safetensors", "adapter_model.safetensors", "backbone/config.json"]
)
def test_changed_corrupted_and_absent_files_are_refused(saved, name):
    _, folder = saved
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="changed or half-written"):
        load_pretrained(folder)
    if name.endswith("safetensors"):
        (folder / name).write_bytes(content[: len(content) // 2])
        sign_again(folder, name)
        with pytest.raises(ValueError, match="not a safetensors file"):
            load_pretrained(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"not found, but regressor_config\.json names it"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("label_std"), r"missing keys \['label_std'\]"),
        (put("colour", "red"), r"unknown keys \['colour'\]"),
        (put("format", 99), "format 99, expected 1"),
        (put("files", {"../head.safetensors": "0"}), "files: expected some of"),
        (put("label_std", [1.0, 1.0, 0.0]), "standard deviations finite and positive"),
    ],
)
def test_other_configs_are_refused(saved, change, message):
    _, folder = saved
    path = folder / "regressor_config.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_no_folder_and_no_json(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"regressor_config\.json: not found"):
        load_pretrained(tmp_path / "nowhere")
    _, folder = saved
    (folder / "regressor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"regressor_config\.json: not JSON"):
        load_pretrained(folder)


def test_save_refuses_train_mode_and_other_dtypes(saved, tmp_path):
    model, _ = saved
    with pytest.raises(ValueError, match="eval mode, float32, on the CPU"):
        save_pretrained(model.train(), tmp_path / "x", GOLDEN)
    with pytest.raises(ValueError, match="eval mode, float32, on the CPU"):
        save_pretrained(model.eval().double(), tmp_path / "x", GOLDEN)


def test_interrupted_save_leaves_the_old_model_or_a_refused_one(saved, monkeypatch):
    model, folder = saved
    before = shutil.copytree(folder, folder.parent / "before")
    model.head[4].bias += 1
    replace, calls = own_folder.os.replace, []

    def fail_at_third(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(own_folder.os, "replace", fail_at_third)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(model, folder, GOLDEN)
    assert not list(folder.glob(".saving*"))
    monkeypatch.undo()
    loaded = load_pretrained(folder)  # the first files had not changed, so this is still the old model
    assert weights_sha256(loaded) == weights_sha256(load_pretrained(before))


def test_weights_sha256_sees_values_names_and_dtypes(regressor_factory):
    model = regressor_factory("vit", lora=False)
    digests = {weights_sha256(model), weights_sha256(regressor_factory("vit", lora=False, seed=1))}
    model.head[0].bias[0] += 1e-3
    digests.add(weights_sha256(model))
    digests.add(weights_sha256(model.double()))
    assert len(digests) == 4


@pytest.mark.parametrize("name", ["default", "seed-1", "seed-2", "published", "colorbar"])
def test_models_that_are_shipped_load_and_predict_what_they_did(name):
    """`load_pretrained` compares weights, files and predictions; here it is told what each is for."""
    model = load_pretrained(Path(checkpoint.__file__).parent / "models" / name)
    preset = {"published": "published", "colorbar": "colorbar"}.get(name, "default")
    assert model.config.synthesizer["preset"] == preset
    assert model.config.image_mean == ((0, 0, 0) if name == "published" else IMAGENET_MEAN)
    assert len(model.config.target_names) == (1 if name == "colorbar" else 3)
