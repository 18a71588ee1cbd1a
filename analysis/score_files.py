"""Scores on disk: one safetensors file per name, made of pieces, of which those that are stored are not computed again.

Takes a folder, a name, what the scores depend on besides pictures, and the arrays of a piece (some pictures); gives the
arrays of all pictures. A finished piece is a file of its own (``<name>.parts/``) until all are there; then they are
joined, piece by piece, in ``<name>.safetensors``, which remembers what each of its pieces was made of, and a digest of
its numbers: a piece whose numbers are not those that were stored is not there. Every file appears whole or not at all.
Knows neither models nor methods.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from analysis.checked_arrays import arrays_sha256
from analysis.score_entries import ENTRY, UNREADABLE, made_of, picture_counts, read_entry, require_stored
from attribution.atomic_writing import TEMPORARY, remove_temporaries, replacing, write_atomically

Arrays = dict[str, NDArray[Any]]
# Names in the format, in the order in which its own writer puts them.
KINDS = {"int64": "I64", "float64": "F64", "float32": "F32", "float16": "F16", "uint8": "U8"}
PART = re.compile(r"(\d{6,}-\d{6,}-[0-9a-f]{8}|kept-[0-9a-f]{16})\.safetensors")


@dataclass(frozen=True)
class Piece:
    """Some pictures, computed together: their numbers in the data set, and a digest of all there is of them."""

    rows: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class ScoreFile:
    """Where the scores of one name live; ``identity`` is a digest of what they depend on besides pictures."""

    folder: Path
    name: str
    identity: str

    @property
    def path(self) -> Path:
        """The file of all pieces."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def parts(self) -> Path:
        """The folder of finished pieces that are not joined yet."""
        return self.folder / f"{self.name}.parts"

    def part(self, piece: Piece) -> Path:
        """The file of one finished piece."""
        return self.parts / f"{piece.rows[0]:06d}-{piece.rows[-1] + 1:06d}-{piece.sha256[:8]}.safetensors"


@dataclass(frozen=True)
class Stored:
    """Where a finished piece lies: rows ``start`` to ``start + count`` of the arrays of a file, whose digest is
    ``arrays_sha256``."""

    path: Path
    start: int
    count: int
    arrays_sha256: str


def score_file(folder: Path, name: str, depends_on: Mapping[str, Any]) -> ScoreFile:
    """The scores of a name; another value in ``depends_on`` makes them other scores."""
    description = json.dumps({"name": name, **depends_on}, sort_keys=True, default=str)
    return ScoreFile(folder, name, hashlib.sha256(description.encode()).hexdigest())


def stored_pieces(file: ScoreFile) -> dict[str, Stored]:
    """Every finished piece of these scores, by the digest of its pictures. What is not readable, and what is not what
    was stored, is not there."""
    found: dict[str, Stored] = {}
    for path in (*sorted(file.parts.glob("*.safetensors")), file.path):
        entry = read_entry(path)
        if entry.get("identity") == file.identity:
            found |= {sha256: place for sha256, place in pieces_of(path).items() if is_whole(place)}
    return found


def pieces_of(path: Path) -> dict[str, Stored]:
    """The pieces in a file, whatever scores they are of, by the digest of their pictures; none where it is no score
    file of this make, or says what cannot be of its arrays."""
    pieces = made_of(read_entry(path))
    if not pieces or picture_counts(path) != {sum(count for count, _, _ in pieces)}:
        return {}
    found, start = {}, 0
    for count, sha256, of_arrays in pieces:
        found[sha256] = Stored(path, start, count, of_arrays)
        start += count
    return found


def read_piece(place: Stored) -> Arrays:
    """The arrays of a piece."""
    with safe_open(place.path, framework="numpy") as file:
        return {key: file.get_slice(key)[place.start : place.start + place.count] for key in file.keys()}


def is_whole(place: Stored) -> bool:
    """Whether the numbers of a piece are those that were stored."""
    try:
        return arrays_sha256(read_piece(place)) == place.arrays_sha256
    except UNREADABLE:
        return False


def store_piece(file: ScoreFile, piece: Piece, arrays: Arrays, record: Mapping[str, Any]) -> Path:
    """Store the arrays of a piece, whose first axis is the image. ``record`` is anything to be remembered until pieces
    are joined (:func:`piece_records`)."""
    for key, values in arrays.items():
        if len(values) != len(piece.rows):
            raise ValueError(f"{file.name}, {key}: expected {len(piece.rows)} pictures, got {list(np.shape(values))}")
    file.parts.mkdir(parents=True, exist_ok=True)
    stored = {key: np.ascontiguousarray(values) for key, values in arrays.items()}
    entry = _entry(file.identity, [(len(piece.rows), piece.sha256, arrays_sha256(stored))], record)
    return write_atomically(file.part(piece), save(stored, {ENTRY: entry}))


def piece_records(file: ScoreFile) -> dict[str, dict[str, Any]]:
    """What :func:`store_piece` was told to remember, for the pieces that are not joined yet."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(file.parts.glob("*.safetensors")):
        entry = read_entry(path)
        if entry.get("identity") == file.identity and isinstance(entry.get("record"), dict):
            found |= {sha256: entry["record"] for sha256 in pieces_of(path)}
    return found


def join_pieces(file: ScoreFile, pieces: Sequence[Piece]) -> None:
    """Make the file of all these pieces, in this order, from what is stored; only one piece at a time is in memory.

    Raises ValueError where one is missing. The bytes depend on the scores alone, not on how they came together. Pieces
    of these scores that this run has no use for stay among the parts.
    """
    names = [piece.sha256 for piece in pieces]
    stored = stored_pieces(file)
    missing = sum(sha256 not in stored for sha256 in names)
    if missing:
        raise ValueError(f"{file.path}: {len(names) - missing} of {len(names)} pieces are there, expected all")
    if list(pieces_of(file.path)) != names or any(stored[sha256].path != file.path for sha256 in names):
        _keep_others(file, stored, set(names))
        places = [stored[sha256] for sha256 in names]
        entries = [(place.count, sha256, place.arrays_sha256) for sha256, place in zip(names, places, strict=True)]
        with replacing(file.path) as target:
            _join(places, _entry(file.identity, entries, None), target)
    remove_parts(file, pieces)


def _keep_others(file: ScoreFile, stored: Mapping[str, Stored], wanted: set[str]) -> None:
    """Put pieces of the joined file that a new one will not have among the parts, for a run that wants them again."""
    for sha256, place in stored.items():
        if place.path == file.path and sha256 not in wanted:
            arrays = {key: np.ascontiguousarray(values) for key, values in read_piece(place).items()}
            file.parts.mkdir(parents=True, exist_ok=True)
            entry = _entry(file.identity, [(place.count, sha256, place.arrays_sha256)], None)
            write_atomically(file.parts / f"kept-{sha256[:16]}.safetensors", save(arrays, {ENTRY: entry}))


def restamp_pieces(file: ScoreFile, pieces: Sequence[tuple[str, Stored]]) -> None:
    """Make the file of these pieces (digest of pictures, place), whatever scores they were said to be of."""
    entries = [(place.count, sha256, arrays_sha256(read_piece(place))) for sha256, place in pieces]
    with replacing(file.path) as target:
        _join([place for _, place in pieces], _entry(file.identity, entries, None), target)


def remove_parts(file: ScoreFile, pieces: Sequence[Piece]) -> None:
    """Take out the parts that are among these pieces, and those of other scores under this name; others stay."""
    done = {piece.sha256 for piece in pieces}
    for path in file.parts.glob("*.safetensors"):
        entry = read_entry(path)
        if entry and (entry["identity"] != file.identity or set(pieces_of(path)) <= done):
            path.unlink(missing_ok=True)
    _remove_empty(file.parts)


def remove_scores(folder: Path) -> None:
    """Take out every score file and finished piece below a folder; files made by others stay."""
    for pattern in ("*.safetensors", "*.parts/*.safetensors"):
        for path in sorted(folder.glob(pattern)):
            if read_entry(path):
                path.unlink(missing_ok=True)
                if path.parent != folder:
                    _remove_empty(path.parent)


def remove_leftovers(folder: Path, names: Iterable[str], others: Iterable[str] = ()) -> None:
    """Take out what a killed run was writing of the scores of these names, and under ``others``, names of files."""
    names = list(names)
    remove_temporaries(folder, [*(f"{name}.safetensors" for name in names), *others])
    for name in names:
        for path in (folder / f"{name}.parts").glob(".*.tmp"):
            temporary = TEMPORARY.fullmatch(path.name)
            if temporary and PART.fullmatch(temporary[1]):
                path.unlink(missing_ok=True)


def read_scores(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Arrays and metadata of a score file. Raises ValueError for a file that is none, and where the file says what its
    numbers were and they are others."""
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            metadata = dict(file.metadata() or {})
    except (SafetensorError, TypeError) as error:
        raise ValueError(f"{path}: expected a safetensors file of scores ({error})") from error
    if ENTRY in metadata:  # a file of another make says nothing of its numbers
        require_stored(path, arrays, metadata[ENTRY])
    return arrays, metadata


def _remove_empty(folder: Path) -> None:
    with suppress(FileNotFoundError):  # another process may be faster
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _entry(identity: str, pieces: Sequence[tuple[int, str, str]], record: Mapping[str, Any] | None) -> str:
    entry = {"identity": identity, "pieces": [list(piece) for piece in pieces]}
    return json.dumps(entry if record is None else entry | {"record": dict(record)}, sort_keys=True)


def _join(stored: Sequence[Stored], entry: str, target: IO[bytes]) -> None:
    """Write a safetensors file of the pieces, byte by byte as ``safetensors`` itself would."""
    shapes = [_shapes(place) for place in stored]
    for place, other in zip(stored, shapes, strict=True):
        if other != shapes[0]:
            raise ValueError(f"{place.path}: holds {other}, expected {shapes[0]} as in {stored[0].path}")
    num_images = sum(place.count for place in stored)
    # Wider numbers first, then by name: the order of the format's own writer, which keeps all of them aligned.
    keys = sorted(shapes[0], key=lambda key: (list(KINDS).index(shapes[0][key][0]), key))
    header: dict[str, Any] = {"__metadata__": {ENTRY: entry}}
    offset = 0
    for key in keys:
        dtype, shape = shapes[0][key]
        size = np.dtype(dtype).itemsize * num_images * int(np.prod(shape, dtype=np.int64))
        header[key] = {"dtype": KINDS[dtype], "shape": [num_images, *shape], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    target.write(len(text).to_bytes(8, "little") + text)
    for key in keys:
        for place in stored:
            with safe_open(place.path, framework="numpy") as file:
                block = file.get_slice(key)[place.start : place.start + place.count]
            target.write(np.ascontiguousarray(block).tobytes())


def _shapes(place: Stored) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape per picture of every array."""
    with safe_open(place.path, framework="numpy") as file:
        empty = {key: file.get_slice(key)[:1] for key in file.keys()}
    return {key: (str(values.dtype), values.shape[1:]) for key, values in empty.items()}
