"""The states of a training that was not yet done: written so that a kill at any instant loses none, and read again.

Takes an `Accelerator` with model and optimizer prepared, the `Progress` and the best weights so far; gives them back.
One state is one folder `step_<number>`, under that name only when every process has written its part:

    model.safetensors  optimizer.bin  random_states_<process>.pkl   accelerate's own
    best.safetensors  progress.json                         the latter with the sha256 of all others, and its own

Beside it `run.json` says whose folder it is, and by what name the state is known that is being written. A folder that
is none of these is of others and stays. The main process writes all but the random states of the others, so all
must see the same folder. A state is read by as many processes as wrote it, for each goes on from its own random state.
Does not know how the model is trained.
"""

import hashlib
import json
import math
import os
import re
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.other import load
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.atomic_writing import is_temporary, remove_temporaries, write_atomically
from attribution.own_folder import read_record
from attribution.packaged import sha256_of_file
from attribution.processes import from_main, together

RUN_FILE, PROGRESS_FILE = "run.json", "progress.json"
UNFINISHED = re.compile(r"unfinished_[0-9a-f]{32}")


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
    """Raise `ValueError` for a folder that holds something and is not of a fine-tuning, or a state that is of none."""
    if not os.path.lexists(folder):
        return
    if folder.is_dir() and all(is_temporary(path, [RUN_FILE]) for path in folder.iterdir()):
        return  # empty, or a run was killed while it began
    if not folder.is_dir() or not (read_run(folder) or any(map(_record_of, _states(folder)))):
        raise ValueError(f"{folder}: not of a fine-tuning; choose another --output-dir, or move it away")
    if os.path.lexists(folder / RUN_FILE) and not read_run(folder):
        raise ValueError(f"{folder / RUN_FILE}: not of a fine-tuning; move it away")
    for state in _states(folder):
        if not state.is_dir() or (not os.path.lexists(state / PROGRESS_FILE) and any(state.iterdir())):
            raise ValueError(f"{state}: not of a fine-tuning; move it away")


def begin_states(folder: Path, settings: dict[str, Any], pictures: list[str]) -> None:
    """Make the folder, with settings and digests of pictures, by which a run that only had to tidy up is known."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder, [RUN_FILE])
    _remove_unfinished(folder)
    record = {"settings": settings, "pictures": pictures, "unfinished": f"unfinished_{secrets.token_hex(16)}"}
    write_atomically(folder / RUN_FILE, (json.dumps(record) + "\n").encode())


def read_run(folder: Path) -> dict[str, Any]:
    """What `begin_states` wrote: `settings`, `pictures` and `unfinished`; empty where there is nothing of the kind."""
    found = read_record(folder / RUN_FILE)
    name = found.get("unfinished")
    is_own = isinstance(name, str) and UNFINISHED.fullmatch(name) and isinstance(found.get("settings"), dict)
    return found if is_own else {}


def remove_states(folder: Path) -> None:
    """Take out the states of a training that is done; what else lies in the folder stays, and the folder then too."""
    for path in _states(folder):
        _remove_state(path)
    _remove_unfinished(folder)
    with suppress(OSError):
        if read_run(folder):
            (folder / RUN_FILE).unlink()
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
    main = accelerator.is_main_process
    with together(accelerator):
        scratch = folder / read_run(folder).get(
            "unfinished", "unfinished"
        )  # the latter if someone has emptied the folder
        final = folder / f"step_{progress.step:09d}"
        if main:
            _remove_unfinished(folder)
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
            record: dict[str, Any] = {"signature": signature, "progress": vars(progress), "files": files}
            record["sha256"] = record_sha256(record)
            write_atomically(scratch / PROGRESS_FILE, (json.dumps(record) + "\n").encode())
            os.replace(scratch, final)
            for old in _states(folder):
                if old != final:
                    _remove_state(old)


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
    delete = f"delete the folder {folder} to begin anew"
    with together(accelerator):
        record = _record_of(state)
        if not record:
            raise ValueError(f"{state / PROGRESS_FILE}: not readable as what a training had reached; {delete}")
        wrong = _wrong_progress(record["progress"], int(step))
        if wrong:
            raise ValueError(f"{state / PROGRESS_FILE}: {wrong}; {delete}")
        differing = [key for key in signature if record["signature"].get(key) != signature[key]]
        if differing:
            raise ValueError(
                f"{folder}: holds a run with other settings ({', '.join(differing)}); finish or delete it first"
            )
        # accelerate would go on without random states that are missing or that it cannot read
        for name, sha256 in {_random_states(accelerator, state).name: "", **record["files"]}.items():
            if not (state / name).is_file():
                raise FileNotFoundError(f"{state / name}: not found; {delete}")
            if sha256_of_file(state / name) != sha256:
                raise ValueError(f"{state / name}: changed since it was written; {delete}")
        try:
            accelerator.load_state(str(state))
            best = load_file(state / "best.safetensors")
            drawn_from = load(_random_states(accelerator, state))["torch_manual_seed"]
            progress = Progress(**record["progress"])
        except Exception as error:  # what is damaged may break the loaders anywhere
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{state}: cannot be read by these versions of torch and accelerate ({reason}); {delete}"
            ) from error
        if not torch.equal(drawn_from, torch.get_rng_state()):
            raise ValueError(f"{_random_states(accelerator, state)}: accelerate did not take it; {delete}")
    return progress, best


def record_sha256(record: dict[str, Any]) -> str:
    """Digest of all that progress.json says, but for the digest itself."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _states(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("step_*")) if re.fullmatch(r"step_[0-9]{9}", path.name)]


def _record_of(state: Path) -> dict[str, Any]:
    """What progress.json says; empty where it is not what `save_state` writes, to the letter."""
    found = read_record(state / PROGRESS_FILE)
    if not all(isinstance(found.get(name), dict) for name in ("signature", "progress", "files")):
        return {}
    try:
        if found.get("sha256") != record_sha256(found):
            return {}
    except RecursionError:  # what can just be read cannot always be written
        return {}
    plain = all(isinstance(sha256, str) and Path(name).name == name for name, sha256 in found["files"].items())
    return found if plain else {}


def _wrong_progress(found: dict[str, Any], step: int) -> str:
    """What is wrong with the record of a `Progress` that had come to this step; empty if nothing is."""
    whole, numbers = ("step", "best_step"), ("elapsed_s", "learning_rate", "best_mse")
    expected = {item.name for item in fields(Progress)}
    if found.keys() != expected:
        return f"expected {', '.join(sorted(expected))}, got {', '.join(sorted(found))}"
    for name in whole:
        if type(found[name]) is not int:
            return f"{name}: expected a whole number, got {found[name]!r}"
    for name in numbers:
        # no error is the best before the first validation
        if not _is_number(found[name]) and not (name == "best_mse" and found[name] == math.inf):
            return f"{name}: expected a number of at least 0, got {found[name]!r}"
    if found["step"] != step:
        return f"step: expected {step} as the folder says, got {found['step']}"
    if not -1 <= found["best_step"] <= step or (found["best_step"] == -1) != (found["best_mse"] == math.inf):
        return f"best_step: expected one up to {step} with its best_mse, got {found['best_step']}"
    if not isinstance(found["recent"], list) or not all(map(_is_number, found["recent"])):
        return "recent: expected a list of losses"
    rows = found["rows"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        return "rows: expected a list of validations"
    if not all(_is_number(value, -math.inf) for row in rows for value in row.values()):
        return "rows: expected numbers alone"
    return ""


def _is_number(value: Any, least: float = 0) -> bool:
    return type(value) in (int, float) and least <= value < math.inf and value != -math.inf


def _remove_state(state: Path) -> None:
    """Take out what `save_state` wrote there; anything else stays, and the folder then too."""
    record = _record_of(state)
    with suppress(OSError):
        for name in (*record["files"], PROGRESS_FILE) if record else ():  # what names the others goes last
            (state / name).unlink(missing_ok=True)
        state.rmdir()


def _remove_unfinished(folder: Path) -> None:
    """Take out the state that was being written when a run was killed: nobody else can have chosen its name."""
    name = read_run(folder).get("unfinished")
    if name is not None:
        shutil.rmtree(folder / name, ignore_errors=True)


def _random_states(accelerator: Accelerator, folder: Path) -> Path:
    return folder / f"random_states_{accelerator.process_index}.pkl"
