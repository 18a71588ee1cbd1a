"""What the tests of checks share: a tiny model, its pictures, and the evidence of a run, made without running one."""

from dataclasses import replace

import numpy as np
from tiny_models import tiny_model

from analysis.checks.evidence import Evidence
from analysis.intervals import bootstrap_indices
from analysis.lent_contexts import with_companions
from analysis.models import OpenedModel, make_batch, preprocessed
from analysis.passes import chosen_methods, method_settings
from analysis.pictures import Pictures, PictureSource
from analysis.score_files import KINDS
from analysis.scorecard import Truth, oriented
from attribution.ablation import zero_ablation
from attribution.contexts import contexts
from attribution.heads import attention_maps
from attribution.methods import run_method
from attribution.vit import head_layout
from data_synth import REGIONS

COUNT = 6


def tiny_opened(kind="dinov2_lora"):
    return OpenedModel(tiny_model(kind), "tiny", "0" * 64, is_control=True)


def source_of(model, count=COUNT, *, labelled=True):
    """Random pictures with random labels of patches, references and counterfactuals."""
    rng, layout, size = np.random.default_rng(3), head_layout(model), model.config.image_size
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = rng.normal(size=(count, len(model.config.target_names))) * 10
    patches = rng.integers(0, len(REGIONS), (count, layout.num_rows, layout.num_cols)).astype(np.uint8)
    references, twins = (rng.integers(0, 256, (number, size, size, 3), dtype=np.uint8) for number in (9, count))
    mean = references.mean(axis=0)

    def draw(rows):
        rows = list(rows)
        return Pictures(
            images[rows], labels[rows], np.array(rows), patches[rows] if labelled else None, None, mean_image=mean
        )

    def of(pictures):
        return lambda rows: pictures[list(rows)]

    return PictureSource(count, draw, {}, reference=of(references), num_references=9, counterfactual=of(twins))


def batch_of(opened, source, settings, rows):
    needs = ("donor_pixel_values", "counterfactual_pixel_values")
    batch = with_companions(opened, make_batch(opened, source.draw(rows)), source, settings.seed, needs)
    references = preprocessed(opened, source.reference(range(source.num_references)))
    return replace(batch, mean_context=contexts(opened.model, references).mean(0))


def computed(opened, source, settings, passes):
    """What passes store, by name: computed some pictures at a time, from batches that hold nothing but what is needed.

    Asserts that it can be stored: an array has the image first, and a type that files know.
    """
    found = {}
    for one in passes:
        rows = range(source.count) if one.rows is None else one.rows
        batch = with_companions(opened, make_batch(opened, source.draw(rows)), source, settings.seed, one.needs)
        parts = [one.compute(part, list(one.depends_on), 3) for part in batch.chunks(3)]
        for name in one.depends_on:
            assert one.name == name and set(parts[0]) == {name}
            found[name] = {key: np.concatenate([part[name][key] for part in parts]) for key in parts[0][name]}
            assert all(len(values) == len(batch) and str(values.dtype) in KINDS for values in found[name].values())
    return found


def evidence_of(check, opened, source, settings):
    """The evidence of a run with one check: everything computed without the machinery of runs."""
    methods = chosen_methods(settings.methods)
    batch = batch_of(opened, source, settings, range(source.count))
    scores = {
        name: oriented(run_method(name, opened.model, batch, method_settings(settings)).double().numpy(), method)
        for name, method in methods.items()
    }
    effects = zero_ablation(opened.model, batch)
    truth = Truth("zero", effects.delta_loss.numpy(), effects.delta_target_sq.numpy(), effects.intact_loss.numpy())
    orders = {name: order_of(found) for name, found in {**scores, truth.name: truth.delta_loss}.items()}
    found = computed(opened, source, settings, check.passes(opened, source, settings, methods, orders))

    def indices(count):
        return bootstrap_indices(count, settings.bootstrap_replicates, seed=settings.seed)

    maps = {name: values.numpy() for name, values in attention_maps(opened.model, batch.pixel_values).maps.items()}
    labels = source.draw(range(source.count)).patch_labels
    return Evidence(opened, source, settings, methods, scores, truth, orders, indices, found.__getitem__, maps, labels)


def order_of(scores):
    mean = scores.mean(axis=0)
    return tuple((int(place) // mean.shape[1], int(place) % mean.shape[1]) for place in np.argsort(-mean.ravel()))
