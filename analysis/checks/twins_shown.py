"""A few pictures with their twins and the attention of every head on them: what a person looks at beside the numbers.

Takes pictures that have twins; gives one pass over the first few. Makes no table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.models import OpenedModel
from analysis.passes import Pass, first_rows
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.twin_batches import twin_batch
from attribution.batch import Batch
from attribution.heads import attention_maps
from data_synth.twins import Edit

NAME = "check_twins_shown"
INTACT = "intact"
PICTURES = 6
PARTS = ("image", "labels", "map")


def shown_pass(opened: OpenedModel, source: PictureSource, edits: Sequence[Edit]) -> Pass:
    """``<edit>|image`` uint8 [image row col 3], ``<edit>|labels`` uint8 [image row col] (of patches), ``<edit>|map``
    float32 [image layer head row col] (CLS), of the first pictures; zero where the picture does not show the thing. The
    pictures themselves stand under ``intact``."""

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        pictures = source.draw(batch.indices.tolist())
        assert pictures.patch_labels is not None
        maps = attention_maps(opened.model, batch.pixel_values, ("cls",), batch_size=batch_size).cls
        intact = (pictures.images, pictures.patch_labels, maps.float().cpu().numpy())
        found: Arrays = {f"{INTACT}|{part}": values for part, values in zip(PARTS, intact, strict=True)}
        for edit in edits:
            twins = twin_batch(opened, source, batch, edit)
            arrays = [np.zeros_like(values) for values in intact]
            if twins is not None:
                places = list(twins.places)
                after = attention_maps(opened.model, twins.batch.pixel_values, ("cls",), batch_size=batch_size).cls
                for values, new in zip(arrays, (twins.images, twins.patch_labels, after.float().cpu()), strict=True):
                    values[places] = np.asarray(new)
            found |= {f"{edit}|{part}": values for part, values in zip(PARTS, arrays, strict=True)}
        return {NAME: found}

    rows = first_rows(PICTURES, source.count)
    depends_on = {"edits": [str(edit) for edit in edits]}
    return Pass(NAME, {NAME: depends_on}, compute, 1.0 + len(edits), rows=rows)
