"""The states of a training that was not yet done: written so that a kill at any instant loses none, and read again.

Takes an `Accelerator` with model and optimizer prepared, the `Progress` and the best weights so far; gives them back.
One state is one folder `step_<number>`, under that name only when every process has written its part:

    model.safetensors  optimizer.bin  random_states_<process>.pkl   accelerate's own
    best.safetensors  progress.json

The main process writes all but the random states of the others, so all must see the same folder. A state is read by
as many processes as wrote it, for each goes on from its own random state. Does not know how the model is trained.
"""

import json
import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.processes import from_main, together


@dataclass
class Progress:
    """What a resumed run needs to know besides weights, optimizer and random states."""

    step: int = 0
    elapsed_s: float = 0.0
    learning_rate: float = 0.0
    best_step: int = -1
    best_mse: float = math.inf
    rows: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)  # training losses since the last row


def save_state(
    accelerator: Accelerator,
    folder: Path,
    signature: dict[str, Any],
    progress: Progress,
    best: dict[str, Tensor],
) -> None:
    """A new state beside the old one, under its final name only when complete; then the old one goes.

    Every process must call it. Raises `OSError` (several processes: `AgreedError`) where it cannot be written.
    """
    scratch, final = folder / "unfinished", folder / f"step_{progress.step:09d}"
    main = accelerator.is_main_process
    with together(accelerator):
        if main:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
    with together(accelerator):
        accelerator.save_state(str(scratch))
        own = [_random_states(accelerator, scratch)]
        if main:
            save_file(best, scratch / "best.safetensors")
            record = {"signature": signature, "progress": vars(progress)}
            (scratch / "progress.json").write_text(json.dumps(record) + "\n")
            own = list(scratch.iterdir())
        for path in own:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    with together(accelerator):
        if main:
            os.replace(scratch, final)
            for old in folder.glob("step_*"):
                if old != final:
                    shutil.rmtree(old)


def resume(accelerator: Accelerator, folder: Path, signature: dict[str, Any]) -> tuple[Progress, dict[str, Tensor]]:
    """Load the last state of the folder into what is prepared; gives progress and best weights, both empty without one.

    Raises `ValueError` (several processes: `AgreedError`) for a state of another signature.
    """
    with together(accelerator):
        steps = [int(path.name.removeprefix("step_")) for path in folder.glob("step_*")]
    (step,) = from_main(accelerator, [max(steps, default=-1)])
    if step < 0:
        return Progress(), {}
    state = folder / f"step_{step:09.0f}"
    with together(accelerator):
        record = json.loads((state / "progress.json").read_text())
        differing = [key for key in signature if record["signature"].get(key) != signature[key]]
        if differing:
            raise ValueError(
                f"{folder}: holds a run with other settings ({', '.join(differing)}); finish or delete it first"
            )
        if not _random_states(accelerator, state).is_file():  # accelerate would go on without
            raise FileNotFoundError(f"{_random_states(accelerator, state)}: not found")
        accelerator.load_state(str(state))
        best = load_file(state / "best.safetensors")
    return Progress(**record["progress"]), best


def _random_states(accelerator: Accelerator, folder: Path) -> Path:
    return folder / f"random_states_{accelerator.process_index}.pkl"
