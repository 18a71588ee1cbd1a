"""What is to be read off the pictures of each preset, and which regions of them tell it.

Takes a preset; gives its :class:`Task`: names and units of its labels, the thing that is read and the regions it is
read from. Draws nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from .chirp import Preset, check_preset


@dataclass(frozen=True)
class Task:
    """What a picture is asked. ``target_names`` and ``target_units`` are those of its labels ("" = no unit).

    ``answer`` is the thing to be read, as :func:`~data_synth.twins.without` takes it: the twin without it says nothing
    of the labels. ``answer_regions`` are the regions of the masks that tell them. The colour bar is read off the bar
    and its tick labels; its label goes with it in the twin but tells nothing, and its tick lines are ``frame``, as all
    tick lines are.
    """

    target_names: tuple[str, ...]
    target_units: tuple[str, ...]
    answer: str
    answer_regions: tuple[str, ...]


CHIRP_TASK = Task(("start_time_s", "start_freq_hz", "end_freq_hz"), ("s", "Hz", "Hz"), "chirp", ("chirp",))
COLORBAR_TASK = Task(("colorbar_max",), ("",), "colorbar", ("colorbar", "colorbar_ticks"))
_TASKS: dict[Preset, Task] = {"default": CHIRP_TASK, "published": CHIRP_TASK, "colorbar": COLORBAR_TASK}


def task_of(preset: Preset) -> Task:
    """The task of a preset. Raises ValueError for an unknown one."""
    check_preset(preset)
    return _TASKS[preset]
