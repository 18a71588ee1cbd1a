import json

import numpy as np
import pytest

from analysis.score_files import Piece, join_pieces, piece_records, score_file, store_piece
from analysis.timings import add_timings, is_foreign, peak_mb, read_timings, summary, timings_path

KNOWN = {
    "m": {
        "a": {"seconds": 1.5, "peak_mb": 300.0, "process": 0},
        "b": {"seconds": 0.25, "peak_mb": 500.0, "process": 1},
        "c": {"seconds": 2.0, "peak_mb": 400.0, "process": 0},
    }
}


def test_seconds_add_up_and_memory_is_the_most():
    assert summary(KNOWN, "m", ["a", "b", "c"]) == {"seconds": 3.75, "peak_mb": 500.0}
    assert summary(KNOWN, "m", iter(["a", "c"])) == {"seconds": 3.5, "peak_mb": 400.0}


def test_a_price_is_measured_in_plain_forward_passes_of_the_same_pieces():
    known = {"m": {key: one | {"forward_seconds": forward} for (key, one), forward in zip(
        KNOWN["m"].items(), (0.5, 0.25, 1.0), strict=True)}}  # fmt: skip
    assert summary(known, "m", ["a", "b"])["forwards_measured"] == (1.5 + 0.25) / (0.5 + 0.25)
    assert summary(known, "m", ["c"])["forwards_measured"] == 2.0
    del known["m"]["a"]["forward_seconds"]  # as in runs from before it was measured
    assert summary(known, "m", ["a", "b"]) == {"seconds": 1.75, "peak_mb": 500.0}


@pytest.mark.parametrize(("name", "pieces"), [("m", ["a", "unknown"]), ("n", ["a"]), ("m", ["unknown"])])
def test_nothing_is_said_where_a_piece_is_unknown(name, pieces):
    assert summary(KNOWN, name, pieces) == {}


def test_what_is_known_of_others_stays(tmp_path):
    assert read_timings(tmp_path) == {}
    add_timings(tmp_path, "m", {"a": KNOWN["m"]["a"]})
    add_timings(tmp_path, "n", {"a": {"seconds": 9.0, "peak_mb": 1.0, "process": 0}})
    add_timings(tmp_path, "m", {"b": KNOWN["m"]["b"], "c": KNOWN["m"]["c"]})
    assert read_timings(tmp_path)["m"] == KNOWN["m"]
    assert summary(read_timings(tmp_path), "n", ["a"]) == {"seconds": 9.0, "peak_mb": 1.0}
    add_timings(tmp_path, "m", {"a": {"seconds": 7.0, "peak_mb": 1.0, "process": 2}})
    assert read_timings(tmp_path)["m"]["a"]["seconds"] == 7.0
    assert [path.name for path in tmp_path.iterdir()] == ["timings.json"]


def test_no_records_no_file(tmp_path):
    add_timings(tmp_path, "m", {})
    assert not timings_path(tmp_path).exists()


def test_records_of_pieces_survive_their_joining(tmp_path):
    file = score_file(tmp_path, "m", {})
    pieces = [Piece((0, 1), "a" * 64), Piece((2,), "b" * 64)]
    for number, piece in enumerate(pieces):
        record = {"seconds": 1.0 + number, "peak_mb": 10.0 * number, "process": number}
        store_piece(file, piece, {"scores": np.zeros((len(piece.rows), 2))}, record)
    add_timings(tmp_path, "m", piece_records(file))
    join_pieces(file, pieces)
    add_timings(tmp_path, "m", piece_records(file))
    wanted = [piece.sha256 for piece in pieces]
    assert summary(read_timings(tmp_path), "m", wanted) == {"seconds": 3.0, "peak_mb": 10.0}


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"m": ' * 100_000, "\udcff"])
def test_what_is_no_json_is_refused(tmp_path, text):
    timings_path(tmp_path).write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"timings\.json: expected JSON"):
        read_timings(tmp_path)


def test_memory_is_counted_in_megabytes():
    held = np.ones(60 * 2**20, dtype=np.uint8)  # 60 MB that are really there
    peak = peak_mb()
    assert held.nbytes / 2**20 < peak < 2**20
    assert peak_mb() >= peak


@pytest.mark.parametrize("text", ["[]", '"text"', "3", '{"m": []}', '{"m": {"a": 1}, "n": null}'])
def test_a_file_of_another_kind_is_refused(tmp_path, text):
    timings_path(tmp_path).write_text(text)
    with pytest.raises(ValueError, match=r"timings\.json: expected pieces by the name of their score"):
        read_timings(tmp_path)


GOOD = {"seconds": 1.5, "peak_mb": 3.0, "process": 0, "forward_seconds": 0.5}


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"seconds": 1.0},
        {"peak_mb": 1.0},
        *({**GOOD, "seconds": value} for value in ("1", None, [], True, -1.0, float("nan"), float("inf"), 10**400)),
        *({**GOOD, "peak_mb": value} for value in ("1", None, float("nan"))),
    ],
)
def test_a_record_of_another_form_is_unknown(tmp_path, record):
    timings_path(tmp_path).write_text(json.dumps({"m": {"a": record, "b": GOOD}}))
    known = read_timings(tmp_path)
    assert known == {"m": {"b": GOOD}} and summary(known, "m", ["a", "b"]) == {}
    add_timings(tmp_path, "m", {"a": GOOD})
    assert summary(read_timings(tmp_path), "m", ["a", "b"]) == {
        "seconds": 3.0, "peak_mb": 3.0, "forwards_measured": 3.0,
    }  # fmt: skip


@pytest.mark.parametrize("forward", [None, "1", [], float("nan"), -1])
def test_without_a_time_of_forward_passes_there_is_no_price(tmp_path, forward):
    timings_path(tmp_path).write_text(json.dumps({"m": {"a": GOOD | {"forward_seconds": forward}, "b": GOOD}}))
    assert summary(read_timings(tmp_path), "m", ["a", "b"]) == {"seconds": 3.0, "peak_mb": 3.0}


def test_a_file_of_another_kind_is_somebody_elses(tmp_path):
    assert not is_foreign(tmp_path)
    for text, expected in (("[]", True), ('{"mine": 1}', True), ("{", False), ("{}", False)):
        timings_path(tmp_path).write_text(text)
        assert is_foreign(tmp_path) == expected
