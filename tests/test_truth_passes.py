"""The sweeps truths are made of, against the ablations they stand for, and the mean context against a plain mean."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_models import CONFIG, tiny_model

from analysis import mean_contexts, optimal_contexts
from analysis.companions import donor_images
from analysis.lent_contexts import with_companions
from analysis.mean_contexts import reference_context
from analysis.models import OpenedModel, make_batch, open_model, preprocessed
from analysis.optimal_contexts import held_optimal, optimal_forwards
from analysis.passes import BACKWARD_COST
from analysis.pictures import Pictures, PictureSource, open_source
from analysis.settings import CompareSettings
from analysis.truth_passes import chosen_truths, sweep_forwards, truth_pass
from attribution.ablation import counterfactual_ablation, mean_ablation, resample_ablation, zero_ablation
from attribution.batch import Batch, MethodSettings
from attribution.contexts import contexts
from attribution.optimal import optimal_context
from attribution.shapley import gate_shapley
from attribution.vit import head_layout

COUNT, REFERENCES = 5, 18  # more references than fit in one lot of 16
ALL = ("zero", "mean", "resample", "counterfactual", "optimal", "shapley")
JUDGED = 6


def picture_source():
    rng = np.random.default_rng(0)
    shape = (CONFIG.image_size, CONFIG.image_size, 3)
    images, others, twins = (
        rng.integers(0, 256, (count, *shape), dtype=np.uint8) for count in (COUNT, REFERENCES, COUNT)
    )
    labels, known = rng.normal(size=(COUNT, 3)), rng.normal(size=(REFERENCES, 3))
    mean = others.mean(axis=0)

    def draw(rows):
        rows = list(rows)
        return Pictures(images[rows], labels[rows], np.array(rows), None, None, mean)

    return PictureSource(
        COUNT,
        draw,
        {},
        reference=lambda rows: others[list(rows)],
        reference_labels=lambda rows: known[list(rows)],
        num_references=REFERENCES,
        counterfactual=lambda rows: twins[list(rows)],
    )


@pytest.fixture
def opened():
    return OpenedModel(tiny_model("dinov2_lora"), "tiny", "0", is_control=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    for module in (mean_contexts, optimal_contexts):
        monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(optimal_contexts, "NUM_JUDGED", JUDGED)
    monkeypatch.setattr(optimal_contexts, "LEAST_REFERENCES", 2 * JUDGED)
    return tmp_path / "cache"


def test_every_truth_is_its_ablation(opened):
    source, settings = picture_source(), CompareSettings(num_pictures=COUNT, seed=3, permutations=2, batch_size=2)
    rows = [1, 3, 4]
    bare = make_batch(opened, source.draw(rows))
    batch = with_companions(opened, bare, source, 3, ["donor_pixel_values", "counterfactual_pixel_values"])
    mean = contexts(opened.model, preprocessed(opened, source.reference(range(REFERENCES)))).mean(0)
    parts = [reference_batch(opened, source, rows) for rows in (range(REFERENCES - JUDGED), range(12, REFERENCES))]
    best = optimal_context(opened.model, [parts[0]], [parts[1]], mean).context
    expected = {
        "optimal": zero_ablation(opened.model, bare, replacement=best),
        "zero": zero_ablation(opened.model, bare),
        "mean": mean_ablation(opened.model, bare, mean),
        "resample": resample_ablation(opened.model, batch),
        "counterfactual": counterfactual_ablation(opened.model, batch),
    }
    found = {}
    for kind in expected:
        one = truth_pass(opened, source, settings, kind)
        given = bare if not one.needs else with_companions(opened, bare, source, settings.seed, one.needs)
        found[kind] = one.compute(given, [], 2)[f"ablation_{kind}"]
        np.testing.assert_allclose(found[kind]["delta_loss"], expected[kind].delta_loss.numpy(), rtol=0, atol=1e-10)
        np.testing.assert_allclose(found[kind]["intact_loss"], expected[kind].intact_loss.numpy(), rtol=1e-12)
        np.testing.assert_allclose(
            found[kind]["delta_target_sq"], expected[kind].delta_target_sq.numpy(), rtol=1e-8, atol=1e-7
        )
    assert len({found[kind]["delta_loss"].tobytes() for kind in found}) == 5
    shapley = truth_pass(opened, source, settings, "shapley")
    dials = MethodSettings(seed=3, permutations=2)
    np.testing.assert_allclose(
        shapley.compute(bare, [], 2)["shapley"]["scores"], gate_shapley(opened.model, bare, dials).numpy(), atol=1e-12
    )


def reference_batch(opened, source, rows):
    pixel_values = preprocessed(opened, source.reference(rows))
    labels = opened.model.standardise(source.reference_labels(rows)).to(pixel_values)
    return Batch(pixel_values, labels, torch.tensor(list(rows)), pixel_values[0])


def test_the_optimal_context_is_computed_once_and_for_pictures_that_have_others(opened, own_cache, monkeypatch):
    source = picture_source()
    found = held_optimal(opened, source)
    [file] = own_cache.glob("optimal-context-*")
    monkeypatch.setattr(optimal_contexts, "optimal_context", lambda *_, **__: pytest.fail("computed twice"))
    monkeypatch.setattr(optimal_contexts, "made_of", lambda *_: file.stem.removeprefix("optimal-context-"))
    assert torch.equal(held_optimal(opened, picture_source()), found)
    for changed, why in (
        ({"references_are_own": True}, "a folder has its own alone"),
        ({"reference_labels": None}, "reference pictures with labels, there are none"),
        ({"num_references": 11}, "at least 12 reference pictures, got 11"),
    ):
        with pytest.raises(ValueError, match=f"^truths: optimal needs .*{why}$"):
            held_optimal(opened, replace(source, **changed))


def test_the_mean_context_is_computed_once(opened, own_cache, monkeypatch):
    source = picture_source()
    expected = contexts(opened.model, preprocessed(opened, source.reference(range(REFERENCES)))).mean(0)
    first = reference_context(opened, source)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-13)
    [file] = own_cache.iterdir()
    whole = file.read_bytes()
    monkeypatch.setattr(mean_contexts, "write_checked", lambda *_: pytest.fail("computed twice"))
    assert torch.equal(reference_context(opened, source), first)
    monkeypatch.undo()
    monkeypatch.setattr(mean_contexts, "cache_folder", lambda: own_cache)
    flipped = bytearray(whole)
    flipped[-3] ^= 1  # one bit of a number
    for broken in (b"not whole", bytes(flipped), whole[:-8]):
        file.write_bytes(broken)
        assert torch.equal(reference_context(opened, source), first)
        assert file.read_bytes() == whole
    assert torch.equal(reference_context(opened, source), first)
    other = OpenedModel(tiny_model("dinov2_lora", seed=1), "other", "1", is_control=True)
    assert not torch.equal(reference_context(other, source), first)


def test_a_shipped_mean_context_is_of_one_model_and_its_pictures(opened, own_cache, tmp_path, monkeypatch):
    source, path = picture_source(), tmp_path / "shipped.safetensors"
    monkeypatch.setattr(mean_contexts, "SHIPPED", path)
    computed = reference_context(opened, source)
    assert mean_contexts.origin(opened, source) == ""
    mean_contexts.ship(opened, source, path)
    found = reference_context(opened, source)
    assert torch.equal(found, computed.to(torch.float16).double()) and not torch.equal(found, computed)
    assert len(mean_contexts.origin(opened, source)) == 64
    other = OpenedModel(tiny_model("dinov2_lora", seed=1), "other", "1", is_control=True)
    for model, pictures in ((other, source), (opened, replace(source, num_references=17))):
        assert mean_contexts.shipped_context(model, pictures) is None
        assert mean_contexts.origin(model, pictures) == ""
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 1
    path.write_bytes(bytes(whole))  # one bit: not what was shipped
    assert torch.equal(reference_context(opened, source), computed)


def test_the_bundled_model_ships_its_own():
    opened = open_model("bundled", "cpu")
    with safe_open(mean_contexts.SHIPPED, framework="numpy") as file:
        entry = json.loads(file.metadata()["arrays"])
        values = file.get_tensor("mean_context")
    identity = json.loads(entry["identity"])
    assert identity["model"] == opened.sha256 and identity["references"] == [512, ""]
    layout = head_layout(opened.model)
    assert values.shape == (layout.num_layers, 257, layout.num_heads, layout.head_dim) and values.dtype == np.float16
    assert mean_contexts.read_checked(mean_contexts.SHIPPED, entry["identity"]) is not None


@pytest.mark.slow
def test_what_is_shipped_changes_no_effect():
    """Effects at the mean as computed from the pictures, and as shipped: within 1e-4 of the largest."""
    opened = open_model("bundled", "cpu")
    names = opened.model.config.target_names
    source = open_source("default", 4, seed=0, image_size=224, patch_size=14, target_names=names)
    shipped = mean_contexts.shipped_context(opened, source)
    assert shipped is not None
    computed = mean_contexts.computed_context(opened, source)
    batch = make_batch(opened, source.draw(range(4)))
    found, expected = (mean_ablation(opened.model, batch, one).delta_loss for one in (shipped, computed))
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_which_truths_are_asked_for():
    source = picture_source()
    of_folder = replace(source, counterfactual=None, references_are_own=True)

    def chosen(pictures=source, **changes):
        return chosen_truths(CompareSettings(**changes), pictures)

    assert chosen() == ("zero", "mean", "counterfactual")
    assert chosen(of_folder) == ("zero", "mean")
    assert chosen(of_folder, truths=("all",)) == ("zero", "mean", "resample", "shapley")
    assert chosen(methods=("all",)) == chosen(truths=("all",)) == ALL
    assert chosen(methods=("all",), truths=("zero",)) == ("zero",)
    assert chosen(truths=("shapley", "resample")) == ("zero", "resample", "shapley")
    with pytest.raises(ValueError, match="truths: counterfactual needs synthetic pictures"):
        chosen(of_folder, truths=("counterfactual",))
    with pytest.raises(ValueError, match="truths: optimal needs reference pictures beside those explained"):
        chosen(of_folder, truths=("optimal",))
    assert chosen(methods=("all",), estimate=5) == ALL[:-1]  # Shapley values are of no one head's removal
    assert chosen(estimate=5) == ("zero", "mean", "counterfactual")
    assert chosen(truths=("resample",), estimate=5) == ("zero", "resample")
    with pytest.raises(ValueError, match="truths: unknown one, expected some of zero"):
        chosen(truths=("one",))
    with pytest.raises(ValueError, match="--estimate: expected truths that remove one head, got shapley"):
        chosen(truths=("shapley",), estimate=5)


def test_what_a_truth_depends_on_and_costs(opened):
    source = picture_source()
    settings = CompareSettings(num_pictures=COUNT, shapley_pictures=2, permutations=3)
    passes = {kind: truth_pass(opened, source, settings, kind) for kind in ALL}
    once = sweep_forwards(opened)
    assert passes["zero"].forwards == pytest.approx(once)
    assert passes["mean"].forwards == pytest.approx(once + REFERENCES / COUNT)
    assert passes["resample"].forwards == pytest.approx(4 * (once + 1))
    assert passes["counterfactual"].forwards == pytest.approx(once + 1)
    fitting = optimal_forwards(once, 3, REFERENCES, BACKWARD_COST)
    assert fitting == pytest.approx(REFERENCES + 12 * (1 + 3 * BACKWARD_COST) + 8 * JUDGED * once)
    assert passes["optimal"].forwards == pytest.approx(once + fitting / COUNT)
    assert passes["shapley"].rows == (0, 1)
    assert passes["resample"].depends_on["ablation_resample"]["seed"] == settings.seed
    assert "seed" not in passes["mean"].depends_on["ablation_mean"]
    rng_free = donor_images(source, [0], 1)
    assert not np.array_equal(rng_free, donor_images(source, [0], 2))
