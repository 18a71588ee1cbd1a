import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file
from safetensors.torch import save as torch_save

from analysis.score_files import (
    ENTRY,
    Piece,
    join_pieces,
    piece_records,
    pieces_of,
    read_scores,
    remove_leftovers,
    remove_parts,
    remove_scores,
    score_file,
    store_piece,
    stored_pieces,
)


def piece_of(start, stop):
    return Piece(tuple(range(start, stop)), f"{start:03d}-{stop:03d}".ljust(64, "0"))


PIECES = (piece_of(0, 4), piece_of(4, 8), piece_of(8, 10))


def arrays_of(piece):
    rows = np.array(piece.rows)
    return {
        "scores": (rows[:, None, None] + np.arange(6).reshape(2, 3) / 8).astype(np.float32),
        "loss": rows.astype(np.float64) / 3,
        "maps": (rows[:, None] * np.ones((1, 5))).astype(np.float16),
    }


def store(file, *pieces):
    for piece in pieces:
        store_piece(file, piece, arrays_of(piece), {"seconds": 1.0})


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def file(tmp_path):
    return score_file(tmp_path, "m", {"model": "a"})


@pytest.fixture
def fresh_bytes(tmp_path_factory):
    file = score_file(tmp_path_factory.mktemp("fresh"), "m", {"model": "a"})
    store(file, *PIECES)
    join_pieces(file, PIECES)
    return file.path.read_bytes()


def test_pieces_come_back_joined_in_order(file):
    store(file, *reversed(PIECES))
    assert set(stored_pieces(file)) == {piece.sha256 for piece in PIECES}
    assert not file.path.exists()
    join_pieces(file, PIECES)
    arrays, metadata = read_scores(file.path)
    for key, values in arrays_of(piece_of(0, 10)).items():
        np.testing.assert_array_equal(arrays[key], values)
        assert arrays[key].dtype == values.dtype
    assert set(metadata) == {ENTRY} and "record" not in json.loads(metadata[ENTRY])
    assert listing(file.folder) == ["m.safetensors"] and not file.parts.exists()
    assert {key: (one.start, one.count) for key, one in stored_pieces(file).items()} == {
        PIECES[0].sha256: (0, 4),
        PIECES[1].sha256: (4, 4),
        PIECES[2].sha256: (8, 2),
    }


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    kinds=st.dictionaries(
        st.text(st.sampled_from("abzAZ_09ü"), min_size=1, max_size=4),
        st.tuples(
            st.sampled_from(["float64", "float32", "float16", "int64", "uint8"]),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_the_joined_file_is_what_safetensors_would_write(tmp_path_factory, counts, kinds):
    rng = np.random.default_rng(len(kinds))
    file = score_file(tmp_path_factory.mktemp("join"), "m", {})
    pieces, wholes, start = [], {key: [] for key in kinds}, 0
    for count in counts:
        piece = piece_of(start, start + count)
        arrays = {key: rng.integers(0, 9, (count, *shape)).astype(kind) for key, (kind, shape) in kinds.items()}
        store_piece(file, piece, arrays, {})
        for key, values in arrays.items():
            wholes[key].append(values)
        pieces.append(piece)
        start += count
    join_pieces(file, pieces)
    metadata = read_scores(file.path)[1]
    assert file.path.read_bytes() == save({key: np.concatenate(parts) for key, parts in wholes.items()}, metadata)


@pytest.mark.parametrize("before", [1, 2, 3])
def test_bytes_do_not_depend_on_how_the_pieces_came_together(file, fresh_bytes, before):
    store(file, *PIECES[:before])
    join_pieces(file, PIECES[:before])
    store(file, *PIECES[before:])
    join_pieces(file, PIECES)
    assert file.path.read_bytes() == fresh_bytes and listing(file.folder) == ["m.safetensors"]


def test_fewer_pieces_are_taken_from_more(file, fresh_bytes, tmp_path_factory):
    fewer = score_file(tmp_path_factory.mktemp("fewer"), "m", {"model": "a"})
    ragged = piece_of(4, 6)
    store(fewer, PIECES[0], ragged)
    join_pieces(fewer, (PIECES[0], ragged))
    store(file, *PIECES)
    join_pieces(file, PIECES)
    store(file, ragged)
    join_pieces(file, (PIECES[0], ragged))
    assert file.path.read_bytes() == fewer.path.read_bytes()
    # What this run has no use for is kept for one that has.
    assert set(stored_pieces(file)) == {ragged.sha256, *(piece.sha256 for piece in PIECES)}
    join_pieces(file, PIECES)
    assert file.path.read_bytes() == fresh_bytes
    join_pieces(file, (*PIECES[:1], ragged))
    assert file.path.read_bytes() == fewer.path.read_bytes() and piece_records(file) == {}


def test_what_is_joined_already_is_not_written_again(file):
    store(file, *PIECES)
    join_pieces(file, PIECES)
    stamp = file.path.stat().st_mtime_ns
    store(file, PIECES[1])
    join_pieces(file, PIECES)
    assert file.path.stat().st_mtime_ns == stamp and not file.parts.exists()


@pytest.mark.parametrize("depends_on", [{"model": "b"}, {"model": "a", "steps": 3}, {}])
def test_other_scores_under_the_same_name_are_not_reused(file, depends_on):
    store(file, *PIECES)
    other = score_file(file.folder, "m", depends_on)
    assert other.path == file.path and not stored_pieces(other) and not piece_records(other)
    join_pieces(file, PIECES)
    assert not stored_pieces(other) and len(stored_pieces(file)) == 3
    store(other, *PIECES)
    join_pieces(other, PIECES)
    assert not stored_pieces(file) and len(stored_pieces(other)) == 3


def test_the_order_of_what_scores_depend_on_is_nothing():
    assert score_file(None, "m", {"a": 1, "b": 2}).identity == score_file(None, "m", {"b": 2, "a": 1}).identity
    assert score_file(None, "m", {}).identity != score_file(None, "n", {}).identity


DAMAGE = {
    "torn": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "text": lambda content: b"no scores at all",
    "zeros": lambda content: bytes(len(content)),
    "ones": lambda content: b"\xff" * len(content),
    "entry": lambda content: content.replace(b'"scores":"{', b'"scores":"[', 1),
    "other entry": lambda content: save({"scores": np.zeros(4)}, {ENTRY: "3"}),
    "no entry": lambda content: save({"scores": np.zeros(4)}),
    "nested too deep": lambda content: save({"scores": np.zeros(4)}, {ENTRY: "[" * 100_000}),
    "no axis": lambda content: save({"scores": np.zeros(())}, metadata_of(content)),
}
PIECES_OF_ANOTHER_FORM = [
    *(5, None, "text", {}, [], [5], [None], ["text"], [[4]], [[4, 5]], [[None, "a", "b"]], [["4", "a", "b"]]),
    *([[4, "a", "b", "c"]], [[4, "a", 5]], [[0, "a", "b"]], [[-4, "a", "b"]], [[True, "a", "b"]], [[4.0, "a", "b"]]),
    *([[10**30, "a", "b"]], [[400, "a"]]),
]


def metadata_of(content):
    """What stands in the header of a safetensors file."""
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


def with_entry(path, **changes):
    """Another entry in a score file, whose numbers stay."""
    arrays, metadata = load_file(path), metadata_of(path.read_bytes())
    path.write_bytes(save(arrays, {ENTRY: json.dumps({**json.loads(metadata[ENTRY]), **changes})}))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("is_joined", [False, True])
def test_what_is_damaged_is_not_there(file, damage, is_joined):
    store(file, *PIECES)
    path = file.part(PIECES[1])
    if is_joined:
        join_pieces(file, PIECES)
        path = file.path
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert set(stored_pieces(file)) == (set() if is_joined else {PIECES[0].sha256, PIECES[2].sha256})
    assert set(piece_records(file)) == (set() if is_joined else {PIECES[0].sha256, PIECES[2].sha256})
    with pytest.raises(ValueError, match=f"{0 if is_joined else 2} of 3 pieces are there"):
        join_pieces(file, PIECES)


@pytest.mark.parametrize("pieces", PIECES_OF_ANOTHER_FORM)
def test_an_entry_of_another_form_is_computed_anew(file, fresh_bytes, pieces):
    """Never a traceback: what a file says wrongly of its pieces is not there, and the next run stores it."""
    store(file, *PIECES)
    with_entry(file.part(PIECES[1]), pieces=pieces)
    assert set(stored_pieces(file)) == set(piece_records(file)) == {PIECES[0].sha256, PIECES[2].sha256}
    store(file, PIECES[1])
    join_pieces(file, PIECES)
    assert file.path.read_bytes() == fresh_bytes
    with_entry(file.path, pieces=pieces)
    assert not stored_pieces(file) and not pieces_of(file.path)
    with pytest.raises(ValueError, match=r"m\.safetensors(, [a-z]+)?: .*expected"):
        read_scores(file.path)
    store(file, *PIECES)
    join_pieces(file, PIECES)
    assert file.path.read_bytes() == fresh_bytes


def test_a_record_of_another_form_is_not_remembered(file):
    store(file, PIECES[0])
    with_entry(file.part(PIECES[0]), record=[1])
    assert piece_records(file) == {} and len(stored_pieces(file)) == 1


def test_a_damaged_piece_is_stored_anew(file, fresh_bytes):
    store(file, *PIECES)
    file.part(PIECES[1]).write_bytes(b"torn")
    store(file, PIECES[1])
    join_pieces(file, PIECES)
    assert file.path.read_bytes() == fresh_bytes


def test_a_missing_piece_leaves_everything_as_it_was(file):
    store(file, PIECES[0])
    join_pieces(file, PIECES[:1])
    store(file, PIECES[2])
    before = {name: (file.folder / name).read_bytes() for name in listing(file.folder)}
    with pytest.raises(ValueError, match=r"m\.safetensors: 2 of 3 pieces are there, expected all"):
        join_pieces(file, PIECES)
    assert {name: (file.folder / name).read_bytes() for name in listing(file.folder)} == before


def test_pieces_that_do_not_fit_are_refused(file):
    with pytest.raises(ValueError, match=r"m, scores: expected 4 pictures, got \[3, 2\]"):
        store_piece(file, PIECES[0], {"scores": np.zeros((3, 2))}, {})
    assert not listing(file.folder)
    store_piece(file, PIECES[0], {"scores": np.zeros((4, 2))}, {})
    store_piece(file, PIECES[1], {"scores": np.zeros((4, 3))}, {})
    with pytest.raises(ValueError, match=r"holds .*\(3,\).*, expected .*\(2,\)"):
        join_pieces(file, PIECES[:2])
    assert not file.path.exists() and len(listing(file.folder)) == 2


def test_records_are_remembered_until_pieces_are_joined(file):
    for number, piece in enumerate(PIECES):
        store_piece(file, piece, arrays_of(piece), {"seconds": number, "process": 1})
    expected = {piece.sha256: {"seconds": number, "process": 1} for number, piece in enumerate(PIECES)}
    assert piece_records(file) == expected
    join_pieces(file, PIECES)
    assert piece_records(file) == {}


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing_behind(file, fresh_bytes, monkeypatch, call, error):
    def fails(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(type(error)):
            store(file, PIECES[0])
    assert not listing(file.folder)
    store(file, PIECES[0])
    join_pieces(file, PIECES[:1])
    store(file, *PIECES[1:])
    before = {name: (file.folder / name).read_bytes() for name in listing(file.folder)}
    assert len(before) == 3
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(type(error)):
            join_pieces(file, PIECES)
    assert {name: (file.folder / name).read_bytes() for name in listing(file.folder)} == before
    join_pieces(file, PIECES)
    assert file.path.read_bytes() == fresh_bytes


def plant_foreign_files(folder):
    (folder / "m.parts").mkdir(exist_ok=True)
    for place in (folder, folder / "m.parts"):
        save_file({"x": np.zeros(3)}, place / "weights.safetensors", {"format": "pt"})
        (place / "notes.txt").write_text("mine")
        (place / "torn.safetensors").write_bytes(b"\0\1")
    (folder / "empty").mkdir()
    (folder / "deeper").mkdir()
    save_file({"x": np.zeros(3)}, folder / "deeper" / "weights.safetensors")
    return listing(folder)


def test_only_scores_are_removed(file):
    others = plant_foreign_files(file.folder)
    joined = score_file(file.folder, "other", {})
    store(file, *PIECES)
    store(joined, *PIECES)
    join_pieces(joined, PIECES)
    assert len(listing(file.folder)) == len(others) + 4
    remove_scores(file.folder)
    assert listing(file.folder) == others and (file.folder / "empty").is_dir()


def test_emptied_folders_of_pieces_go_too(file):
    store(file, *PIECES)
    remove_scores(file.folder)
    assert not file.parts.exists()
    store(file, *PIECES)
    remove_parts(file, PIECES)
    assert not file.parts.exists()
    remove_parts(file, PIECES)
    remove_scores(file.folder / "nowhere")


def test_a_folder_of_pieces_that_was_empty_before_stays(file):
    """Nothing was taken out of it: it may be anybody's."""
    (file.folder / "x.parts").mkdir()
    store(file, *PIECES)
    remove_scores(file.folder)
    assert (file.folder / "x.parts").is_dir() and not file.parts.exists()


def test_leftovers_of_a_killed_run_are_removed(file):
    store(file, *PIECES)
    join_pieces(file, PIECES)
    store(file, PIECES[0])
    (file.folder / "other.parts").mkdir()
    kept = [".hidden", ".m.tmp", "m.safetensors.12.tmp", ".m.safetensors.x.tmp"]
    kept += [".thesis.tex.123.tmp", ".other.safetensors.123.tmp", ".record.json.1.tmp", "m.parts/.notes.txt.7.tmp"]
    kept += ["other.parts/.000000-000004-00000000.safetensors.7.tmp"]
    gone = [".m.safetensors.123.tmp", ".timings.json.5.tmp", "m.parts/.000000-000004-00000000.safetensors.7.tmp"]
    for name in (*kept, *gone, "m.parts/.kept-0123456789abcdef.safetensors.7.tmp"):
        (file.folder / name).write_bytes(b"half")
    stored = ["m.safetensors", file.part(PIECES[0]).relative_to(file.folder).as_posix()]
    remove_leftovers(file.folder, ["m"], ["timings.json"])
    assert listing(file.folder) == sorted([*kept, *stored])


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("place", [-1, -200, -400])
def test_a_flipped_bit_is_not_read(file, place):
    store(file, *PIECES)
    join_pieces(file, PIECES)
    read_scores(file.path)
    flip(file.path, place)
    with pytest.raises(ValueError, match=r"^[^\n]*m\.safetensors: pictures \d to \d: [^\n]*not those that were stored"):
        read_scores(file.path)


def test_files_of_earlier_makes_are_read(file):
    """Without digests of numbers, or without an entry, as those of others are."""
    store(file, *PIECES)
    join_pieces(file, PIECES)
    expected = read_scores(file.path)[0]
    pieces = json.loads(metadata_of(file.path.read_bytes())[ENTRY])["pieces"]
    with_entry(file.path, pieces=[one[:2] for one in pieces])
    for key, values in read_scores(file.path)[0].items():
        np.testing.assert_array_equal(values, expected[key])
    save_file(expected, file.path)
    assert read_scores(file.path)[1] == {}


def test_numbers_of_a_kind_that_numpy_lacks_are_no_scores(file):
    store(file, *PIECES)
    join_pieces(file, PIECES)
    metadata = metadata_of(file.path.read_bytes())
    file.path.write_bytes(torch_save({"scores": torch.zeros(10).bfloat16()}, metadata))
    assert not stored_pieces(file)
    # Where something has taught numpy the kind, these are other numbers than those that were stored.
    with pytest.raises(
        ValueError, match=r"m\.safetensors: (expected a safetensors file of scores|.* not those that were)"
    ):
        read_scores(file.path)


def test_unreadable_scores_are_refused(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"m\.safetensors: expected a safetensors file"):
        read_scores(tmp_path / "m.safetensors")
