"""What stands in for every head with least harm: its optimal context, fitted on reference pictures once for a model.

Takes a loaded model and a source of pictures; gives the contexts, which are kept in the cache. The last
:data:`NUM_JUDGED` reference pictures judge what the others were fitted to. Knows no truth and no method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache

import torch
from torch import Tensor

from analysis.checked_arrays import read_checked, write_checked
from analysis.companions import reference_images
from analysis.mean_contexts import REFERENCES_AT_ONCE, held_context, made_of
from analysis.models import OpenedModel, preprocessed
from analysis.pictures import PictureSource
from attribution.batch import Batch
from attribution.optimal import RIDGES, optimal_context
from attribution.packaged import cache_folder

NUM_JUDGED = 32
NUM_CANDIDATES = 2 + 2 * len(RIDGES)
LEAST_REFERENCES = 2 * NUM_JUDGED


def lacks_for_optimal(source: PictureSource) -> str:
    """Why no optimal context can be fitted for these pictures; empty where it can."""
    if source.reference is None or source.reference_labels is None:
        return "optimal needs reference pictures with labels, there are none"
    if source.references_are_own:
        return "optimal needs reference pictures beside those explained, a folder has its own alone"
    if source.num_references < LEAST_REFERENCES:
        return f"optimal needs at least {LEAST_REFERENCES} reference pictures, got {source.num_references}"
    return ""


def optimal_forwards(sweep: float, num_targets: int, num_references: int, backward_cost: float) -> float:
    """Forward passes that fitting costs, for a sweep of so many: the mean, one pass with gradients, and the judging."""
    fitted = num_references - NUM_JUDGED
    return num_references + fitted * (1 + num_targets * backward_cost) + NUM_CANDIDATES * NUM_JUDGED * sweep


@lru_cache(maxsize=2)
def held_optimal(opened: OpenedModel, source: PictureSource) -> Tensor:
    """The optimal context of every head `[layer token head head_dim]` float64: computed once, then cached.

    Raises ValueError where the source has no reference pictures to fit it to (`lacks_for_optimal`).
    """
    why = lacks_for_optimal(source)
    if why:
        raise ValueError(f"truths: {why}")
    digest = made_of(opened, source, (optimal_context, source.reference_labels))
    path = cache_folder() / f"optimal-context-{digest}.safetensors"
    stored = read_checked(path)
    if stored is not None:
        return torch.from_numpy(stored["optimal_context"])
    first_judged = source.num_references - NUM_JUDGED
    found = optimal_context(
        opened.model,
        _batches(opened, source, range(first_judged)),
        list(_batches(opened, source, range(first_judged, source.num_references))),
        held_context(opened, source),
        batch_size=REFERENCES_AT_ONCE,
    ).context
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checked(path, {"optimal_context": found.cpu().numpy()})
    return found


def _batches(opened: OpenedModel, source: PictureSource, rows: Sequence[int]) -> Iterator[Batch]:
    assert source.reference_labels is not None
    for start in range(0, len(rows), REFERENCES_AT_ONCE):
        lot = rows[start : start + REFERENCES_AT_ONCE]
        pixel_values = preprocessed(opened, reference_images(source, lot))
        labels = opened.model.standardise(source.reference_labels(lot)).to(pixel_values)
        yield Batch(pixel_values, labels, torch.tensor(list(lot)), pixel_values.mean(0))
