"""How files of a data set come to disk: whole or not at all, by one run at a time, and looked at before they are kept.

Takes paths, bytes and pixels; knows nothing of what is drawn. A file has a name nobody can foresee, made anew and never
through a link, until all of it is written. The lock of a folder is the operating system's (``filelock``, on its file
``.in-use``): it ends with the process however that ends, so the file decides nothing by being there; file systems that
know no such locks have none. (``attribution`` has the same of its own: neither package knows the other.)
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image

LOCK_FILE = ".in-use"
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


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG file under a temporary name, then rename."""
    # Renamed, not synced: a picture lost or cut short in a power cut is found so and drawn again.
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    write_atomic(path, buffer.getvalue(), sync=False)


def is_whole_png(path: Path, size: tuple[int, int], mode: str) -> bool:
    """Whether the file is a PNG of that size (width, height) and mode all of which can be read: every chunk has its
    checksum, every row its pixels. About a millisecond, some twenty times less than drawing."""
    try:
        if not path.is_file():
            return False
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            if (picture.size, picture.mode) != (size, mode):
                return False
            picture.verify()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


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
