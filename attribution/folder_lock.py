"""One run at a time in a folder.

Takes a folder that exists; holds it for as long as a block lasts. The lock is the operating system's (`flock` on the
file `.in-use` of the folder): it ends with the process however that ends, so the file decides nothing by being there.
On systems and file systems that know no such locks, there is none. Does not know what the run does; of processes that
share a run, one alone is to take it.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".in-use"
_held: set[int] = set()


@contextmanager
def only_run(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the folder; `BlockingIOError` with one line where another run holds it, in this process or in another."""
    if fcntl is None:
        yield
        return
    path = Path(folder) / LOCK_FILE
    descriptor = _taken(path)
    if descriptor is None:
        yield
        return
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)
        with suppress(OSError):
            mine = os.fstat(descriptor)
            if mine.st_size == 0 and os.path.samestat(mine, os.lstat(path)):  # still locked: nobody else has it
                path.unlink()
        os.close(descriptor)


def _taken(path: Path) -> int | None:
    """The descriptor that holds the lock; None where the file system knows no locks."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(f"{path}: is a link, expected a file or nothing") from error
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise BlockingIOError(
                f"{path.parent}: another run is under way in this folder; wait for its end or choose another folder"
            ) from error
        except OSError:
            os.close(descriptor)
            return None
        # The run that held the lock until now may have removed the file: then a new one is to be locked.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


def _let_go() -> None:
    """In a process that was forked: a lock lasts until every process that inherited it has closed it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
