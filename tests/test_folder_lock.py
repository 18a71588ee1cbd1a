"""One run at a time in a folder, whatever became of the last one; the same for both makes of the lock."""

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

import attribution.folder_lock
import data_synth.writing

LOCKS = pytest.mark.parametrize("lock", [attribution.folder_lock, data_synth.writing], ids=lambda lock: lock.__name__)
HOLD = """
import sys, time
from {} import only_run
with only_run(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(lock, folder):
    """A process that holds the folder."""
    command = [sys.executable, "-c", HOLD.format(lock.__name__), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@LOCKS
def test_another_process_is_told_at_once_and_a_kill_leaves_no_lock(lock, tmp_path):
    process = hold(lock, tmp_path)
    try:
        start = time.monotonic()
        with pytest.raises(OSError, match="another run is under way in this folder; wait for its end or choose"):
            with lock.only_run(tmp_path):
                pytest.fail("taken twice")
        assert time.monotonic() - start < 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert os.listdir(tmp_path) == [".in-use"]  # which decides nothing
    with lock.only_run(tmp_path):
        assert os.listdir(tmp_path) == [".in-use"]
    assert os.listdir(tmp_path) == []


def test_both_makes_hold_each_other_off(tmp_path):
    with attribution.folder_lock.only_run(tmp_path), pytest.raises(BlockingIOError):
        with data_synth.writing.only_run(tmp_path):
            pytest.fail("taken twice")


@LOCKS
def test_the_folder_is_free_after_an_error(lock, tmp_path):
    with pytest.raises(ValueError, match="mine"), lock.only_run(tmp_path):
        raise ValueError("mine")
    with lock.only_run(tmp_path):
        pass


def _sleep(started, seconds):
    started.set()
    time.sleep(seconds)


@LOCKS
def test_a_forked_worker_does_not_go_on_holding(lock, tmp_path):
    """As workers of a data loader do when the process that started them is killed."""
    context = multiprocessing.get_context("fork")
    started = context.Event()
    with lock.only_run(tmp_path):
        worker = context.Process(target=_sleep, args=(started, 60))
        worker.start()
        assert started.wait(30)
        with pytest.raises(BlockingIOError), lock.only_run(tmp_path):  # a fork takes the lock from nobody
            pytest.fail("taken twice")
    try:
        with lock.only_run(tmp_path):
            assert worker.is_alive()
    finally:
        worker.kill()
        worker.join()


@LOCKS
def test_a_link_is_not_followed_and_a_file_of_others_stays(lock, tmp_path):
    (tmp_path / ".in-use").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"\.in-use: is a link"), lock.only_run(tmp_path):
        pytest.fail("taken")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / ".in-use").unlink()
    (tmp_path / ".in-use").write_text("mine")
    with lock.only_run(tmp_path):
        pass
    assert (tmp_path / ".in-use").read_text() == "mine"


@LOCKS
def test_a_file_that_the_last_run_removed_is_no_lock(lock, tmp_path, monkeypatch):
    """Opened before the other run ended, locked after: the folder is then held by the file that is there."""
    flock, others = fcntl.flock, []

    def late(descriptor, how):
        if not others and how & fcntl.LOCK_EX:
            others.append(os.fstat(descriptor).st_ino)
            (tmp_path / ".in-use").unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    try:
        with lock.only_run(tmp_path):
            process = subprocess.run(
                [sys.executable, "-c", HOLD.format(lock.__name__), str(tmp_path)],
                capture_output=True,
                text=True,
                check=False,
            )
    except BlockingIOError:  # told to come again is right too, two at once are not
        return
    assert process.returncode == 1 and "BlockingIOError" in process.stderr


@LOCKS
def test_a_file_system_without_locks_stops_nobody(lock, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with lock.only_run(tmp_path):
        pass


@LOCKS
def test_another_error_of_the_system_is_told(lock, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="broken"), lock.only_run(tmp_path):
        pytest.fail("taken")
