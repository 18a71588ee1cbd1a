"""How files of a data set come to disk: whole or not at all, by one run at a time, and looked at before they are kept.

Takes paths, bytes and pixels; knows nothing of what is drawn. A file has a name nobody can foresee, made anew and never
through a link, until all of it is written. A picture ends in a text chunk with a digest of its bytes, its name and what
it was made from: one that is not whole, another picture, or that of another name is told from it. The lock of a folder
is the operating system's (``filelock``, on its file ``.in-use``): it ends with the process however that ends, so the
file decides nothing by being there; file systems that know no such locks have none. (``attribution`` has the lock and
the check of a folder's name of its own: neither package knows the other.)
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image

LOCK_FILE = ".in-use"
PNG_END = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
SEAL_KEYWORD = b"data_synth"
SEALED_END = 12 + len(SEAL_KEYWORD) + 1 + 64 + len(PNG_END)  # bytes of a text chunk with a digest, and of the end
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
TEMPORARY = re.compile(r"\.(dataset\.json|metadata\.csv|\d{7}\.png)\.\d+\.tmp")


def write_atomic(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write bytes under a temporary name in the same folder, then rename: never half a file under the final name."""
    temporary = path.with_name(f".{path.name}.{secrets.randbelow(10**16):016d}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)  # before the try: what is there already is somebody else's
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def require_folder_name(folder: str | os.PathLike[str], option: str) -> Path:
    """The folder that an ``option`` names, to be written to; ValueError for none, as an unset variable of a shell gives
    (a path of no name is the current folder), and for a name that is not UTF-8."""
    name = os.fspath(folder)
    if not name:
        raise ValueError(f"{option}: expected a folder, got an empty name")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{option}: {name!r} is not UTF-8, expected another name") from error
    return Path(folder)


def write_png(folder: Path, name: str, pixels: NDArray[np.uint8], made_from: str) -> None:
    """Write a PNG file under a temporary name, then rename; ``made_from`` tells it from a picture of something else."""
    # Renamed, not synced: a picture lost or cut short in a power cut is found so and drawn again.
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    content = buffer.getvalue().removesuffix(PNG_END)
    write_atomic(folder / name, content + _sealed_end(content, name, made_from), sync=False)


def is_own_png(folder: Path, name: str, made_from: str) -> bool:
    """Whether the file is there as :func:`write_png` wrote it under this name from the same: not a byte is another.

    ValueError where something else than a file is there: a link, a folder, a pipe. Takes less than a millisecond, some
    forty times less than drawing.
    """
    path = folder / name
    try:
        kind = path.lstat().st_mode
        if not stat.S_ISREG(kind):
            found = "a link" if stat.S_ISLNK(kind) else "a folder" if stat.S_ISDIR(kind) else "a device or pipe"
            raise ValueError(f"{path}: is {found}, expected a file or nothing")
        content = path.read_bytes()
    except OSError:
        return False
    return content[-SEALED_END:] == _sealed_end(content[:-SEALED_END], name, made_from)


def _sealed_end(content: bytes, name: str, made_from: str) -> bytes:
    """The last chunks of a PNG file that begins with ``content``."""
    digest = hashlib.sha256(content)
    digest.update(f"\0{name}\0{made_from}".encode())
    chunk = b"tEXt" + SEAL_KEYWORD + b"\0" + digest.hexdigest().encode()
    return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + PNG_END


def remove_temporaries(folder: Path) -> None:
    """Take out what a killed run was writing."""
    for part in (folder, folder / "images", folder / "masks"):
        for path in part.glob(".*.tmp"):
            if TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold the folder; ``BlockingIOError`` with one line where another run holds it, in this process or in another."""
    path = Path(folder) / LOCK_FILE
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(
            f"{path.parent}: another run is under way in this folder; wait for its end or choose another folder"
        ) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{path}: is a link, expected a file or nothing") from error
        if error.errno not in NO_LOCKS:
            raise
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            if path.lstat().st_size == 0:
                path.unlink()  # while it is held: who opened it before is told that it is gone
        lock.release()
