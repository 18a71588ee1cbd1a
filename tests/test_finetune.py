"""Fine-tuning of tiny backbones end to end: it learns, survives a kill, and refuses nonsense in one line."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from attribution import finetune
from attribution.backbone import tiny_backbone
from attribution.checkpoint import load_pretrained, weights_sha256
from attribution.datasets import open_dataset, read_labels, read_picture
from attribution.finetune import main, mixed_precision
from attribution.training import learning_rate_factor, pearson, picture_order
from attribution.training_log import plot_training
from attribution.training_state import Progress

SPLITS = ("train", "validation", "test")


class Shades:
    """Pictures of one grey with noise; the labels are its brightness and a number that goes with it."""

    target_names, target_units, synthesizer = ("brightness", "darkness"), ("", ""), {"name": "shades"}

    kill_at = -1  # number of the draw, counted over all training pictures, at which the process kills itself

    def __init__(self, split, count, seed, size=32, constant=False):
        self.key, self.count = [seed, SPLITS.index(split)], count
        self.size, self.constant, self.drawn = size, constant, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.drawn += 1
        if self.drawn == self.kill_at and self.key[1] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        rng = np.random.default_rng([*self.key, index])
        shade = 0.0 if self.constant else rng.uniform(20, 230)
        image = np.clip(shade + rng.normal(0, 5, (self.size, self.size, 3)), 0, 255).astype(np.uint8)
        return {"image": image, "labels": np.array([shade, 3 - shade / 100])}


def shades(split, count, seed=0, **options):
    return Shades(split, count, seed, **options)


def nameless(split, count, seed=0):
    return [{"image": np.zeros((32, 32, 3), np.uint8), "labels": np.zeros(1)}] * count


@pytest.fixture
def options(tmp_path):
    """Options of a training of a second or two, as a dict; `arguments` makes a command line of them."""
    tiny_backbone("dinov2").save_pretrained(tmp_path / "tiny")
    return {
        "data": "test_finetune:shades",
        "backbone": str(tmp_path / "tiny"),
        "output-dir": str(tmp_path / "model"),
        "num-pictures": 480,
        "validation-pictures": 24,
        "batch-size": 8,
        "learning-rate": 3e-3,
        "lora-r": 2,
        "validate-every": 10,
        "dtype": "float32",
        "device": "cpu",
        "workers": 0,
    }


def arguments(options):
    return [f"--{name}={value}" for name, value in options.items()]


def test_it_learns_and_leaves_its_files(options, tmp_path, capsys):
    assert main(arguments(options)) == 0
    folder = tmp_path / "model"
    assert capsys.readouterr().out.strip() == str(folder)
    names = {path.name for path in folder.iterdir()}
    assert {"training_log.csv", "training_config.json", "training_curve.png", "head.safetensors"} <= names
    assert "resume" not in names
    log = pd.read_csv(folder / "training_log.csv")
    assert list(log.columns) == [
        "step", "pictures", "elapsed_s", "learning_rate", "train_mse", "validation_mse", "r_brightness", "r_darkness",
    ]  # fmt: skip
    assert log["step"].tolist() == [10, 20, 30, 40, 50, 60] and log["pictures"].iloc[-1] == 480
    assert log["validation_mse"].iloc[-1] < 0.3 * log["validation_mse"].iloc[0]
    assert log["r_brightness"].iloc[-1] > 0.9
    record = json.loads((folder / "training_config.json").read_text())
    assert record["settings"]["lora_r"] == 2 and record["settings"]["output_dir"] == "model"
    assert record["best_step"] == log["step"][log["validation_mse"].idxmin()]
    assert (record["steps"], record["precision"]) == (60, "no") and "torch" in record["versions"]
    model = load_pretrained(folder)
    assert record["weights_sha256"] == weights_sha256(model)
    assert model.config.target_names == ("brightness", "darkness") and model.config.synthesizer == {"name": "shades"}
    labels = np.stack([shades("train", 480)[index]["labels"] for index in range(480)])
    assert model.config.label_mean == pytest.approx(labels.mean(0)) and model.config.label_std == pytest.approx(
        labels.std(0)
    )
    held_out = shades("validation", 24)
    images = np.stack([held_out[index]["image"] for index in range(24)])
    truth = np.stack([held_out[index]["labels"] for index in range(24)])
    predictions = model(model.preprocess(images))
    mse = float(((predictions - model.standardise(truth)) ** 2).mean())
    assert mse == pytest.approx(record["best_validation_mse"], rel=1e-4)
    assert np.abs(model.to_units(predictions)[:, 0].numpy() - truth[:, 0]).mean() < 30
    assert main(arguments(options)) == 2
    assert "holds a finished model" in capsys.readouterr().err


def test_a_killed_run_goes_on_to_the_same_weights(options, tmp_path, capsys):
    options |= {"num-pictures": 160, "validate-every": 7, "lora-dropout": 0.2, "save-every-min": 0}
    whole = {**options, "output-dir": str(tmp_path / "whole"), "save-every-min": 60}
    assert main(arguments(whole)) == 0
    # 160 pictures are drawn for the label statistics, one for its size, eight for their digest; of the next 160, the
    # 100th kills
    killing = f"os.environ['HF_HUB_OFFLINE'] = '1'; test_finetune.Shades.kill_at = 269; main({arguments(options)!r})"
    code = f"import os, test_finetune; from attribution.finetune import main; {killing}"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    states = list((tmp_path / "model" / "resume").glob("step_*"))
    assert [path.name for path in states] == ["step_000000012"]
    assert not (tmp_path / "model" / "regressor_config.json").exists()
    other = {**options, "learning-rate": 1e-4}
    assert main(arguments(other)) == 2
    assert "holds a run with other settings (learning_rate)" in capsys.readouterr().err
    assert main(arguments(options)) == 0
    assert weights_sha256(load_pretrained(tmp_path / "model")) == weights_sha256(load_pretrained(tmp_path / "whole"))
    logs = [pd.read_csv(tmp_path / name / "training_log.csv").drop(columns="elapsed_s") for name in ("model", "whole")]
    pd.testing.assert_frame_equal(*logs)


def test_a_time_budget_anneals_and_ends(options, tmp_path):
    options |= {"num-pictures": 10**6, "time-budget-min": 0.03, "validate-every": 10**6, "data-options": "size=32"}
    finetune.STATISTICS_PICTURES, before = 50, finetune.STATISTICS_PICTURES
    try:
        assert main(arguments(options)) == 0
    finally:
        finetune.STATISTICS_PICTURES = before
    record = json.loads((tmp_path / "model" / "training_config.json").read_text())
    log = pd.read_csv(tmp_path / "model" / "training_log.csv")
    assert 0 < record["steps"] < 10**6 // 8 and len(log) == 1
    assert log["learning_rate"].iloc[-1] < 0.2 * options["learning-rate"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere"}, "data nowhere: no such folder, and not of the form module:callable"),
        ({"data": "no_such_module:f"}, "cannot be imported"),
        ({"data": "test_finetune:no_such"}, "cannot be imported"),
        ({"data": "test_finetune:nameless"}, "the train data set has no target_names"),
        ({"data": "test_finetune:shades", "data-options": "hue=3"}, "cannot be called with"),
        ({"data-options": "hue"}, "--data-options: expected name=value, got 'hue'"),
        ({"data-options": "constant=true"}, "the label brightness is the same in all of"),
        ({"targets": "a,b"}, "targets are for folders"),
        ({"targets": "a, b,a"}, "--targets: expected each label column once, got a more than once"),
        ({"num-pictures": 0}, "--num-pictures: expected at least 1, got 0"),
        ({"num-pictures": 4}, "--num-pictures: 4 do not fill one batch of 8"),
        ({"learning-rate": -1}, "--learning-rate: expected a positive number, got -1.0"),
        ({"learning-rate": "nan"}, "--learning-rate: expected a positive number"),
        ({"warmup-fraction": 1}, "--warmup-fraction: expected 0 or more and less than 1"),
        ({"workers": -1}, "--workers: expected 0 or more, got -1"),
        ({"dtype": "fp8"}, "--dtype: expected auto, bf16 or float32, got 'fp8'"),
        ({"device": "tpu"}, "--device: expected auto or cpu, got 'tpu'"),
        ({"lora-targets": "o_proj"}, "layer 0: the output projection is a Linear"),
        (
            {"lora-targets": "no_such"},
            "--lora-targets: expected some of fc1, fc2, k_proj, projection, q_proj, v_proj, got",
        ),
        ({"lora-targets": "q_proj,no_such"}, "fc1, fc2, k_proj, projection, q_proj, v_proj, got 'no_such'"),
        ({"lora-targets": ""}, "fc1, fc2, k_proj, projection, q_proj, v_proj, got ''"),
        ({"lora-r": 10**9}, "--lora-r: expected at most 32, the width of q_proj, got 1000000000"),
        ({"lora-r": 33}, "--lora-r: expected at most 32, the width of q_proj, got 33"),
        ({"data-options": f"size={'[' * 100_000}"}, "--data-options: size: nested too deep"),
        ({"learning-rate": 1e30, "grad-clip": 1e30}, "the loss is"),
        ({"backbone": "no/such"}, "backbone no/such: no model found"),
        ({"preprocessing": "zca"}, "--preprocessing: expected one of imagenet, unit, half, got 'zca'"),
        ({"config": "no-such.yaml"}, "No such file"),
    ],
)
def test_errors_are_one_line_and_code_2(options, tmp_path, capsys, change, message):
    assert main(arguments({**options, "num-pictures": 80, **change})) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "model" / "regressor_config.json").exists()


def test_settings_from_a_file_which_options_override(options, tmp_path):
    config = tmp_path / "settings.yaml"
    lines = {**options, "num-pictures": 16, "seed": 3, "preprocessing": "unit"}
    config.write_text("".join(f"{name.replace('-', '_')}: {value}\n" for name, value in lines.items()))
    assert main(["--config", str(config), "--seed", "4", "--validation-pictures", "8"]) == 0
    record = json.loads((tmp_path / "model" / "training_config.json").read_text())["settings"]
    assert (record["seed"], record["validation_pictures"], record["num_pictures"]) == (4, 8, 16)
    model = load_pretrained(tmp_path / "model")
    assert model.config.image_mean == (0, 0, 0) and model.config.image_std == (1, 1, 1)
    images = np.full((1, 32, 32, 3), 51, dtype=np.uint8)
    assert model.preprocess(images)[0, 0, 0, 0].item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "expected option: value lines"),
        ("sede: 1\n", "unknown option sede, expected some of backbone"),
        ("seed: [1]\n", "seed: expected a text or a number, got [1]"),
        ("seed: {\n", "not YAML"),
    ],
)
def test_files_of_settings_that_are_refused(tmp_path, capsys, text, message):
    (tmp_path / "settings.yaml").write_text(text)
    assert main(["--config", str(tmp_path / "settings.yaml"), "--data", "x:y", "--output-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "settings.yaml" in error and message in error


def test_settings_of_the_published_study_train_a_local_vit(tmp_path):
    """The config that is shipped, with everything but its size: a small ViT of patch 16 in the hub id's place."""
    config = Path(finetune.__file__).parent / "configs" / "published-vit-b16.yaml"
    tiny_backbone("vit", image_size=224, patch_size=16, num_layers=1, hidden_size=16, num_heads=2).save_pretrained(
        tmp_path / "vit"
    )
    few = {"num-pictures": 64, "validation-pictures": 4, "workers": 0, "dtype": "float32", "device": "cpu"}
    words = ["--config", str(config), "--backbone", str(tmp_path / "vit"), "--output-dir", str(tmp_path / "model")]
    assert main([*words, *arguments(few)]) == 0
    model = load_pretrained(tmp_path / "model")
    assert model.config.image_mean == (0, 0, 0) and model.config.synthesizer["preset"] == "published"
    record = json.loads((tmp_path / "model" / "training_config.json").read_text())["settings"]
    assert (record["lora_r"], record["lora_alpha"], record["lora_dropout"]) == (8, 16, 0.1)
    assert (record["learning_rate"], record["batch_size"]) == (1e-4, 32)


def test_help_and_unknown_options(capsys):
    assert main(["--data", "x", "--output-dir", "y", "--no-such", "1"]) == 2
    assert "error: " in capsys.readouterr().err
    for wrong in ([], ["--data", "x"], ["--data", "x", "--output-dir", "y", "--seed", "one"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert (
        text.count("python -m attribution.finetune --data") == 3 and "--output-dir" in text and "--output_dir" in text
    )


def test_precision(monkeypatch):
    assert (mixed_precision("float32", True), mixed_precision("bf16", True)) == ("no", "bf16")
    for capabilities, expected in [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx2": True}, "no"),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capabilities=capabilities: capabilities)
        assert mixed_precision("auto", True) == expected


def test_learning_rate_by_hand():
    values = [learning_rate_factor(progress, 0.2) for progress in (0, 0.1, 0.2, 0.4, 0.6, 1, 1.3)]
    assert values == pytest.approx([0, 0.5, 1, 0.5 * (1 + math.cos(math.pi / 4)), 0.5, 0, 0], abs=1e-12)
    assert learning_rate_factor(0, 0) == 1


def test_picture_order_passes_over_everything():
    order = picture_order(25, 10, seed=1)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert len(order) == 25 and not np.array_equal(order[:10], order[10:20])
    assert np.array_equal(order, picture_order(25, 10, seed=1))
    assert not np.array_equal(order, picture_order(25, 10, seed=2))


def test_pearson_is_numpys():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    left[:, 2] = 1.0
    expected = [np.corrcoef(left[:, k], right[:, k])[0, 1] for k in range(2)]
    assert pearson(left, right) == pytest.approx([*expected, 0.0], abs=1e-12)


def test_curve_shows_the_table():
    from matplotlib.figure import Figure

    table = pd.DataFrame({"step": [5, 9], "pictures": [40, 72], "train_mse": [1.0, 0.5], "validation_mse": [0.9, 0.4]})
    ax = plot_training(table, Figure().add_subplot(), best_step=9)
    assert [line.get_ydata().tolist() for line in ax.lines] == [[1.0, 0.5], [0.9, 0.4], [0.4]]
    assert ax.get_yscale() == "log" and "pictures" in ax.get_xlabel() and "error" in ax.get_ylabel()
    assert Progress().best_mse == math.inf


@pytest.fixture
def picture_folder(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "png").mkdir(parents=True)
    rows = []
    for number in range(40):
        item = shades("train", 40)[number]
        Image.fromarray(item["image"]).save(folder / "png" / f"{number}.png")
        rows.append({"file_name": f"png/{number}.png", "brightness": item["labels"][0], "other": number})
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


def test_a_folder_trains_in_several_passes(options, picture_folder, tmp_path):
    options |= {"data": str(picture_folder), "targets": "brightness", "target-units": "grey", "num-pictures": 240}
    assert main(arguments(options)) == 0
    model = load_pretrained(tmp_path / "model")
    assert model.config.target_units == ("grey",) and model.config.synthesizer["name"] == "pictures"
    log = pd.read_csv(tmp_path / "model" / "training_log.csv")
    assert log["r_brightness"].iloc[-1] > 0.8


def test_folder_splits_and_labels(picture_folder):
    def read(split, count=1000, seed=0):
        dataset = open_dataset(str(picture_folder), split, count, seed, targets=("other",))
        return set(read_labels(dataset, 1000)[:, 0])

    assert read("train") | read("validation") == set(range(40)) and not read("train") & read("validation")
    assert len(read("validation")) == 4 and read("validation") == read("validation") != read("validation", seed=1)
    assert len(read("train", count=7)) == 7
    with pytest.raises(ValueError, match="has no column split, so it has no test pictures"):
        read("test")
    table = pd.read_csv(picture_folder / "metadata.csv")
    table["split"] = ["test"] * 3 + ["train"] * 30 + ["validation"] * 7
    table.to_csv(picture_folder / "metadata.csv", index=False)
    assert read("test") == {0, 1, 2} and read("validation") == set(range(33, 40))
    first = open_dataset(str(picture_folder), "test", 1, targets=("brightness",))[0]
    assert np.array_equal(first["image"], shades("train", 40)[0]["image"])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("brightness", "", r"metadata\.csv: row 3, brightness: expected a finite number, got ''"),
        ("brightness", "nan", "row 3, brightness: expected a finite number"),
        ("brightness", "dark", "row 3, brightness: expected a finite number, got 'dark'"),
        ("brightness", "1_0", "row 3, brightness: expected a finite number, got '1_0'"),
        ("file_name", "../secret.png", "row 3, file_name: '../secret.png' lies outside the folder"),
        ("split", "tset", "row 3, split: expected one of train, validation, test, got 'tset'"),
    ],
)
def test_folder_rows_are_checked(picture_folder, column, value, message):
    table = pd.read_csv(picture_folder / "metadata.csv", dtype=str)
    table["split"] = "train"
    table.loc[1, column] = value
    table.to_csv(picture_folder / "metadata.csv", index=False)
    with pytest.raises(ValueError, match=message):
        open_dataset(str(picture_folder), "train", 100, targets=("brightness",))


def test_folder_refusals(picture_folder, tmp_path):
    def refuse(error, message, **kwargs):
        with pytest.raises(error, match=message):
            open_dataset(
                **{"data": str(picture_folder), "split": "train", "count": 9, "targets": ("brightness",), **kwargs}
            )

    refuse(ValueError, "no column height, found file_name, brightness, other", targets=("height",))
    refuse(ValueError, "name its label columns", targets=())
    refuse(ValueError, "2 units for 1 targets", target_units=("a", "b"))
    refuse(ValueError, "takes no data options", options={"a": 1})
    refuse(ValueError, "split 'dev'", split="dev")
    refuse(FileNotFoundError, r"metadata\.csv: not found", data=str(tmp_path))


def test_pictures_that_are_refused(tmp_path):
    path = tmp_path / "picture.png"
    pixels = np.full((8, 8, 4), 255, np.uint8)
    Image.fromarray(pixels).save(path)
    assert read_picture(path).shape == (8, 8, 3)
    pixels[3, 3, 3] = 254
    Image.fromarray(pixels).save(path)
    with pytest.raises(ValueError, match="has transparent pixels"):
        read_picture(path)
    Image.fromarray(pixels[..., 0]).save(path)
    with pytest.raises(ValueError, match="expected RGB or RGBA of at most 16777216 pixels, got L of 8 x 8"):
        read_picture(path)
    Image.new("RGB", (5000, 5000)).save(path)
    with pytest.raises(ValueError, match="got RGB of 5000 x 5000"):
        read_picture(path)
    Image.fromarray(pixels[..., :3]).save(path, format="JPEG")
    with pytest.raises(ValueError, match="not a readable PNG file"):
        read_picture(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a readable PNG file"):
        read_picture(path)
    with pytest.raises(FileNotFoundError, match="not found"):
        read_picture(tmp_path / "none.png")
    os.mkfifo(tmp_path / "pipe.png")  # would be waited for
    with pytest.raises(ValueError, match=r"pipe\.png: expected a PNG file, not a device or pipe"):
        read_picture(tmp_path / "pipe.png")
