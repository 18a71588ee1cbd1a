"""The pictures that go with a picture: donors from the reference pictures, and its counterfactual.

Takes a :class:`~analysis.pictures.PictureSource` and numbers of pictures; gives uint8 pictures. Which donors a picture
has depends on the seed and its number alone, never on the run it is part of. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.pictures import PictureSource

NUM_DONORS = 4


def donor_rows(source: PictureSource, row: int, seed: int) -> NDArray[np.int64]:
    """Numbers of the reference pictures that give their contexts to picture ``row``, ``[donor]``.

    Drawn without replacement by ``default_rng([seed, 3, row])``; a picture that is a reference picture itself is never
    its own donor. ValueError where there are too few reference pictures.
    """
    candidates = np.arange(source.num_references)
    if source.references_are_own:
        candidates = candidates[candidates != row]
    if len(candidates) < NUM_DONORS:
        raise ValueError(f"donors: expected at least {NUM_DONORS} other pictures to draw from, got {len(candidates)}")
    return np.random.default_rng([seed, 3, row]).choice(candidates, NUM_DONORS, replace=False)


def donor_images(source: PictureSource, rows: Sequence[int], seed: int) -> NDArray[np.uint8]:
    """The donors of some pictures, ``[image donor row col 3]``."""
    wanted = [donor_rows(source, row, seed).tolist() for row in rows]
    return np.stack([reference_images(source, donors) for donors in wanted])


def reference_images(source: PictureSource, rows: Sequence[int]) -> NDArray[np.uint8]:
    """Some reference pictures, ``[image row col 3]``; ValueError where there are none."""
    if source.reference is None:
        raise ValueError("reference pictures: expected a source of pictures that has some")
    return source.reference(rows)


def counterfactual_images(source: PictureSource, rows: Sequence[int]) -> NDArray[np.uint8]:
    """The same pictures without the thing to be read, ``[image row col 3]``; ValueError where nobody knows them."""
    if source.counterfactual is None:
        raise ValueError(
            "counterfactual: expected synthetic pictures, those of a folder have no twin without the thing to be read"
        )
    return source.counterfactual(rows)
