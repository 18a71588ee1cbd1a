"""The states of a training that was not yet done: written so that a kill at any instant loses none, and read again.

Takes an `Accelerator` with model and optimizer prepared, the `Progress` and the best weights so far; gives them back.
One state is one folder `step_<number>`, under that name only when every process has written its part:

    model.safetensors  optimizer.bin  random_states_<process>.pkl   accelerate's own
    best.safetensors  progress.json                         the latter with the sha256 of all others

Beside it `run.json` says whose folder it is. The main process writes all but the random states of the others, so all
must see the same folder. A state is read by as many processes as wrote it, for each goes on from its own random state.
Does not know how the model is trained.
"""

import json
import math
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.other import load
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.atomic_writing import is_temporary, remove_temporaries, write_atomically
from attribution.packaged import sha256_of_file
from attribution.processes import from_main, together

RUN_FILE, UNFINISHED = "run.json", "unfinished"
DELETE = "delete this folder to begin anew"


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


def require_own_states(folder: Path) -> None:
    """Raise `ValueError` for a folder that holds something and is not of a fine-tuning."""
    if not os.path.lexists(folder):
        return
    if folder.is_dir() and all(is_temporary(path, [RUN_FILE]) for path in folder.iterdir()):
        return  # empty, or a run was killed while it began
    if not folder.is_dir() or not (read_settings(folder) or any(map(_record_of, _states(folder)))):
        raise ValueError(f"{folder}: not of a fine-tuning; choose another --output-dir, or move it away")


def begin_states(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, with the settings by which a run that only had to tidy up is known."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder, [RUN_FILE])
    write_atomically(folder / RUN_FILE, (json.dumps({"settings": settings}) + "\n").encode())


def read_settings(folder: Path) -> dict[str, Any]:
    """What `begin_states` was given; empty where there is nothing of the kind."""
    try:
        found = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def remove_states(folder: Path) -> None:
    """Take out the states of a training that is done; what else lies in the folder stays, and the folder then too."""
    for path in (*_states(folder), folder / UNFINISHED):
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        (folder / RUN_FILE).unlink(missing_ok=True)
        folder.rmdir()


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
    scratch, final = folder / UNFINISHED, folder / f"step_{progress.step:09d}"
    main = accelerator.is_main_process
    with together(accelerator):
        if main:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
    with together(accelerator):
        try:
            accelerator.save_state(str(scratch))
            if main:
                save_file(best, scratch / "best.safetensors")
        except (SafetensorError, RuntimeError) as error:  # how they say that a disk is full
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise OSError(f"{scratch}: the state of the training cannot be written ({reason})") from error
        for path in scratch.iterdir() if main else [_random_states(accelerator, scratch)]:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    with together(accelerator):
        if main:
            files = {path.name: sha256_of_file(path) for path in sorted(scratch.iterdir())}
            record = {"signature": signature, "progress": vars(progress), "files": files}
            write_atomically(scratch / "progress.json", (json.dumps(record) + "\n").encode())
            os.replace(scratch, final)
            for old in _states(folder):
                if old != final:
                    shutil.rmtree(old)


def resume(accelerator: Accelerator, folder: Path, signature: dict[str, Any]) -> tuple[Progress, dict[str, Tensor]]:
    """Load the last state of the folder into what is prepared; gives progress and best weights, both empty without one.

    Raises `ValueError` (several processes: `AgreedError`) for a state of another signature, or one that is not whole.
    """
    with together(accelerator):
        steps = [int(path.name.removeprefix("step_")) for path in _states(folder)]
    (step,) = from_main(accelerator, [max(steps, default=-1)])
    if step < 0:
        return Progress(), {}
    state = folder / f"step_{step:09.0f}"
    with together(accelerator):
        record = _record_of(state)
        if not record:
            raise ValueError(f"{state / 'progress.json'}: not readable as what a training had reached; {DELETE}")
        differing = [key for key in signature if record["signature"].get(key) != signature[key]]
        if differing:
            raise ValueError(
                f"{folder}: holds a run with other settings ({', '.join(differing)}); finish or delete it first"
            )
        # accelerate would go on without random states that are missing or that it cannot read
        for name, sha256 in {_random_states(accelerator, state).name: "", **record["files"]}.items():
            if not (state / name).is_file():
                raise FileNotFoundError(f"{state / name}: not found; {DELETE}")
            if sha256_of_file(state / name) != sha256:
                raise ValueError(f"{state / name}: changed since it was written; {DELETE}")
        try:
            accelerator.load_state(str(state))
            best = load_file(state / "best.safetensors")
            drawn_from = load(_random_states(accelerator, state))["torch_manual_seed"]
            progress = Progress(**record["progress"])
        except Exception as error:  # what is damaged may break the loaders anywhere
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{state}: cannot be read by these versions of torch and accelerate ({reason})") from error
        if not torch.equal(drawn_from, torch.get_rng_state()):
            raise ValueError(f"{_random_states(accelerator, state)}: accelerate did not take it; {DELETE}")
    return progress, best


def _states(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("step_*")) if re.fullmatch(r"step_\d{9}", path.name)]


def _record_of(state: Path) -> dict[str, Any]:
    """What progress.json says; empty where it is not what `save_state` writes."""
    try:
        found = json.loads((state / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    # States of an earlier make name no files: their signature is another anyway.
    whole = isinstance(found, dict) and all(isinstance(found.get(name), dict) for name in ("signature", "progress"))
    return {"files": {}} | found if whole else {}


def _random_states(accelerator: Accelerator, folder: Path) -> Path:
    return folder / f"random_states_{accelerator.process_index}.pkl"
