"""Edges and corners under twins: masks made by hand, and heads that look at lines or at places on real pictures."""

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from analysis.checks import twins
from analysis.checks.twins import BY_NAME, Seen, lifts_of, places
from analysis.intervals import bootstrap_indices
from analysis.models import OpenedModel, make_batch
from analysis.pictures import Pictures, PictureSource, Twin
from analysis.role_rules import judged
from analysis.twin_effects import EDITS, twin_table
from attribution.vit import RegressorConfig, ViTRegressor
from data_synth import REGIONS, TARGET_NAMES, ChirpDataset, SynthConfig
from data_synth.twins import has_region
from data_synth.twins import twin as twin_of

COUNT, SIDE = 8, 16
CHANGES = ("without(frame)", "without(plot_background)")


def grid(*at):
    mask = np.zeros((1, 4, 4), dtype=bool)
    for place in at:
        mask[(0, *place)] = True
    return mask


def labelled(**at):
    labels = np.full((1, 4, 4), REGIONS.index("margin"), dtype=np.uint8)
    for name, region_places in at.items():
        for place in region_places:
            labels[(0, *place)] = REGIONS.index(name)
    return labels


def test_only_edges_that_are_gone_have_been_taken_out():
    """(0, 0) loses its edge; (0, 1) keeps it under another label; (0, 2) was noise, (0, 3) text, (1, 0) a sink."""
    before = Seen(
        labelled(frame=[(0, 0), (0, 1)], plot_background=[(0, 2)], title=[(0, 3)]),
        {"edge": grid((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)), "corner": grid((1, 1))},
    )
    after = Seen(
        labelled(plot_background=[(0, 1), (0, 2)], title=[(0, 3)]),
        {"edge": grid((0, 1), (1, 1), (2, 2)), "corner": grid((2, 3))},
    )
    sinks = grid((1, 0))
    old, new = places("edge", "without(frame)", before, after, sinks)
    np.testing.assert_array_equal(old, grid((0, 0)))
    np.testing.assert_array_equal(new, grid((2, 2)))
    old, new = places("corner", "without(frame)", before, after, sinks)
    np.testing.assert_array_equal(old, grid((1, 1)))  # an edge still, but no corner
    np.testing.assert_array_equal(new, grid((2, 3)))
    unchanged = places("edge", "without(frame)", before, before, sinks)
    assert not unchanged[0].any() and not unchanged[1].any()


def test_things_with_a_name_are_where_they_are_labelled():
    drawn = {"edge": grid((3, 3)), "corner": grid((3, 3))}
    before = Seen(labelled(title=[(0, 0), (0, 1)], x_label=[(3, 0)]), drawn)
    after = Seen(labelled(title=[(0, 1), (1, 1)], x_label=[(3, 0)]), drawn)
    nothing = grid()
    old, new = places("text", "move(title)", before, after, nothing)
    np.testing.assert_array_equal(old, grid((0, 0)))
    np.testing.assert_array_equal(new, grid((1, 1)))
    old, _ = places("text", "without(text)", before, after, nothing)
    np.testing.assert_array_equal(old, grid((0, 0), (0, 1), (3, 0)))


def a_model():
    """One layer of two heads over the grid of the pictures; what it attends to is put in its place below."""
    size = {"image_size": 224, "patch_size": 14}
    backbone = Dinov2Model(Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=1, **size))
    backbone.set_attn_implementation("eager")
    units = ("s", "Hz", "Hz")
    model = ViTRegressor(backbone, RegressorConfig(TARGET_NAMES, units, (30.0, 50.0, 50.0), (9.0, 20.0, 20.0)))
    return OpenedModel(model.eval().requires_grad_(False), "small", "0" * 64, is_control=True)


def lines_in(pixel_values):
    """How many straight lines cross each patch from side to side, [image row col]: strong steps of grey that fill a
    row or column of it. Neither Canny's nor anyone's masks."""
    grey = pixel_values.mean(dim=1).double()
    steps = torch.zeros(2, *grey.shape, dtype=torch.float64)
    steps[0, :, 1:] = (grey[:, 1:] - grey[:, :-1]).abs()
    steps[1, :, :, 1:] = (grey[:, :, 1:] - grey[:, :, :-1]).abs()
    strong = (steps > 0.2 * (grey.amax() - grey.amin())).double()
    patches = strong.unflatten(2, (SIDE, 14)).unflatten(4, (SIDE, 14))  # [way image row y col x]
    across = (patches[0].mean(dim=4) >= 0.8).sum(dim=2)
    down = (patches[1].mean(dim=2) >= 0.8).sum(dim=3)
    return (across + down).double().numpy()


def source_of(preset, count):
    """Test pictures and their twins, without the mean of references that nothing here needs."""
    dataset = ChirpDataset("test", count, SynthConfig(preset=preset))

    def draw(rows):
        samples = [dataset[row] for row in rows]
        images, labels = np.stack([one.image for one in samples]), np.stack([one.labels for one in samples])
        patches = np.stack([one.patch_labels for one in samples])
        return Pictures(images, labels, np.array(rows), patches, None, mean_image=np.zeros((224, 224, 3)))

    def twin(edit, row):
        if not has_region(dataset.scene(row), edit.region):
            return None
        found = twin_of(dataset, row, edit)
        return Twin(found.image, found.patch_labels)

    return PictureSource(count, draw, {}, twin=twin)


@pytest.fixture(scope="module", params=["default", "published"])
def lifts(request):
    """What the pass finds of two heads: one looks at lines wherever they are, one where the lines of the pictures as
    they were used to be. Only the twins of frame and background, which both presets have."""
    opened = a_model()
    count = COUNT if request.param == "default" else 5
    source = source_of(request.param, count)
    batch = make_batch(opened, source.draw(range(count)))
    habit = lines_in(batch.pixel_values)
    calls = []

    def looking(model, some, batch_size):
        calls.append(len(some))
        maps = np.stack([lines_in(some.pixel_values), habit[some.indices.numpy()]], axis=1)[:, None] + 1e-3
        maps /= maps.sum(axis=(3, 4), keepdims=True)
        return {"cls": maps, "mean": maps}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twins, "_maps", looking)
        patch.setattr(twins, "patch_token_norms", lambda *_, **__: torch.ones(count, SIDE, SIDE))
        patch.setattr(twins, "BY_NAME", {name: BY_NAME[name] for name in CHANGES})
        found = lifts_of(opened, {"finetuned": opened.model}, source, batch, 4)
    return request.param, found, calls


def rows_of(found, concept, edit):
    parts = {part: found[f"finetuned|cls|{concept}|{edit}|{part}"].astype(np.float64) for part in twins.PARTS}
    count = len(parts["old_before"])
    return twin_table({(concept, edit): parts}, bootstrap_indices(count, 200), model="finetuned", query="cls")


def test_heads_that_look_at_lines_are_told_from_those_that_look_at_their_places(lifts):
    preset, found, _ = lifts
    rows = pd.concat([rows_of(found, "edge", edit) for edit in CHANGES])
    background = rows[rows["edit"] == CHANGES[1]].set_index("head")
    count = COUNT if preset == "default" else 5
    assert (background["n"] >= 0.8 * count).all()  # the border of nearly every spectrogram goes with its background
    assert background.loc[0, "value"] > 0.9 and background.loc[1, "value"] == pytest.approx(0, abs=1e-6)
    assert [judged("edge", rows[rows["head"] == head])[0] for head in (0, 1)] == ["detector", "position prior"]


def test_lines_alone_take_few_edges_away(lifts):
    """The border between spectrogram and paper is an edge with or without a line along it."""
    preset, found, _ = lifts
    changed = np.isfinite(found["finetuned|cls|edge|without(frame)|old_before"]).all(axis=(1, 2))
    every = np.isfinite(found["finetuned|cls|edge|without(plot_background)|old_before"]).all(axis=(1, 2))
    assert every.sum() >= changed.sum() and (every.mean() > 0.8)
    assert changed.all() if preset == "published" else changed.mean() < 0.5


def test_a_twin_passes_once_however_many_concepts_it_is_of(lifts):
    _, found, calls = lifts
    assert len(calls) == 1 + len(CHANGES)
    assert set(found) == {
        f"finetuned|{query}|{concept}|{edit}|{part}"
        for query in ("cls", "mean")
        for concept in ("edge", "corner")
        for edit in CHANGES
        for part in twins.PARTS
    }
    assert all(values.dtype == np.float32 and values.shape[1:] == (1, 2) for values in found.values())
    assert all(np.isnan(values).all() for name, values in found.items() if "|new_" in name)  # nothing moves


def test_every_edit_of_a_concept_can_be_made():
    assert {edit for edits in EDITS.values() for edit in edits} == set(BY_NAME)
    assert all(name == str(edit) for name, edit in BY_NAME.items())
