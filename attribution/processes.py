"""Processes that work on one thing together: how they start, what they tell each other, how they end.

Takes what torchrun or accelerate put into the environment (RANK, WORLD_SIZE, LOCAL_WORLD_SIZE), gives an `Accelerator`
and the few exchanges a training needs; with one process nothing is exchanged. Does not know what is worked on.

An error that only one process meets must reach all, else the others wait for it: `together` sees to that. What all
processes know alike is an `AgreedError`: the main process alone prints it, and every process ends with the same code.
"""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, broadcast, gather_object
from torch import Tensor

KINDS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class AgreedError(ValueError):
    """An error that every process raises at the same place."""


def processes_launched() -> int:
    """How many processes were launched for this work, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_number() -> int:
    """Which of them this one is; 0 is the main process."""
    return int(os.environ.get("RANK", "0"))


def start(on_cpu: bool, mixed_precision: str) -> Accelerator:
    """The accelerator of this process, which sees all processes that were launched; else `AgreedError`."""
    local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if not on_cpu and local > max(gpus, 1):
        raise AgreedError(f"{local} processes for {gpus} GPUs: expected at most one for each")
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=on_cpu)
    if accelerator.num_processes != processes_launched():
        raise AgreedError(
            f"{processes_launched()} processes were launched, but accelerate sees {accelerator.num_processes}"
        )
    if accelerator.distributed_type not in KINDS:
        raise AgreedError(
            f"accelerate is set up for {accelerator.distributed_type.value}, expected whole copies of the model "
            "on CPUs or CUDA GPUs"
        )
    return accelerator


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """Where the block raises `ValueError` or `OSError` in any process, every process raises `AgreedError`.

    All processes must come to the block; nothing may be exchanged inside it.
    """
    if accelerator.num_processes == 1:
        yield
        return
    text = ""
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error) or type(error).__name__
    failures = accelerator.reduce(torch.tensor(float(text != ""), device=accelerator.device), "sum")
    if float(failures) > 0:
        texts = gather_object([text])
        number = next(number for number, found in enumerate(texts) if found)
        raise AgreedError(f"process {number}: {texts[number]}" if number else texts[number])


def require_same(accelerator: Accelerator, facts: dict[str, Any]) -> None:
    """Raise `AgreedError` naming the first process whose facts are not those of the main process."""
    if accelerator.num_processes == 1:
        return
    first, *others = gather_object([facts])
    for number, other in enumerate(others, 1):
        differing = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
        if differing:
            raise AgreedError(f"process {number} differs from process 0 in {', '.join(differing)}; expected the same")


def from_main(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """The numbers of the main process, in every process."""
    if accelerator.num_processes == 1:
        return list(values)
    return broadcast(torch.tensor(values, dtype=torch.float64, device=accelerator.device)).tolist()


def mean_over_processes(accelerator: Accelerator, value: Tensor) -> float:
    """The mean of one number per process, the same in all."""
    return float(value if accelerator.num_processes == 1 else accelerator.reduce(value, "mean"))


def share(accelerator: Accelerator, count: int) -> range:
    """Which of `count` things this process takes: one stretch, so that the shares in order are all of them."""
    bounds = [count * number // accelerator.num_processes for number in range(accelerator.num_processes + 1)]
    return range(bounds[accelerator.process_index], bounds[accelerator.process_index + 1])


def joined(accelerator: Accelerator, part: np.ndarray) -> np.ndarray:
    """The shares of all processes in order, along the first axis, in every process."""
    return part if accelerator.num_processes == 1 else np.concatenate(gather_object([part]))


@contextmanager
def alike() -> Iterator[None]:
    """For what every process does alike before it sees the others: the main process alone prints, errors are agreed."""
    spoken = io.StringIO()
    try:
        if process_number() == 0:
            yield
        else:
            with redirect_stdout(spoken), redirect_stderr(spoken):
                yield
    except ValueError as error:
        raise AgreedError(str(error)) from error
    except SystemExit as stop:
        if stop.code:
            end()
        raise


def tell(error: Exception) -> None:
    """Print the error in one line: once where it is agreed, else with the number of the process that met it."""
    line = " ".join(str(error).split())
    agreed = isinstance(error, AgreedError)
    if processes_launched() == 1 or (agreed and process_number() == 0):
        print(f"error: {line}", file=sys.stderr)
    elif not agreed:
        print(f"error: process {process_number()}: {line}", file=sys.stderr)
    if agreed:
        end()


def end() -> None:
    """Wait for all processes, then part: a launcher kills the others when the first one ends with an error."""
    if processes_launched() > 1:
        sys.stderr.flush()
        state = PartialState(cpu=True, timeout=timedelta(minutes=5))  # the group there is, or one on the CPU
        state.wait_for_everyone()
        state.destroy_process_group()
