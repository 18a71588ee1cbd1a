"""Contenders timed in turns, so that the drift of a busy machine falls on all of them alike.

Takes functions by name; gives seconds per repeat, results, and ratios between contenders taken within each repeat.
Knows nothing of what the functions do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from analysis.bench.machine import synchronise

COLUMNS = (
    *("benchmark", "contender", "baseline", "unit", "units", "pictures", "repeats"),
    *("seconds_median", "seconds_min", "seconds_max", "units_per_second"),
    *("ratio_to_baseline", "ratio_min", "ratio_max", "counted_ratio", "goal"),
    *("difference_from", "max_abs_difference", "relative_difference", "difference_bound"),
    *("counted_gflop", "share_of_matmul_rate", "note"),
)


@dataclass(frozen=True, eq=False)
class Timed:
    """Seconds and results of every repeat, `name -> [repeat]`."""

    seconds: dict[str, list[float]]
    results: dict[str, list[Any]]


def in_turns(contenders: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device) -> Timed:
    """Call every contender in its turn, A B C A B C …, `repeats` times."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, list[Any]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            synchronise(device)
            start = time.perf_counter()
            found = contender()
            synchronise(device)
            seconds[name].append(time.perf_counter() - start)
            results[name].append(found)
    return Timed(seconds, results)


def times_faster(contender: Sequence[float], baseline: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest of the ratios baseline / contender, each of one repeat."""
    ratios = [slow / fast for fast, slow in zip(contender, baseline, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def row(
    benchmark: str,
    contender: str,
    seconds: Sequence[float],
    *,
    unit: str,
    units: float,
    baseline: str = "",
    baseline_seconds: Sequence[float] = (),
    **others: Any,
) -> dict[str, Any]:
    """One row of the table: `units` of `unit` are done in each of `seconds`; `others` are further columns.

    ``ratio_to_baseline``: how many times faster than the baseline, the median over repeats, > 1 = faster. Raises
    ValueError for a column the table does not have.
    """
    unknown = sorted(set(others) - set(COLUMNS))
    if unknown:
        raise ValueError(f"{benchmark}: unknown columns {', '.join(unknown)}")
    found: dict[str, Any] = {"benchmark": benchmark, "contender": contender, "unit": unit, "units": units}
    found |= {"repeats": len(seconds)} | others
    if seconds:
        middle = statistics.median(seconds)
        found |= {"seconds_median": middle, "seconds_min": min(seconds), "seconds_max": max(seconds)}
        found["units_per_second"] = units / middle
    if baseline_seconds:
        names = ("ratio_to_baseline", "ratio_min", "ratio_max")
        found |= {"baseline": baseline} | dict(zip(names, times_faster(seconds, baseline_seconds), strict=True))
    return found


def difference(found: torch.Tensor, expected: torch.Tensor, scale: float, bound: float, name: str) -> dict[str, Any]:
    """Columns that say how far a result is from another's: `scale` is what the difference is divided by (ValueError
    where it is zero: then nothing was compared)."""
    if scale <= 0:
        raise ValueError(f"{name}: every number is zero")
    largest = float((found.double().cpu() - expected.double().cpu()).abs().max())
    return {
        "difference_from": name,
        "max_abs_difference": largest,
        "relative_difference": largest / scale,
        "difference_bound": bound,
    }
