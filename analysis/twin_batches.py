"""The twins of a batch: the same pictures after one edit, as the model takes them.

Takes a model, a source of pictures that have twins, a batch and an edit; gives the batch of those twins that there
are. Knows no head and no method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.models import OpenedModel, preprocessed
from analysis.pictures import SCORED_REGIONS, PictureSource, Twin
from attribution.batch import Batch
from data_synth.twins import Edit


@dataclass(frozen=True, eq=False)
class TwinBatch:
    """``places`` in the original batch of the pictures that show the thing; ``batch``, their twins, with labels and
    numbers of the originals; their ``images`` uint8 [image row col 3] and ``patch_labels`` uint8 [image row col]."""

    places: tuple[int, ...]
    batch: Batch
    images: NDArray[np.uint8]
    patch_labels: NDArray[np.uint8]


def twin_batch(opened: OpenedModel, source: PictureSource, batch: Batch, edit: Edit) -> TwinBatch | None:
    """The twins of those pictures of a batch that show the thing; None where none does, or where there are no twins."""
    if source.twin is None:
        return None
    found: dict[int, Twin] = {}
    for place, row in enumerate(batch.indices.tolist()):
        twin = source.twin(edit, row)
        if twin is not None:
            found[place] = twin
    if not found:
        return None
    images = np.stack([twin.image for twin in found.values()])
    twins = replace(batch.select(list(found)), pixel_values=preprocessed(opened, images))
    return TwinBatch(tuple(found), twins, images, np.stack([twin.patch_labels for twin in found.values()]))


def irrelevant(source: PictureSource, items: Sequence[str]) -> tuple[str, ...]:
    """Those of some regions that tell nothing of what is to be read off these pictures."""
    return tuple(item for item in items if not set(SCORED_REGIONS[item]) & set(source.answer_regions))


def spread(values: NDArray[np.floating], places: tuple[int, ...], count: int) -> NDArray[np.float64]:
    """Values of some pictures `[shown ...]` as values of all, `[image ...]`, NaN for the others."""
    full = np.full((count, *values.shape[1:]), np.nan)
    full[list(places)] = values
    return full
