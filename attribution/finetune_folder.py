"""The output folder of a fine-tuning: whose it is, who works in it, and when it is finished.

Takes the folder and the settings of a run; refuses what others have put there, and a second run beside the first. Does
not train and writes no model.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attribution.checkpoint import CONFIG_FILE, MODEL_FILES, load_pretrained
from attribution.finetune_settings import FinetuneSettings
from attribution.folder_lock import only_run
from attribution.own_folder import Filling, forget_killed_run, require_free
from attribution.training_log import LOG_FILES
from attribution.training_state import read_run, remove_states, require_own_states

STATES = "resume"
FILLING = Filling("attribution.finetune", (*MODEL_FILES, *LOG_FILES), CONFIG_FILE)


def shaping(settings: FinetuneSettings) -> dict[str, Any]:
    """The settings that shape the result."""
    left_out = ("workers", "save_every_min", "output_dir")
    return {name: value for name, value in asdict(settings).items() if name not in left_out}


@contextmanager
def own_output(output: Path) -> Iterator[None]:
    """The output folder, made and held: refused where it holds files of others or another run is under way in it."""
    is_new = not output.is_dir()
    if not (output / CONFIG_FILE).exists():
        require_free(output, FILLING)
        require_own_states(output / STATES)
    output.mkdir(parents=True, exist_ok=True)
    try:
        with only_run(output):
            yield
    finally:
        if is_new:
            with suppress(OSError):
                output.rmdir()  # if nothing has come into it


def only_to_be_tidied(output: Path, settings: FinetuneSettings, pictures: Callable[[], list[str]]) -> bool:
    """Whether the folder holds the model of these settings and of pictures of these digests, by a run that was killed
    before it had removed its states: they go now. `ValueError` where it holds a finished model otherwise."""
    if not (output / CONFIG_FILE).exists():
        return False
    run = read_run(output / STATES)
    if run.get("settings") != json.loads(json.dumps(shaping(settings))):
        raise ValueError(f"--output-dir: {output} holds a finished model, choose another folder")
    if run.get("pictures") != pictures():
        raise ValueError(f"--output-dir: {output} holds a finished model of other pictures, choose another folder")
    load_pretrained(output)
    remove_states(output / STATES)
    forget_killed_run(output, FILLING)
    return True
