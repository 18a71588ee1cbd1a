"""What a fine-tuning does with its folder: others' files stay, kills at its end cost nothing, changed data are told."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_finetune import Shades, arguments

from attribution import checkpoint, finetune, finetune_folder, own_folder
from attribution.backbone import tiny_backbone
from attribution.checkpoint import load_pretrained, weights_sha256
from attribution.datasets import PictureFolder, pictures_sha256
from attribution.finetune import main
from attribution.folder_lock import only_run
from attribution.packaged import sha256_of_file


@pytest.fixture
def options(tmp_path):
    """Options of a training of three steps on eight pictures of a folder."""
    tiny_backbone("dinov2").save_pretrained(tmp_path / "tiny")
    (tmp_path / "pictures").mkdir()
    rows = []
    for number in range(12):
        item = Shades("train", 12, 0)[number]
        Image.fromarray(item["image"]).save(tmp_path / "pictures" / f"{number}.png")
        split = "train" if number < 8 else "validation"
        rows.append({"file_name": f"{number}.png", "brightness": item["labels"][0], "split": split})
    pd.DataFrame(rows).to_csv(tmp_path / "pictures" / "metadata.csv", index=False)
    return {
        **{"data": str(tmp_path / "pictures"), "targets": "brightness", "backbone": str(tmp_path / "tiny")},
        **{"output-dir": str(tmp_path / "model"), "num-pictures": 24, "batch-size": 8, "lora-r": 2},
        **{"validate-every": 1, "dtype": "float32", "device": "cpu", "workers": 0, "save-every-min": 0},
    }


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, options):
    """The one line that the command ends with, code 2."""
    assert main(arguments(options)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


NAMES = (
    "training_log.csv",
    "head.safetensors",
    "backbone/config.json",
    "resume/notes.txt",
    "resume/step_1/x",
    "resume",
)


def test_a_kill_while_the_first_state_is_begun_costs_nothing(options, tmp_path):
    (tmp_path / "model" / "resume").mkdir(parents=True)
    (tmp_path / "model" / "resume" / ".run.json.0000000000000001.tmp").write_text("{")
    assert main(arguments(options)) == 0
    assert not (tmp_path / "model" / "resume").exists()


@pytest.mark.parametrize("name", NAMES)
def test_files_of_others_are_refused_before_the_data_are_opened(options, tmp_path, capsys, name):
    path = tmp_path / "model" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    line = refused(capsys, {**options, "data": "nowhere"})
    told = (
        "resume: not of a fine-tuning; choose another" if "resume" in name else f"{name}: not written by this command"
    )
    assert told in line and path.read_text() == "mine" and files(tmp_path / "model") == {name}


def test_other_files_stay_and_a_refused_training_leaves_no_folder(options, tmp_path, capsys):
    assert "data nowhere: no such folder" in refused(capsys, {**options, "data": "nowhere"})
    assert not (tmp_path / "model").exists()
    (tmp_path / "model").mkdir()
    refused(capsys, {**options, "data": "nowhere"})
    assert (tmp_path / "model").is_dir()
    with only_run(tmp_path / "model"):
        assert "model: another run is under way in this folder" in refused(capsys, {**options, "data": "nowhere"})


def test_a_kill_at_the_end_costs_nothing(options, tmp_path, capsys, monkeypatch):
    """At the first file that gets its name, at the last, and before the states are gone; each time without training."""
    assert main(arguments({**options, "output-dir": str(tmp_path / "whole")})) == 0
    whole, folder = load_pretrained(tmp_path / "whole"), tmp_path / "model"
    (folder / "resume").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    replace = os.replace

    def killed_at(name):
        def call(source, target):
            if Path(target).name == name and Path(target).parent == folder:
                raise KeyboardInterrupt
            replace(source, target)

        return call

    for name in ("adapter_config.json", "training_config.json", "regressor_config.json"):
        monkeypatch.setattr(own_folder.os, "replace", killed_at(name))
        assert main(arguments(options)) == 3
        assert capsys.readouterr().err.splitlines()[-1].startswith("stopped; the same command goes on from")
        assert not (folder / "regressor_config.json").exists()
        assert [path.name for path in (folder / "resume").glob("step_*")] == ["step_000000003"]
        monkeypatch.undo()
        monkeypatch.setattr(PictureFolder, "__getitem__", guarded(PictureFolder.__getitem__, limit=1 + 4 + 4 + 3))
    monkeypatch.setattr(finetune, "remove_states", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert main(arguments(options)) == 3
    monkeypatch.undo()
    assert weights_sha256(load_pretrained(folder)) == weights_sha256(whole) and (folder / "resume").is_dir()
    assert "holds a finished model, choose another" in refused(capsys, {**options, "learning-rate": 1})
    (folder / "resume" / "mine.txt").write_text("mine")
    assert main(arguments(options)) == 0
    assert files(folder) == files(tmp_path / "whole") | {"notes.txt", "resume/mine.txt"}
    assert "holds a finished model, choose another" in refused(capsys, options)


def guarded(original, limit):
    """Pictures, but not so many that a training could be made of them."""
    left = [limit]

    def get(self, index):
        left[0] -= 1
        assert left[0] > 0, "trained again"
        return original(self, index)

    return get


def test_a_failed_check_leaves_no_finished_model(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checkpoint, "TOLERANCE_CPU", -1.0)
    line = refused(capsys, options)
    assert f"{tmp_path / 'model' / 'golden.safetensors'}: predictions differ by" in line
    assert {name.split("/")[0] for name in files(tmp_path / "model")} == {"resume"}
    monkeypatch.undo()
    assert main(arguments(options)) == 0
    load_pretrained(tmp_path / "model")


@pytest.fixture
def interrupted(options, tmp_path, monkeypatch, capsys):
    """The folder of a training that was stopped by Ctrl-C in its third step."""
    get, drawn = PictureFolder.__getitem__, []

    def stopping(self, index):
        drawn.append(index)
        if len(drawn) == 1 + 4 + 20:
            raise KeyboardInterrupt
        return get(self, index)

    monkeypatch.setattr(PictureFolder, "__getitem__", stopping)
    assert main(arguments(options)) == 3
    monkeypatch.undo()
    capsys.readouterr()
    (state,) = (tmp_path / "model" / "resume").glob("step_*")
    assert state.name == "step_000000002"
    return state


def test_other_pictures_are_refused_when_a_training_goes_on(options, interrupted, tmp_path, capsys):
    """The table is the same: a training picture, then a validation picture."""
    for number in (3, 10):
        path = tmp_path / "pictures" / f"{number}.png"
        before = path.read_bytes()
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        assert "resume: holds a run with other settings (pictures); finish or delete it" in refused(capsys, options)
        path.write_bytes(before)
    assert main(arguments(options)) == 0
    assert main(arguments({**options, "output-dir": str(tmp_path / "whole")})) == 0
    states = [weights_sha256(load_pretrained(tmp_path / name)) for name in ("model", "whole")]
    assert states[0] == states[1]


def test_states_that_are_not_whole_are_refused(options, interrupted, tmp_path, capsys):
    keep = shutil.copytree(interrupted, tmp_path / "keep")

    def sign(name):
        record = json.loads((interrupted / "progress.json").read_text())
        record["files"][name] = sha256_of_file(interrupted / name)
        (interrupted / "progress.json").write_text(json.dumps(record))

    for name in ("random_states_0.pkl", "optimizer.bin", "model.safetensors", "best.safetensors"):
        whole = (keep / name).read_bytes()
        (interrupted / name).write_bytes(whole[: len(whole) // 2])
        assert f"{name}: changed since it was written; delete this folder to begin anew" in refused(capsys, options)
        sign(name)
        assert "cannot be read" in refused(capsys, options)
        (interrupted / name).unlink()
        assert f"{name}: not found" in refused(capsys, options)
        shutil.copy(keep / name, interrupted / name)
        sign(name)
    for text in ("", "[1]", '{"signature": 1, "progress": {}}'):
        (interrupted / "progress.json").write_text(text)
        assert "progress.json: not readable as what a training had reached" in refused(capsys, options)


def test_a_full_disk_is_one_line_and_the_training_goes_on_later(options, tmp_path):
    """Files may grow to 40 kB alone, as where a disk is full: the first state does not fit."""
    code = (
        "import resource, sys; from attribution.finetune import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))\n"
        f"sys.exit(main({arguments(options)!r}))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "resume" in lines[0] and not list((tmp_path / "model" / "resume").glob("step_*"))
    assert main(arguments(options)) == 0


def test_a_digest_of_pictures_sees_every_file_of_a_folder_and_some_of_a_callable(options, tmp_path):
    def of(count=100):
        return pictures_sha256(PictureFolder(tmp_path / "pictures", "train", count, 0, ("brightness",), ()))

    before = of()
    assert before == of() != of(7)
    last = tmp_path / "pictures" / "7.png"
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    assert of() != before and of(7) == of(7)
    last.unlink()
    with pytest.raises(FileNotFoundError, match=r"7\.png: not found"):
        of()
    os.mkfifo(last)
    with pytest.raises(ValueError, match=r"7\.png: expected a PNG file, not a device or pipe"):
        of()
    drawn = Shades("train", 1000, 0)
    digest = pictures_sha256(drawn)
    assert drawn.drawn == 8 and digest == pictures_sha256(Shades("train", 1000, 0))
    assert len({digest, *(pictures_sha256(Shades("train", *how)) for how in ((1000, 1), (999, 0)))}) == 3
    assert pictures_sha256(Shades("train", 3, 0)) != pictures_sha256(Shades("validation", 3, 0))


def test_settings_that_do_not_shape_the_result_are_not_compared():
    settings = finetune_folder.FinetuneSettings(data="x", output_dir="y")
    assert {"workers", "save_every_min", "output_dir"}.isdisjoint(finetune_folder.shaping(settings))
    assert finetune_folder.shaping(settings)["seed"] == 0
