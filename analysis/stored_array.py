"""An array that stays on disk and is read a few pictures at a time.

Takes a safetensors file and the name of an array in it, whose first axis is the image; gives blocks of it. Knows
nothing of what the numbers mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import safe_open


@dataclass(frozen=True)
class StoredArray:
    """``array[slice]`` or ``array[image, ...]`` reads these pictures and no others."""

    path: Path
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        with safe_open(self.path, framework="numpy") as file:
            return tuple(file.get_slice(self.key).get_shape())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        first, *rest = index if isinstance(index, tuple) else (index,)
        with safe_open(self.path, framework="numpy") as file:
            array = file.get_slice(self.key)
            size = array.get_shape()[0]
            if not isinstance(first, slice):
                row = range(size)[first]
                return array[row : row + 1][(0, *rest)]
            start, stop, step = first.indices(size)  # Python's slices may reach past the end, those of the file may not
            if step < 0:
                raise ValueError(f"{self.path}, {self.key}: expected pictures in rising order, got step {step}")
            block = array[start:stop] if start < stop else array[0:0]
        return block[(slice(None, None, step), *rest)]
