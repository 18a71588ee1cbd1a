"""Scores that other code stored: kept where a sample comes out the same, computed anew where it does not."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_models import tiny_model

from analysis import adopted_scores, piecework
from analysis.explain import explain
from analysis.models import OpenedModel
from analysis.pictures import Pictures, PictureSource
from analysis.score_files import read_scores
from analysis.settings import CompareSettings
from attribution.gates import gate_ixg
from attribution.method import Method
from attribution.methods import METHODS as METHODS_TABLE

COUNT = 20
NAMES = {"attention_maps", "cls_mass", "ablation_zero", "ablation_resample", "gate_ixg"}


@pytest.fixture(scope="module")
def opened():
    return OpenedModel(tiny_model(), "tiny", "0" * 64, is_control=True)


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
    labels = rng.normal(size=(COUNT, 3)) * 10

    def draw(rows):
        chosen = list(rows)
        mean = np.full((16, 16, 3), 127.5)
        return Pictures(images[chosen], labels[chosen], np.array(chosen), None, None, mean)

    return PictureSource(
        COUNT, draw, {}, reference=lambda rows: images[list(rows)], num_references=COUNT, references_are_own=True,
        references_sha256="these",
    )  # fmt: skip


def run(opened, source, folder, adopt=0):
    settings = CompareSettings(
        model="tiny", methods=("cls_mass", "gate_ixg"), truths=("zero", "resample"), num_pictures=COUNT
    )
    return explain(opened, source, settings, folder, lambda *_: None, adopt=adopt)


def arrays(folder):
    return {path.stem: read_scores(path)[0] for path in folder.glob("*.safetensors")}


def files(folder):
    return {path.stem: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture
def finished(opened, source, tmp_path):
    run(opened, source, tmp_path)
    return tmp_path


@pytest.fixture
def other_code(monkeypatch):
    """From now on the code is another one."""
    monkeypatch.setattr(piecework, "code_sha256", lambda *_: "another")


def test_what_comes_out_the_same_is_kept(opened, source, finished, other_code, capsys):
    before, numbers = files(finished), arrays(finished)
    run(opened, source, finished, adopt=2)
    assert set(before) == NAMES
    found = arrays(finished)
    for name in NAMES:
        assert files(finished)[name] != before[name]  # of this code now
        for key, values in numbers[name].items():
            np.testing.assert_array_equal(found[name][key], values)
    said = capsys.readouterr().err
    assert "adopted: 5 of 5 score files" in said and "not adopted" not in said
    record = json.loads((finished / "adopted.json").read_text())
    assert set(record) == NAMES
    for one in record.values():
        assert len(one["pictures"]) == 2 and one["largest_relative_difference"] <= 1e-6
        assert all(0 <= row < COUNT for row in one["pictures"])
    # And they are found: nothing is computed or written any more.
    after = files(finished)
    run(opened, source, finished)
    assert files(finished) == after


def test_as_many_pictures_are_compared_as_are_asked_for(opened, source, finished, other_code):
    """Of one piece too, and all where there are fewer."""
    run(opened, source, finished, adopt=19)
    record = json.loads((finished / "adopted.json").read_text())
    assert {len(set(one["pictures"])) for one in record.values()} == {19}


def test_arrays_are_held_to_their_own_tolerance(opened, source, finished, other_code, monkeypatch):
    """Numbers of finer and coarser kinds in one file: a difference in the one is none of the other's."""
    seen = []
    real = adopted_scores._difference

    def slightly(before, after, scale):
        seen.append(before.dtype)
        return 5e-5 if before.dtype == np.float32 else 0.0 * real(before, after, scale)

    monkeypatch.setattr(adopted_scores, "_difference", slightly)
    monkeypatch.setitem(adopted_scores.TOLERANCES, np.dtype(np.float64), 0.0)
    run(opened, source, finished, adopt=2)
    assert {np.dtype(np.float32), np.dtype(np.float64)} <= set(seen)
    record = json.loads((finished / "adopted.json").read_text())
    assert set(record) == NAMES and max(one["largest_relative_difference"] for one in record.values()) >= 5e-5


def test_what_is_computed_anew_is_adopted_no_longer(opened, source, finished, other_code, monkeypatch):
    run(opened, source, finished, adopt=2)
    monkeypatch.setattr(piecework, "code_sha256", lambda one, *_: "a third")
    run(opened, source, finished)
    assert not (finished / "adopted.json").exists()
    run(opened, source, finished, adopt=2)  # of this code already: nothing to adopt
    assert not (finished / "adopted.json").exists()


def test_a_refused_file_leaves_the_record(opened, source, finished, other_code, monkeypatch):
    (finished / "adopted.json").write_text('{"gate_ixg": {"pictures": [1], "largest_relative_difference": 0.0}}')
    monkeypatch.setattr(adopted_scores, "_difference", lambda *_: 1.0)
    run(opened, source, finished, adopt=1)
    assert not (finished / "adopted.json").exists()


def test_what_comes_out_otherwise_is_computed(opened, source, finished, other_code, monkeypatch, capsys):
    method = METHODS_TABLE["gate_ixg"]
    twice = Method("gate_ixg", lambda model, batch, settings: 2 * gate_ixg(model, batch, settings))
    before = arrays(finished)
    monkeypatch.setitem(METHODS_TABLE, "gate_ixg", twice)
    run(opened, source, finished, adopt=1)
    said = capsys.readouterr().err
    assert "not adopted: gate_ixg: scores differs by" in said and "adopted: 4 of 5" in said
    np.testing.assert_array_equal(arrays(finished)["gate_ixg"]["scores"], 2 * before["gate_ixg"]["scores"])
    assert "gate_ixg" not in json.loads((finished / "adopted.json").read_text())
    assert method is not METHODS_TABLE["gate_ixg"]


def test_damaged_numbers_are_not_adopted(opened, source, finished, other_code, capsys):
    path = finished / "gate_ixg.safetensors"
    expected = arrays(finished)["gate_ixg"]["scores"]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # among the last picture's, which the sample may not meet
    path.write_bytes(bytes(content))
    run(opened, source, finished, adopt=1)
    assert "not adopted: gate_ixg: its numbers are not those that were stored" in capsys.readouterr().err
    np.testing.assert_array_equal(arrays(finished)["gate_ixg"]["scores"], expected)


def test_without_being_asked_nothing_is_adopted(opened, source, finished, other_code):
    before = files(finished)
    run(opened, source, finished)
    assert not (finished / "adopted.json").exists()
    assert all(files(finished)[name] != before[name] for name in NAMES)
    for name, found in arrays(finished).items():
        for key, values in found.items():
            assert np.isfinite(values).all(), (name, key)


def test_swapped_reference_pictures_make_resample_ablation_anew(opened, source, finished):
    before = files(finished)
    order = list(range(COUNT))
    order[8], order[9] = 9, 8
    swapped = replace(source, reference=lambda rows: source.reference([order[row] for row in rows]),
                      references_sha256="others")  # fmt: skip
    run(opened, swapped, finished)
    after = files(finished)
    assert {name for name in NAMES if after[name] != before[name]} == {"ablation_resample"}
