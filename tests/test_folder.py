import hashlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_synth import ChirpDataset, SynthConfig
from data_synth.__main__ import main
from data_synth.folder import read_mask, write_folder

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
