"""The study's checkpoint as this project's model: the same predictions as the released class, and what is refused.

`data/published_checkpoint.safetensors` is the whole state_dict of the released `ViTForRegression` on a small ViT (three
layers of four heads, every parameter drawn at random, LoRA's B too), made under transformers 4;
`data/published_checkpoint_expected.json` holds pictures and what that class predicted on them, and the versions.
"""

import base64
import csv
import json
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from attribution import checkpoint
from attribution.checkpoint import load_pretrained, save_pretrained
from attribution.published_checkpoint import (
    LABEL_COLUMNS,
    RULES,
    RULES_OF_LAYER,
    UNREAD,
    Architecture,
    architecture_of,
    build_model,
    label_statistics,
    main,
    map_state,
    read_state,
)
from attribution.vit import head_layout, unwrapped

DATA = Path(__file__).parent / "data"
SAFETENSORS = DATA / "published_checkpoint.safetensors"
EXPECTED = json.loads((DATA / "published_checkpoint_expected.json").read_text())
PICTURES = np.frombuffer(base64.b64decode(EXPECTED["pictures_base64"]), dtype=np.uint8)
PICTURES = PICTURES.reshape(EXPECTED["pictures_shape"]).copy()
PREDICTIONS = torch.tensor(EXPECTED["predictions"], dtype=torch.float64)
HEADS = EXPECTED["num_attention_heads"]
SCALING = ["--label-mean", "22.5,50,51", "--label-std", "13,29,30"]
QUERY = "vit.base_model.model.encoder.layer.1.attention.attention.query."
KEY_BIAS = "vit.base_model.model.encoder.layer.{}.attention.attention.key.bias"
POOLER_WEIGHT, POOLER_BIAS = UNREAD


@pytest.fixture
def state():
    return load_file(SAFETENSORS)


def build(state, **settings):
    return build_model(state, (22.5, 50.0, 51.0), (13.0, 29.0, 30.0), num_attention_heads=HEADS, **settings)


def predict(model, dtype=torch.float32):
    with torch.no_grad():
        return model.to(dtype)(model.preprocess(PICTURES).to(dtype)).double()


def run(capsys, *arguments):
    """Exit code, lines of output, lines of errors without those of third parties."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), [line for line in captured.err.splitlines() if line.startswith("error")]


def write_labels(path, rows, columns=(*LABEL_COLUMNS, "Chirp_Duration", "Chirp_Type")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


# --- the same numbers


def test_predictions_are_those_of_the_released_class(state, tmp_path):
    model = build(state)
    assert isinstance(model.backbone, PeftModel)
    assert unwrapped(model.backbone).config.layer_norm_eps == 1e-12  # 1e-6 would hardly show below
    assert not any(module.training for module in model.modules())
    assert (predict(model) - PREDICTIONS).abs().max() <= 1e-5
    assert PREDICTIONS.std(0).min() > 0.05  # else agreement would say little
    save_pretrained(model, tmp_path / "model", PICTURES)
    loaded = load_pretrained(tmp_path / "model")
    assert (predict(loaded) - PREDICTIONS).abs().max() <= 1e-5
    merged = load_pretrained(tmp_path / "model", merge=True)
    assert (predict(merged) - PREDICTIONS).abs().max() <= 1e-5


def test_command_on_a_pickle_writes_a_model_that_predicts_the_same(state, tmp_path, monkeypatch, capsys):
    """The backbone is stored within: the folder does not need the checkpoint, wherever either lies."""
    monkeypatch.chdir(tmp_path)
    torch.save(OrderedDict(state), "best_vit_regression.pth")
    arguments = ["best_vit_regression.pth", "--allow-pickle", "--output-dir", "model", "--num-attention-heads", HEADS]
    code, said, errors = run(capsys, *arguments, *SCALING)
    assert (code, errors) == (0, [])
    assert said[-1] == "model" and f"{len(state)} tensors in the file, {len(state) - 2} in the model" in said
    (line,) = [line for line in said if "pooler" in line]
    assert "left out" in line and POOLER_WEIGHT in line and POOLER_BIAS in line
    Path("best_vit_regression.pth").unlink()
    Path("model").rename("elsewhere")
    model = load_pretrained("elsewhere")
    assert (predict(model) - PREDICTIONS).abs().max() <= 1e-5
    config = model.config
    assert config.target_names == ("start_time_s", "start_freq_hz", "end_freq_hz")
    assert config.target_units == ("s", "Hz", "Hz")
    assert (config.label_mean, config.label_std) == ((22.5, 50.0, 51.0), (13.0, 29.0, 30.0))
    assert (config.image_mean, config.image_std, config.image_size) == ((0.0,) * 3, (1.0,) * 3, 32)
    assert config.synthesizer["checkpoint"] == "best_vit_regression.pth"
    layout = head_layout(model)
    assert (layout.num_layers, layout.num_heads, layout.num_rows, layout.num_cols) == (3, HEADS, 4, 4)


def test_command_on_safetensors_with_labels_and_other_preprocessing(tmp_path, capsys):
    labels = write_labels(
        tmp_path / "labels.csv", [[1, 10, 30, 5, "linear"], [3, 20, 10, 6, "exponential"], [8, 60, 20, 2, "linear"]]
    )
    arguments = [SAFETENSORS, "--output-dir", tmp_path / "model", "--num-attention-heads", HEADS, "--labels", labels]
    code, said, _ = run(capsys, *arguments, "--preprocessing", "imagenet", "--lora-alpha", 8)
    assert code == 0
    assert any("population standard deviation of 3 rows" in line for line in said)
    model = load_pretrained(tmp_path / "model")
    assert model.config.label_mean == (4.0, 30.0, 20.0)
    assert model.config.label_std == pytest.approx(((26 / 3) ** 0.5, (1400 / 3) ** 0.5, (200 / 3) ** 0.5), rel=1e-15)
    assert model.config.image_mean == (0.485, 0.456, 0.406)
    assert model.backbone.peft_config["default"].lora_alpha == 8
    assert (predict(model) - PREDICTIONS).abs().max() > 1e-2  # neither pixels nor LoRA are scaled as they were


def test_sizes_are_read_off_the_tensors(state):
    assert architecture_of(state, HEADS) == Architecture(
        hidden_size=32, num_layers=3, num_heads=4, intermediate_size=48, patch_size=8, image_size=32, lora_rank=8
    )
    assert EXPECTED["num_tensors"] == len(state) == len(RULES) + 3 * len(RULES_OF_LAYER) + len(UNREAD)
    assert len(RULES) + 12 * len(RULES_OF_LAYER) + len(UNREAD) == 254  # of the study's model


def test_the_rules_name_every_tensor_of_the_model_once(state):
    model = build(state)
    mapped = map_state(state, architecture_of(state, HEADS))
    assert mapped.keys() == model.state_dict().keys()
    assert all(torch.equal(mapped[name], value) for name, value in model.state_dict().items())
    read = [float(value.double().sum()) for name, value in state.items() if name not in UNREAD]
    assert sorted(float(value.double().sum()) for value in mapped.values()) == sorted(read)


def test_every_tensor_of_the_file_matters(state):
    """All but the pooler, and the keys' biases: they add the same to all scores that a softmax is taken over."""
    before = predict(build(state), torch.float64)
    inert = {*UNREAD, *(KEY_BIAS.format(layer) for layer in range(3))}
    generator = torch.Generator().manual_seed(0)
    for name, value in state.items():
        changed = state | {name: value + 0.1 * torch.randn(value.shape, generator=generator)}
        difference = float((predict(build(changed), torch.float64) - before).abs().max())
        assert difference <= 1e-5 if name in inert else difference > 1e-4, name


def test_building_leaves_the_random_state_and_the_tensors_alone(state):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    model = build(state)
    assert torch.equal(torch.rand(4), expected)
    model.head[0].weight.add_(1)
    assert torch.equal(state["regression_head.0.weight"], load_file(SAFETENSORS)["regression_head.0.weight"])


def test_a_checkpoint_without_pooler_or_in_half_precision(state):
    without = {name: value for name, value in state.items() if name not in UNREAD}
    assert torch.equal(predict(build(without)), predict(build(state)))
    half = {name: value.to(torch.bfloat16) for name, value in state.items()}
    assert build(half).dtype == torch.float32


def test_the_prefix_of_data_parallel_training_is_taken_off(state, tmp_path):
    save_file({f"module.{name}": value for name, value in state.items()}, tmp_path / "parallel.safetensors")
    assert read_state(tmp_path / "parallel.safetensors").keys() == state.keys()
    mixed = {f"module.{name}" if "head" in name else name: value for name, value in state.items()}
    save_file(mixed, tmp_path / "mixed.safetensors")
    with pytest.raises(ValueError, match=r"6 missing .*6 unexpected \(module\.regression_head"):
        architecture_of(read_state(tmp_path / "mixed.safetensors"), HEADS)


# --- what is refused of the tensors


def without(*names):
    return lambda state: [state.pop(name) for name in names]


def replaced(name, change):
    return lambda state: state.update({name: change(state[name])})


@pytest.mark.parametrize(
    "change, expected",
    [
        (without(QUERY + "lora_B.default.weight"), rf"1 missing \({QUERY}lora_B.default.weight\)$"),
        (without(KEY_BIAS.format(0), "regression_head.4.bias"), r"2 missing \(regression_head.4.bias, vit.*key.bias\)"),
        (without("vit.base_model.model.embeddings.position_embeddings"), r"1 missing \(.*position_embeddings\)$"),
        (without(POOLER_WEIGHT), r"1 missing \(.*pooler.dense.weight\)$"),
        (without(POOLER_BIAS), r"1 missing \(.*pooler.dense.bias\)$"),
        (lambda state: state.update(extra=torch.zeros(2)), r"1 unexpected \(extra\)$"),
        (lambda state: state.update({QUERY + "weight": torch.zeros(32, 32)}), r"1 unexpected \(.*query.weight\)$"),
        (
            replaced("regression_head.4.weight", lambda value: value[:2]),
            r"1 misshaped \(.* \[2, 128\], expected \[3 128",
        ),
        (replaced(POOLER_WEIGHT, lambda value: value[:, :5]), r"1 misshaped \(.*pooler.dense.weight \[32, 5\]"),
        (
            replaced(KEY_BIAS.format(2), lambda value: value[None]),
            r"1 misshaped \(.*key.bias \[1, 32\], expected \[32\]",
        ),
        (
            replaced("vit.base_model.model.embeddings.position_embeddings", lambda value: value[0]),
            r"1 misshaped \(.*position_embeddings \[17, 32\], expected \[1 tokens hidden\]\)$",
        ),
        (
            replaced("vit.base_model.model.embeddings.position_embeddings", lambda value: value[:, :16]),
            "16 positions are not one and a square number of patches",
        ),
        (replaced(KEY_BIAS.format(1), lambda value: value / 0), r"1 not finite floating-point numbers \(.*key.bias\)"),
        (replaced(KEY_BIAS.format(1), lambda value: value.long()), r"1 not finite floating-point numbers"),
        (
            replaced("vit.base_model.model.embeddings.position_embeddings", lambda value: value[:, :0]),
            "3 layers, sizes .*'tokens': 0",
        ),
        (lambda state: state.clear(), r"12 missing \("),
        (
            without(
                *(f"vit.base_model.model.encoder.layer.{n}.{name}" for n in range(3) for name, _, _ in RULES_OF_LAYER)
            ),
            "0 layers, sizes",
        ),
    ],
)
def test_tensors_that_do_not_match_are_refused(state, change, expected):
    change(state)
    with pytest.raises(ValueError, match=expected):
        build(state)


def test_a_long_list_is_counted_and_begun(state, tmp_path, capsys):
    """As when a checkpoint of another model is given: one line all the same."""
    save_file({name.replace("vit.", "deit."): value for name, value in state.items()}, tmp_path / "other.safetensors")
    code, said, (line,) = run(capsys, tmp_path / "other.safetensors", "--output-dir", tmp_path / "model", *SCALING)
    assert (code, said) == (2, [])
    assert line.startswith(f"error: {tmp_path / 'other.safetensors'}: ")
    assert "6 missing (vit.base_model.model.embeddings.cls_token, " in line and "68 unexpected (deit." in line
    assert len(line) < 1500 and not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "heads, expected",
    [(None, "32 channels do not split into heads of 64"), (5, "into 5 heads"), (0, "into 0"), (-4, "into -4")],
)
def test_heads_that_cannot_be(state, heads, expected):
    with pytest.raises(ValueError, match=f"--num-attention-heads: .*{expected}"):
        build_model(state, (0.0,) * 3, (1.0,) * 3, num_attention_heads=heads)


def test_the_number_of_heads_is_used(state):
    model = build_model(state, (0.0,) * 3, (1.0,) * 3, num_attention_heads=8)
    assert unwrapped(model.backbone).config.num_attention_heads == 8
    assert (predict(model) - PREDICTIONS).abs().max() > 1e-2


def test_by_default_heads_have_64_channels():
    sizes = {"hidden": 128, "tokens": 5, "patch": 4, "intermediate": 6, "rank": 2}
    layer = [(f"vit.base_model.model.encoder.layer.0.{name}", shape) for name, _, shape in RULES_OF_LAYER]
    rules = [*((name, shape) for name, _, shape in RULES), *layer]
    state = {name: torch.ones([int(sizes.get(part, part)) for part in shape.split()]) for name, shape in rules}
    assert architecture_of(state) == Architecture(128, 1, 2, 6, 4, 8, 2)


# --- what is refused of files


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_pickle_is_not_opened_unasked(state, tmp_path, capsys, suffix):
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path)
    code, said, (line,) = run(capsys, path, "--output-dir", tmp_path / "model", *SCALING)
    assert (code, said) == (2, []) and "--allow-pickle" in line and str(path) in line
    assert not (tmp_path / "model").exists()
    assert read_state(path, allow_pickle=True).keys() == state.keys()


class Evil:
    """Unpickled by a loader that trusts it, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_runs_code_is_refused(state, tmp_path, capsys):
    proof = tmp_path / "was_run"
    torch.save({**state, "regression_head.4.bias": Evil(proof)}, tmp_path / "evil.pth")
    arguments = [tmp_path / "evil.pth", "--allow-pickle", "--output-dir", tmp_path / "model", *SCALING]
    code, said, (line,) = run(capsys, *arguments)
    assert (code, said) == (2, []) and "mkdir, which is no tensor" in line and "weights_only" not in line
    assert not proof.exists() and not (tmp_path / "model").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert proof.exists()  # so it would have run


@pytest.mark.parametrize(
    "found, expected",
    [
        (
            {"model_state_dict": {"a": torch.zeros(1)}, "epoch": 3},
            "'model_state_dict' is a dict.*store its 'model_state",
        ),
        ({"a": torch.zeros(1), "epoch": 3}, "'epoch' is a int, expected a state_dict of tensors$"),
        ([torch.zeros(1)], "holds a list, expected a state_dict of tensors"),
        (b"no archive at all", "cannot be read; expected a state_dict of tensors alone"),
        (b"", "cannot be read"),
    ],
)
def test_pickles_of_other_things(tmp_path, found, expected):
    path = tmp_path / "weights.pth"
    if isinstance(found, bytes):
        path.write_bytes(found)
    else:
        torch.save(found, path)
    with pytest.raises(ValueError, match=f"weights.pth: .*{expected}"):
        read_state(path, allow_pickle=True)


def test_files_that_are_not_there_or_not_what_they_are_called(state, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth: not found"):
        read_state(tmp_path / "nothing.pth", allow_pickle=True)
    torch.save(state, tmp_path / "renamed.safetensors")
    with pytest.raises(ValueError, match=r"renamed\.safetensors: not a safetensors file"):
        read_state(tmp_path / "renamed.safetensors")
    torch.save(state, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"weights\.ckpt: expected a file named \.safetensors, \.pth, \.pt, \.bin"):
        read_state(tmp_path / "weights.ckpt", allow_pickle=True)


def test_a_finished_model_is_not_written_over(tmp_path, capsys):
    (tmp_path / "regressor_config.json").write_text("{}")
    code, _, (line,) = run(capsys, SAFETENSORS, "--output-dir", tmp_path, "--num-attention-heads", HEADS, *SCALING)
    assert code == 2 and "holds a finished model, choose another folder" in line
    assert [path.name for path in tmp_path.iterdir()] == ["regressor_config.json"]


def test_what_is_in_the_way_is_told_before_the_checkpoint_is_read(tmp_path, capsys):
    (tmp_path / "backbone").write_text("mine")
    code, said, (line,) = run(capsys, "no.safetensors", "--output-dir", tmp_path, *SCALING)
    assert (code, said) == (2, []) and f"{tmp_path / 'backbone'}: expected a folder or nothing" in line
    assert [path.name for path in tmp_path.iterdir()] == ["backbone"]


def test_hidden_folders_and_markers_of_others_stay(tmp_path, capsys):
    """Of names like those of the scratch folder; a marker of another command is no reason to remove what it names."""
    kept = {".saving-notes/x", "thesis.txt", ".unfinished.json"}
    for name in kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"files": ["thesis.txt"]}')
    arguments = [SAFETENSORS, "--output-dir", tmp_path, "--num-attention-heads", HEADS, *SCALING]
    code, _, (line,) = run(capsys, *arguments)
    assert code == 2 and f"{tmp_path / '.unfinished.json'}: not of attribution.published_checkpoint" in line
    (tmp_path / ".unfinished.json").unlink()
    assert run(capsys, *arguments)[0] == 0
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found - {*checkpoint.MODEL_FILES} == kept - {".unfinished.json"}


def test_adapters_that_change_nothing_are_not_written(state, tmp_path, capsys):
    for name in state:
        if ".lora_B." in name:
            state[name] = torch.zeros_like(state[name])
    save_file(state, tmp_path / "untrained.safetensors")
    arguments = [tmp_path / "untrained.safetensors", "--output-dir", tmp_path / "model", "--num-attention-heads", HEADS]
    code, said, (line,) = run(capsys, *arguments, *SCALING)
    assert (code, said) == (2, []) and "the LoRA matrices B are all zero" in line
    assert not (tmp_path / "model").exists()


# --- label scaling


def test_label_statistics_are_those_of_the_columns_by_name(tmp_path):
    rng = np.random.default_rng(2)
    labels = np.column_stack([rng.uniform(0, 45, 50), rng.uniform(0, 100, 50), rng.uniform(0, 100, 50)])
    rows = [["linear", end, "", start, time] for time, start, end in labels.tolist()]
    columns = ("Chirp_Type", LABEL_COLUMNS[2], "Note", LABEL_COLUMNS[1], LABEL_COLUMNS[0])
    mean, std, count = label_statistics(write_labels(tmp_path / "labels.csv", rows, columns))
    assert count == 50
    np.testing.assert_allclose(mean, labels.mean(0), rtol=1e-14)
    np.testing.assert_allclose(std, np.sqrt(((labels - labels.mean(0)) ** 2).mean(0)), rtol=1e-13)


GOOD = [[1, 2, 3, 4, "linear"], [2, 3, 5, 4, "linear"]]


@pytest.mark.parametrize(
    "rows, columns, expected",
    [
        (GOOD, ("Chirp_Start_Time", "Chirp_End_Freq", "a", "b", "c"), "one column Chirp_Start_Freq, found Chirp_Start"),
        (GOOD, (*LABEL_COLUMNS, "Chirp_End_Freq", "b"), "expected one column Chirp_End_Freq, found"),
        ([*GOOD, [1, "nan", 3, 4, ""]], None, "row 4, Chirp_Start_Freq: expected a finite number, got 'nan'"),
        ([[1, 2, "inf", 4, ""], *GOOD], None, "row 2, Chirp_End_Freq: expected a finite number, got 'inf'"),
        ([*GOOD, ["1_0", 2, 3, 4, ""]], None, "row 4, Chirp_Start_Time: expected a finite number, got '1_0'"),
        ([*GOOD, ["", 2, 3, 4, ""]], None, "row 4, Chirp_Start_Time: expected a finite number, got ''"),
        ([*GOOD, [], [1, "x", 3, 4, ""]], None, "row 5, Chirp_Start_Freq: expected a finite number, got 'x'"),
        ([*GOOD, [1, 2]], None, "row 4, Chirp_End_Freq: expected a finite number, got ''"),
        ([*GOOD, [1, 2, 3, 4, "linear", 6]], None, "row 4: more than 5 fields"),
        ([[1, 2, 3, 4, ""], [2, 2, 4, 4, ""]], None, "Chirp_Start_Freq is the same in all of 2 rows"),
        ([], None, "no rows below the header"),
    ],
)
def test_labels_that_are_refused(tmp_path, capsys, rows, columns, expected):
    path = write_labels(tmp_path / "labels.csv", rows, *([columns] if columns else []))
    code, _, (line,) = run(capsys, SAFETENSORS, "--output-dir", tmp_path / "model", "--labels", path)
    assert code == 2 and line.startswith(f"error: {path}: ") and expected in line
    assert not (tmp_path / "model").exists()


def test_labels_that_are_no_table(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"labels\.csv: not a table in CSV"):
        label_statistics(tmp_path / "labels.csv")
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv: not found"):
        label_statistics(tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    "scaling, expected",
    [
        ([], "expected --labels, or both of --label-mean and --label-std"),
        (["--label-mean", "1,2,3"], "expected --labels, or both of"),
        (["--label-std", "1,2,3"], "expected --labels, or both of"),
        (["--labels", "labels.csv", *SCALING], "expected --labels, or both of"),
        (["--label-mean", "1,2", "--label-std", "1,2,3"], "--label-mean: expected three numbers"),
        (["--label-mean", "1,2,x", "--label-std", "1,2,3"], "--label-mean: expected three numbers"),
        (["--label-mean", "1_0,2,3", "--label-std", "1,2,3"], "--label-mean: expected three numbers"),
        (["--label-mean", "1,2,nan", "--label-std", "1,2,3"], "--label-mean: expected three numbers"),
        (["--label-mean", "1,2,3", "--label-std", "1,0,3"], "--label-std: expected positive numbers"),
        ([*SCALING, "--lora-alpha", "0"], "--lora-alpha: expected at least 1, got 0"),
    ],
)
def test_options_that_make_no_sense(tmp_path, capsys, scaling, expected):
    arguments = [SAFETENSORS, "--output-dir", tmp_path / "model", "--num-attention-heads", HEADS, *scaling]
    code, said, (line,) = run(capsys, *arguments)
    assert (code, said) == (2, []) and expected in line
    assert not (tmp_path / "model").exists()
