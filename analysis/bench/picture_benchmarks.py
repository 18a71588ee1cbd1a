"""Speed of what needs no model: localization metrics, and the synthesizer.

Takes numbers of pictures; gives rows of the table of :mod:`analysis.bench.paired_timing`. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from analysis.bench.paired_timing import in_turns, row
from analysis.bench.plain_localization import OneMap, by_definition, by_sorting, dataset_threshold
from analysis.localization import METRICS, locate, per_picture, rank_maps, region_masks
from analysis.pictures import region_indices
from data_synth import ChirpDataset, SynthConfig
from data_synth.bench import measure

Rows = list[dict[str, Any]]
Maps = NDArray[np.float32]
Masks = Mapping[str, NDArray[np.bool_]]
HEADS_SHAPE = (12, 6)  # of the bundled model
SYNTHESIZERS, PUBLISHED = ("in memory, warm pool", "preset published, in memory"), "published generator, disk"
LOCALIZATION_BOUND = 1e-12
BRUTE_FORCE, SORTED = "loop over pictures, heads, regions, by definition", "the same loop, patches sorted"


def localization_rows(num_pictures: int, repeats: int, heads_shape: tuple[int, int] = HEADS_SHAPE) -> Rows:
    """All metrics of all heads and regions at once against two loops in plain Python, on the same data.

    Masks are those of test pictures of the synthesizer, maps are random (exponential), float32. Every side starts from
    maps and masks and ends with every metric of every picture, head and region.
    """
    dataset = ChirpDataset("test", num_pictures, SynthConfig(num_layouts=num_pictures))
    labels = np.stack([dataset[index].patch_labels for index in range(num_pictures)])
    rng = np.random.default_rng(0)
    maps = rng.exponential(size=(num_pictures, *heads_shape, *labels.shape[1:])).astype(np.float32)
    masks = region_masks(labels, region_indices())
    contenders = {
        "all at once": partial(metrics_at_once, maps, masks),
        BRUTE_FORCE: partial(metrics_in_a_loop, maps, masks, by_definition),
        SORTED: partial(metrics_in_a_loop, maps, masks, by_sorting),
    }
    contenders["all at once"]()
    timed = in_turns(contenders, repeats, torch.device("cpu"))
    unit: dict[str, Any] = {"unit": "map x region", "units": maps[..., 0, 0].size * len(masks)}
    unit |= {"pictures": num_pictures, "note": f"{len(METRICS)} metrics"}
    ours, rows = timed.seconds["all at once"], []
    for name, goal in ((BRUTE_FORCE, 200.0), (SORTED, None)):
        worst = largest_difference(timed.results["all at once"][-1], timed.results[name][-1])
        others: dict[str, Any] = {"baseline": name, "baseline_seconds": timed.seconds[name], "goal": goal}
        others |= {"difference_from": name}
        others |= {"max_abs_difference": worst, "relative_difference": worst, "difference_bound": LOCALIZATION_BOUND}
        rows.append(row("localization", "all at once", ours, **unit, **others))
    rows += [row("localization", name, timed.seconds[name], **unit) for name in (BRUTE_FORCE, SORTED)]
    return rows


def metrics_at_once(maps: Maps, masks: Masks) -> NDArray[np.float64]:
    """Every metric `[region metric image layer head]`, maps ranked once."""
    ranked = rank_maps(maps)
    found = [per_picture(locate(ranked, mask)) for mask in masks.values()]
    return np.stack([np.stack([metrics[name] for name in METRICS]) for metrics in found])


def metrics_in_a_loop(maps: Maps, masks: Masks, of_one: OneMap) -> NDArray[np.float64]:
    """Every metric `[region metric image layer head]`, map by map and mask by mask; NaN for None."""
    found = np.full((len(masks), len(METRICS), *maps.shape[:3]), np.nan)
    flat_masks = [[one.ravel().tolist() for one in mask] for mask in masks.values()]
    for layer in range(maps.shape[1]):
        for head in range(maps.shape[2]):
            of_head = [maps[image, layer, head].astype(np.float64).ravel().tolist() for image in range(len(maps))]
            threshold, tied_share = dataset_threshold(of_head)
            for region, mask in enumerate(flat_masks):
                for image, values in enumerate(of_head):
                    metrics = of_one(values, mask[image], threshold, tied_share)
                    for place, name in enumerate(METRICS):
                        value = metrics[name]
                        found[region, place, image, layer, head] = np.nan if value is None else value
    return found


def largest_difference(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Largest absolute difference; infinite where one side is NaN and the other is not."""
    if not np.array_equal(np.isnan(found), np.isnan(expected)):
        return float("inf")
    return float(np.nanmax(np.abs(found - expected), initial=0.0))


def synthesizer_rows(count: int, published_count: int, repeats: int) -> Rows:
    """Pictures per second of the synthesizer with all masks, against the published generator, which makes none.

    One process, one thread; the published generator writes its pictures to disk, as it cannot do otherwise.
    """
    rates: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, rate, _masks in measure(count, published_count):
            if rate is not None:
                rates.setdefault(name, []).append(rate)
    seconds = {name: [1 / rate for rate in found] for name, found in rates.items()}
    rows = []
    for name in SYNTHESIZERS:
        others: dict[str, Any] = {"pictures": count, "note": "all masks"}
        if PUBLISHED in seconds:
            others |= {"baseline": PUBLISHED, "baseline_seconds": seconds[PUBLISHED]}
        rows.append(row("synthesizer", name, seconds[name], unit="picture", units=1, **others))
    note = "chirp-spectrogram-generator 0.1.6, no masks" if PUBLISHED in seconds else "not installed"
    others = {"pictures": published_count, "note": note}
    rows.append(row("synthesizer", PUBLISHED, seconds.get(PUBLISHED, []), unit="picture", units=1, **others))
    return rows
