"""Toy pictures with twins, and a vision transformer wired by hand to look at parts of them.

A picture of 32 x 32 pixels has 8 x 8 patches of one colour each: chirp red, text green, colour bar blue, else black.
Chirp and text stand somewhere else in every picture; the bar stands at the top left in six of seven.

The transformer has one layer of four heads: under every query one looks at what is red, one at what is green, one at
the top left corner whatever is there, and one everywhere.
"""

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model

from analysis.models import OpenedModel
from analysis.pictures import Pictures, PictureSource, Twin
from attribution.vit import RegressorConfig, ViTRegressor, attention_modules
from data_synth import REGIONS
from data_synth.twins import Edit

GRID, PATCH = 8, 4
COUNT = 28
COLOURS = {"chirp": 0, "title": 1, "colorbar": 2}  # text is a title
CORNER = [(0, 0), (0, 1), (1, 0), (1, 1)]
HEADS = {"chirp": 0, "text": 1, "position": 2, "everywhere": 3}
STRENGTH = 60.0


def places_of(row):
    """Patches of each thing of a picture, all different."""
    rng = np.random.default_rng([7, row])
    free = [(r, c) for r in range(GRID) for c in range(GRID) if r > 1 or c > 1]
    drawn = [free[place] for place in rng.permutation(len(free))[:14]]
    bar = CORNER if row % 7 else drawn[10:14]
    return {"chirp": drawn[:5], "title": drawn[5:10], "colorbar": bar}, drawn


def edited_places(edit: Edit, row):
    """The things of a picture after an edit, and where there is a grey box."""
    things, drawn = places_of(row)
    rng = np.random.default_rng([8, row])
    taken = {place for group in things.values() for place in group} | set(drawn) | set(CORNER)
    free = [(r, c) for r in range(GRID) for c in range(GRID) if (r, c) not in taken]
    free = [free[place] for place in rng.permutation(len(free))]
    region = {"text": "title"}.get(edit.region, edit.region)
    if edit.kind == "chirp_elsewhere":
        return things | {"chirp": free[:5]}, []
    if edit.kind == "without":
        return things | {region: []}, []
    if edit.kind == "move":
        return things | {region: free[: len(things[region])]}, []
    if edit.kind == "grey":
        return things, things[region]
    return things, []  # other text in the same place looks the same


def draw_picture(things, grey=()):
    """Picture uint8 [row col 3] and patch labels uint8 [row col]."""
    cells = np.zeros((GRID, GRID, 3), dtype=np.uint8)
    labels = np.full((GRID, GRID), REGIONS.index("margin"), dtype=np.uint8)
    for name, places in things.items():
        for place in places:
            cells[place][COLOURS[name]] = 255
            labels[place] = REGIONS.index(name)
    for place in grey:
        cells[place] = 40
    return cells.repeat(PATCH, axis=0).repeat(PATCH, axis=1), labels


def toy_source(count=COUNT):
    """The pictures with their patch labels and twins; labels are where the chirp begins."""

    def draw(rows):
        rows = list(rows)
        drawn = [draw_picture(places_of(row)[0]) for row in rows]
        labels = np.array([places_of(row)[0]["chirp"][0] for row in rows], dtype=np.float64)
        images, patches = np.stack([image for image, _ in drawn]), np.stack([patch for _, patch in drawn])
        mean = np.full((GRID * PATCH, GRID * PATCH, 3), 20.0)
        return Pictures(images, labels, np.array(rows), patches, None, mean_image=mean)

    def twin(edit, row):
        if {"text": "title"}.get(edit.region, edit.region) not in COLOURS:
            return None
        return Twin(*draw_picture(*edited_places(edit, row)))

    return PictureSource(count, draw, {}, twin=twin, answer_regions=("chirp",))


def toy_model(dtype=torch.float64):
    """The wired transformer, as a model that a run has opened."""
    size = 4 * len(HEADS)
    backbone = Dinov2Model(
        Dinov2Config(
            hidden_size=size,
            num_hidden_layers=1,
            num_attention_heads=len(HEADS),
            mlp_ratio=1,
            image_size=GRID * PATCH,
            patch_size=PATCH,
        )
    )
    backbone.set_attn_implementation("eager")
    config = RegressorConfig(("row", "col"), ("", ""), (4.0, 4.0), (2.0, 2.0), image_size=GRID * PATCH)
    model = ViTRegressor(backbone, config).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if ("norm" in name and name.endswith("weight")) or "lambda" in name else 0.0)
        # Channels 0 and 1 carry red and green beyond blue, so that grey and blue are nobody's; 2 the place.
        patch = backbone.embeddings.patch_embeddings.projection.weight
        for channel in (0, 1):
            patch[channel, channel], patch[channel, 2] = 1 / PATCH**2, -1 / PATCH**2
        positions = backbone.embeddings.position_embeddings
        positions[:, :, size - 1], positions[:, :, size - 2] = 9.0, -9.0  # so that normalisation hardly matters
        for row, col in CORNER:
            positions[0, 1 + row * GRID + col, 2] = 4.0
        attention = attention_modules(model)[0]
        for head in range(3):
            attention.q_proj.bias[4 * head] = STRENGTH
            attention.k_proj.weight[4 * head, head] = 1.0
        for parameter in (
            attention.v_proj.weight,
            attention.o_proj.weight,
            *(model.head[place].weight for place in (0, 2, 4)),
        ):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return OpenedModel(model.to(dtype).eval().requires_grad_(False), "toy", "0" * 64, is_control=True)
