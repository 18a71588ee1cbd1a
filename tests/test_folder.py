import hashlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_synth import ChirpDataset, SynthConfig
from data_synth.__main__ import main
from data_synth.folder import read_mask, write_folder
from data_synth.writing import is_whole_png

CONFIG = SynthConfig(num_layouts=4)


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_folder_reads_back_as_the_data_set(tmp_path):
    dataset = ChirpDataset("validation", 5, CONFIG)
    assert list(write_folder(dataset, tmp_path))[-1] == 5
    table = pd.read_csv(tmp_path / "metadata.csv")
    for index, row in table.iterrows():
        sample = dataset[index]
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / row.file_name)), sample.image)
        coverage, labels = read_mask(tmp_path / row.mask_file_name, 224, 14)
        np.testing.assert_array_equal(coverage, sample.coverage)
        np.testing.assert_array_equal(labels, sample.patch_labels)
        assert tuple(row[["start_time_s", "start_freq_hz", "end_freq_hz"]]) == tuple(sample.labels)


def test_same_bytes_for_any_number_of_processes_and_after_a_kill(tmp_path):
    dataset = ChirpDataset("test", 40, CONFIG)
    list(write_folder(dataset, tmp_path / "one"))
    list(write_folder(dataset, tmp_path / "two", num_processes=2))
    halted = write_folder(dataset, tmp_path / "halted")
    next(halted)
    halted.close()
    assert not (tmp_path / "halted" / "metadata.csv").exists()
    (tmp_path / "halted" / "images" / "0000003.png").unlink()
    list(write_folder(dataset, tmp_path / "halted"))
    assert digest(tmp_path / "one") == digest(tmp_path / "two") == digest(tmp_path / "halted")


def test_another_data_set_in_the_folder_is_refused(tmp_path):
    list(write_folder(ChirpDataset("test", 1, CONFIG), tmp_path))
    with pytest.raises(ValueError, match=r"holds another data set \(differs in seed\)"):
        list(write_folder(ChirpDataset("test", 1, SynthConfig(num_layouts=4, seed=1)), tmp_path))


def test_unreadable_masks_are_refused(tmp_path):
    broken = tmp_path / "mask.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"mask\.png: not a readable PNG mask"):
        read_mask(broken, 224, 14)
    Image.fromarray(np.zeros((10, 10), dtype=np.uint8)).save(broken)
    with pytest.raises(ValueError, match=r"mask\.png: label map: expected 480 x 640"):
        read_mask(broken, 224, 14)


def test_command_writes_and_refuses(tmp_path, capsys):
    assert main(["--count", "2", "--out", str(tmp_path / "data"), "--processes", "1"]) == 0
    assert (tmp_path / "data" / "metadata.csv").exists()
    assert main(["--count", "0", "--out", str(tmp_path / "none")]) == 2
    assert "error: count: expected at least 1" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["--count", "1", "--out", str(tmp_path / "file")]) == 2


def test_command_line_help():
    shown = subprocess.run([sys.executable, "-m", "data_synth", "--help"], capture_output=True, text=True, check=True)
    assert shown.stdout.count("python -m data_synth --count") == 3


def cut(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_pictures_that_are_not_whole_are_drawn_anew(tmp_path):
    """Empty, cut short, with one bit flipped, of another size or mode, no picture at all: the bytes of a whole run."""
    dataset, folder = ChirpDataset("test", 9, CONFIG), tmp_path / "data"
    list(write_folder(dataset, folder))
    before = digest(folder)
    images, masks = ([folder / name / f"{index:07d}.png" for index in range(9)] for name in ("images", "masks"))
    images[0].write_bytes(b"")
    cut(images[1], 0.5)
    cut(masks[2], 0.9)
    flip(images[3])
    flip(masks[4])
    Image.new("RGB", (112, 112)).save(images[5])
    Image.new("L", (224, 224)).save(masks[6])
    Image.new("L", (224, 224)).save(images[7])
    kept = images[8].stat().st_mtime_ns
    (folder / "metadata.csv").unlink()
    for name in (".0000003.png.41.tmp", ".metadata.csv.41.tmp"):
        (folder / ("images" if "png" in name else "") / name).write_bytes(b"half")
    list(write_folder(dataset, folder))
    assert digest(folder) == before and images[8].stat().st_mtime_ns == kept
    assert not [path for path in folder.rglob(".*")]


def test_a_picture_that_is_a_fifo_or_a_link_to_nothing_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    assert not any(is_whole_png(tmp_path / f"{name}.png", (8, 8), "L") for name in ("fifo", "link", "none"))
    Image.new("L", (8, 6)).save(tmp_path / "whole.png")
    assert is_whole_png(tmp_path / "whole.png", (8, 6), "L") and not is_whole_png(tmp_path / "whole.png", (6, 8), "L")


@pytest.mark.parametrize("name", ["metadata.csv", "images/0000000.png", "masks/holiday.png"])
def test_files_of_others_are_refused_before_anything_is_written(tmp_path, capsys, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    assert main(["--count", "1", "--out", str(tmp_path), "--processes", "1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"dataset.json: not found, but {name.split('/')[0]} beside it; choose another folder" in error
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_table_or_description_of_others_is_refused_and_more_pictures_are_not(tmp_path):
    list(write_folder(ChirpDataset("test", 1, CONFIG), tmp_path))
    list(write_folder(ChirpDataset("test", 2, CONFIG), tmp_path))
    table, identity = tmp_path / "metadata.csv", tmp_path / "dataset.json"
    assert len(pd.read_csv(table)) == 2
    mine = pd.read_csv(table).assign(remark="seen")
    mine.to_csv(table, index=False)
    with pytest.raises(ValueError, match=r"metadata\.csv: not the table of this data set; choose another folder, or"):
        list(write_folder(ChirpDataset("test", 2, CONFIG), tmp_path))
    assert "remark" in pd.read_csv(table)
    for text, message in (("[1]", "got a list"), ("{", "got other text")):
        identity.write_text(text)
        with pytest.raises(ValueError, match=rf"dataset\.json: expected what describes a data set, {message}"):
            list(write_folder(ChirpDataset("test", 2, CONFIG), tmp_path))


def test_two_runs_in_one_folder(tmp_path, capsys):
    first = write_folder(ChirpDataset("test", 2, CONFIG), tmp_path / "data")
    next(first)
    assert main(["--count", "2", "--out", str(tmp_path / "data"), "--processes", "1"]) == 2
    assert "holds another data set" in capsys.readouterr().err  # the command draws more layouts
    with pytest.raises(OSError, match="another run is under way in this folder"):
        list(write_folder(ChirpDataset("test", 2, CONFIG), tmp_path / "data"))
    first.close()
    list(write_folder(ChirpDataset("test", 2, CONFIG), tmp_path / "data"))


KILLED = """
import os, pathlib, signal, sys
from data_synth import folder

def work(lot):
    if lot == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1

if __name__ == "__main__":
    try:
        list(folder.fill_folder(pathlib.Path(sys.argv[1]), {}, folder.pd.DataFrame({"a": [1]}), work, range(6), 2))
    except OSError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes cannot be killed like this")
def test_a_process_that_is_killed_ends_the_run(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    command = [sys.executable, script, tmp_path / "data"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert "a process that draws was killed" in run.stdout and "goes on from there" in run.stdout, run.stderr
    assert not (tmp_path / "data" / "metadata.csv").exists()


POOL = """
import pathlib, re, signal
from data_synth import folder

if __name__ == "__main__":
    with folder._pool(2) as pool:
        for process in pool._pool:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            blocked = int(re.search("SigBlk:(.*)", status)[1], 16)
            print(bool(blocked >> (signal.SIGINT - 1) & 1))
        print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the signals that a process holds back in /proc")
def test_processes_hold_ctrl_c_back_from_their_first_moment_on(tmp_path):
    """In the first pool of a process too, whose start starts the tracker of multiprocessing's own resources."""
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    assert run.stdout.split() == ["True", "True", "False"], run.stderr


@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_is_one_line_and_code_3(tmp_path, processes):
    command = [sys.executable, "-m", "data_synth", "--count", "5000", "--out", str(tmp_path), "--processes", processes]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    waited = time.monotonic()
    while not (tmp_path / "images").is_dir() and time.monotonic() - waited < 120:
        time.sleep(0.1)
    if processes == "1":
        while not any((tmp_path / "images").iterdir()):
            time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to every process there is
    try:
        _, error = run.communicate(timeout=120)
    finally:
        run.kill()
    lines = [line for line in error.replace("\r", "\n").splitlines() if line and not line.startswith("writing")]
    assert run.returncode == 3 and lines == ["stopped; the same command goes on from there"], error
    assert not (tmp_path / "metadata.csv").exists()
