"""Out of memory: half as many pictures at a time, and a word about it.

Takes a function of a batch and the number of pictures in one pass; gives what it gives for all pictures. What one
piece learns is remembered for the next. Knows no method.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm import tqdm

from analysis.score_files import Arrays
from attribution.batch import Batch


@dataclass
class BatchSize:
    """The most pictures in one pass; it only ever becomes smaller."""

    pictures: int


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the device or of the host, did not suffice."""
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or (isinstance(error, RuntimeError) and "not enough memory" in str(error))
        or (isinstance(error, RuntimeError) and should_reduce_batch_size(error))
    )


def compute_fitting(
    compute: Callable[[Batch, int], dict[str, Arrays]], batch: Batch, size: BatchSize, name: str
) -> dict[str, Arrays]:
    """``compute(part, pictures in one pass)`` for all pictures, at most ``size.pictures`` at a time.

    Gives arrays by two names, joined along their first axis. Where memory does not suffice the size is halved and the
    whole batch computed again, with a warning on stderr; OSError where it does not suffice for a single picture.
    """
    while True:
        try:
            found = [compute(part, size.pictures) for part in batch.chunks(size.pictures)]
            return {
                outer: {key: np.concatenate([part[outer][key] for part in found]) for key in arrays}
                for outer, arrays in found[0].items()
            }
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        # Outside the handler: what the failed pass held is free by now.
        if size.pictures == 1:
            raise OSError(f"{name}: not enough memory for one picture at a time ({reason})")
        size.pictures //= 2
        clear_device_cache(garbage_collection=True)
        tqdm.write(f"warning: {name}: out of memory, going on with {size.pictures} pictures at a time", file=sys.stderr)
