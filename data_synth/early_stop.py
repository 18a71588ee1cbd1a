"""Ctrl-C where a command of this project has not begun: one line and exit code 3, as later.

Takes nothing; acts when it is imported, before anything that takes long, and only in a process that was started as
`python -m` one of the packages. Until the command's own `main` runs, while libraries are imported, there is nothing to
tidy up. From then on Ctrl-C is the `KeyboardInterrupt` that it always is; of a `main` that does not take it, it ends
with one line too. A package imported by another program changes nothing there. `data_synth`, which imports no other
package, has this module as well.
"""

import os
import signal
import sys
from types import FrameType, TracebackType

PACKAGES = ("analysis", "attribution", "data_synth")
STOPPED = 3


def stop_in_one_line() -> None:
    """Take Ctrl-C over where this is the start of a command."""
    # while python looks for the module to run, and imports its package, the first argument is -m
    words = [word.removeprefix("-m").partition(".")[0] for word in sys.orig_argv[1:]]
    is_command = sys.argv[:1] == ["-m"] and any(word in PACKAGES for word in words)
    if is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the caller has it ignored
        signal.signal(signal.SIGINT, _on_signal)
        sys.excepthook = _on_exception


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _main_runs(frame):
        raise KeyboardInterrupt
    _tell("stopped before it began")
    os._exit(STOPPED)  # an exception could be lost in what is being imported


def _main_runs(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "main" and frame.f_globals.get("__name__") == "__main__":
            return True
        frame = frame.f_back
    return False


def _on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        _tell("stopped")
        raise SystemExit(STOPPED)
    sys.__excepthook__(kind, error, trace)


def _tell(line: str) -> None:
    """Of several processes the main one alone speaks."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"{line}\n".encode())


stop_in_one_line()
