"""All pictures of a run at a glance: what is known of them without holding a single pixel.

Takes pictures, some at a time; gives labels, patch labels, region masks (a bit a pixel) and a digest of each picture,
and from these the pieces in which pictures are computed. A picture takes half a kilobyte, with masks 19. Knows no
model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.pictures import PIXEL_REGIONS, Pictures
from analysis.pixel_localization import pixel_masks
from analysis.score_files import Piece

PICTURES_PER_PIECE = 16


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks of :data:`~analysis.pictures.PIXEL_REGIONS`, a bit a pixel. ``masks[slice]`` gives coverage 0 or 1,
    float32 [image region row col]."""

    bits: NDArray[np.uint8]  # [image region byte]
    num_rows: int
    num_cols: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (*self.bits.shape[:2], self.num_rows, self.num_cols)

    def first(self, count: int) -> PackedMasks:
        """The masks of the first pictures."""
        return PackedMasks(self.bits[:count], self.num_rows, self.num_cols)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        flat = np.unpackbits(self.bits[rows], axis=-1, count=self.num_rows * self.num_cols)
        return flat.reshape(*flat.shape[:2], self.num_rows, self.num_cols).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Survey:
    """What is known of every picture. ``labels`` float64 [image target] in units; ``patch_labels`` uint8 [image row
    col] and ``masks``, None where no truth is given; ``picture_sha256`` of pixels, labels and number of each picture;
    ``baseline_sha256`` of the mean picture."""

    labels: NDArray[np.float64]
    patch_labels: NDArray[np.uint8] | None
    masks: PackedMasks | None
    picture_sha256: tuple[str, ...]
    baseline_sha256: str

    def __len__(self) -> int:
        return len(self.labels)

    def piece(self, rows: Sequence[int]) -> Piece:
        """These pictures as a piece; its digest is over them and the mean picture."""
        parts = [self.baseline_sha256, *(self.picture_sha256[row] for row in rows)]
        return Piece(tuple(rows), hashlib.sha256(" ".join(parts).encode()).hexdigest())

    def pieces(self, rows: Sequence[int] | None = None) -> tuple[Piece, ...]:
        """All pictures (or those of these numbers), in pieces of 16."""
        wanted = range(len(self)) if rows is None else rows
        return tuple(self.piece(piece) for piece in in_pieces(wanted))

    @property
    def sha256(self) -> str:
        """Over all pictures, their patch labels and the mean picture."""
        digest = hashlib.sha256(" ".join([self.baseline_sha256, *self.picture_sha256]).encode())
        digest.update(b"none" if self.patch_labels is None else np.ascontiguousarray(self.patch_labels).tobytes())
        return digest.hexdigest()


def in_pieces(rows: Sequence[int]) -> list[tuple[int, ...]]:
    """Numbers of pictures, 16 at a time."""
    return [tuple(rows[start : start + PICTURES_PER_PIECE]) for start in range(0, len(rows), PICTURES_PER_PIECE)]


def look_at(pictures: Pictures) -> Survey:
    """The survey of some pictures."""
    masks = None
    if pictures.masks is not None:
        coverage = np.stack([pictures.masks[name] for name in PIXEL_REGIONS], axis=1)
        found = pixel_masks(coverage, {name: (place,) for place, name in enumerate(PIXEL_REGIONS)})
        flat = np.stack([found[name] for name in PIXEL_REGIONS], axis=1).reshape(*coverage.shape[:2], -1)
        masks = PackedMasks(np.packbits(flat, axis=-1), *coverage.shape[2:])
    digests = [
        _sha256(pictures.images[place], pictures.labels[place], pictures.indices[place])
        for place in range(len(pictures.images))
    ]
    return Survey(pictures.labels, pictures.patch_labels, masks, tuple(digests), _sha256(pictures.mean_image))


def joined(parts: Sequence[Survey]) -> Survey:
    """The surveys of some pictures and of those that follow as one. ValueError unless they share a mean picture."""
    first = parts[0]
    if any(part.baseline_sha256 != first.baseline_sha256 for part in parts):
        raise ValueError("pictures: expected one mean picture, the processes have several (other versions or files?)")
    patch_labels, masks = None, None
    if first.patch_labels is not None:
        patch_labels = np.concatenate([part.patch_labels for part in parts if part.patch_labels is not None])
    if first.masks is not None:
        bits = np.concatenate([part.masks.bits for part in parts if part.masks is not None])
        masks = PackedMasks(bits, first.masks.num_rows, first.masks.num_cols)
    return Survey(
        np.concatenate([part.labels for part in parts]),
        patch_labels,
        masks,
        tuple(digest for part in parts for digest in part.picture_sha256),
        first.baseline_sha256,
    )


def _sha256(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
