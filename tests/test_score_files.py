import hashlib

import numpy as np
import pytest

from analysis.score_files import ScoreFolder, compute_scores, read_scores


def scores_of(piece):
    return {
        "scores": np.arange(piece.start, piece.stop, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    }


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pieces_join_and_are_reused(tmp_path):
    store, calls = ScoreFolder(tmp_path, {"model": "a"}, 10, pictures_per_piece=4), []

    def compute(piece):
        calls.append(piece)
        return scores_of(piece)

    arrays, fresh = compute_scores(store, "m", {"steps": 3}, compute)
    assert fresh and calls == [slice(0, 4), slice(4, 8), slice(8, 10)]
    np.testing.assert_array_equal(arrays["scores"][:, 0, 0], np.arange(10))
    done = []
    again, fresh = compute_scores(store, "m", {"steps": 3}, compute, on_piece=done.append)
    assert not fresh and len(calls) == 3 and done == [10]
    np.testing.assert_array_equal(again["scores"], arrays["scores"])
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("killed_at", [0, 1, 2])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path, killed_at):
    whole = ScoreFolder(tmp_path / "whole", {"model": "a"}, 10, pictures_per_piece=4)
    compute_scores(whole, "m", {}, scores_of)
    store, calls = ScoreFolder(tmp_path / "killed", {"model": "a"}, 10, pictures_per_piece=4), []

    def dies(piece):
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        calls.append(piece)
        return scores_of(piece)

    with pytest.raises(KeyboardInterrupt):
        compute_scores(store, "m", {}, dies)
    assert not (tmp_path / "killed" / "m.safetensors").exists()
    finished = len(calls)

    def goes_on(piece):
        calls.append(piece)
        return scores_of(piece)

    compute_scores(store, "m", {}, goes_on)
    assert len(calls) == 3 and finished == killed_at
    assert digest(tmp_path / "killed" / "m.safetensors") == digest(tmp_path / "whole" / "m.safetensors")


@pytest.mark.parametrize("change", ["model", "settings", "broken"])
def test_anything_that_changed_is_computed_again(tmp_path, change):
    compute_scores(ScoreFolder(tmp_path, {"model": "a"}, 4), "m", {"steps": 3}, scores_of)
    if change == "broken":
        (tmp_path / "m.safetensors").write_bytes(b"half a file")
    store = ScoreFolder(tmp_path, {"model": "b" if change == "model" else "a"}, 4)
    _, fresh = compute_scores(store, "m", {"steps": 4 if change == "settings" else 3}, scores_of)
    assert fresh


def test_unreadable_scores_are_refused(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        read_scores(tmp_path / "m.safetensors")
