"""One run at a time in a folder.

Takes a folder that exists; holds it for as long as a block lasts. The lock is the operating system's (`filelock`, on
the file `.in-use` of the folder): it ends with the process however that ends, forked workers do not hold it on, and the
file decides nothing by being there. On file systems that know no such locks, there is none. Does not know what the run
does; of processes that share a run, one alone is to take it.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".in-use"
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def only_run(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the folder; `BlockingIOError` with one line where another run holds it, in this process or in another."""
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
