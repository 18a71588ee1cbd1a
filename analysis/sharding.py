"""The processes that share a run: who they are, and how they tell each other what they found.

Takes what torchrun or accelerate put into the environment; gives :class:`Processes`, whose one exchange is
:meth:`Processes.gathered`. Plain values go from process to process through accelerate, so hosts need no common folder.
Knows nothing of what is computed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from analysis.report import write_atomically
from attribution.processes import AgreedError, processes_launched

Found = TypeVar("Found")
# The others wait while one computes a piece or writes tables; a process that dies is the launcher's business.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """``number`` processes, of which this one is ``rank`` (0 is the main one), with its ``device``."""

    number: int = 1
    rank: int = 0
    device: str = "cpu"

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gathered(self, compute: Callable[[], Found]) -> list[Found]:
        """What ``compute`` gives in each process, in order of rank, in every process.

        All processes must come here. A ValueError or OSError in one is an AgreedError in all.
        """
        if self.number == 1:
            return [compute()]
        found: Found | None = None
        text = ""
        try:
            found = compute()
        except (ValueError, OSError) as error:
            text = str(error) or type(error).__name__
        answers: list[tuple[str, Found]] = gather_object([(text, found)])
        for text, _ in answers:
            if text:
                raise AgreedError(text)
        return [answer for _, answer in answers]

    def together(self, compute: Callable[[], Found]) -> Found:
        """What ``compute`` gives in this process; as :meth:`gathered`, but for errors nothing leaves the process."""
        own: list[Found] = []
        self.gathered(lambda: own.append(compute()))
        return own[0]

    def require_same(self, what: str, value: object) -> None:
        """Raise AgreedError where a process has another value than the main one."""
        first, *others = self.gathered(lambda: value)
        for rank, other in enumerate(others, 1):
            if other != first:
                raise AgreedError(f"{what}: process {rank} differs from process 0, expected the same")


def open_processes(device: str) -> Processes:
    """The processes that were launched, joined. On ``cuda`` each takes the GPU of its number on this host; a device
    with a number is everybody's."""
    if processes_launched() == 1:
        return Processes(device=device)
    # What is exchanged lies in the memory of the host, whatever the device.
    state = PartialState(cpu=True, backend="gloo", timeout=PATIENCE)
    if state.num_processes != processes_launched():
        raise AgreedError(f"{processes_launched()} processes were launched, but accelerate sees {state.num_processes}")
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
    return Processes(state.num_processes, state.process_index, own)


def bring_to_main(processes: Processes, folder: Path, written: list[Path]) -> None:
    """Give the main process the files below ``folder`` that this process has written and main does not see.

    Where the folder is shared there is nothing to give. All processes must come here.
    """
    if processes.number == 1:
        return
    own = {path.relative_to(folder).as_posix(): _sha256(path) for path in written}
    announced = [pair for found in processes.gathered(lambda: own) for pair in found.items()]
    # Under the same name there may still lie what a run with other settings has left.
    wanted = processes.gathered(lambda: [name for name, sha256 in announced if _sha256(folder / name) != sha256])[0]
    if not wanted:
        return
    contents = processes.gathered(lambda: {name: (folder / name).read_bytes() for name in own if name in wanted})

    def keep() -> None:
        for name, content in (pair for found in contents for pair in found.items()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, content)

    processes.gathered(keep if processes.is_main else lambda: None)


def _sha256(path: Path) -> str:
    """Of what a file holds; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
