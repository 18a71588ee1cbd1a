"""Contenders in turns, ratios within a turn, rows by hand."""

import pytest
import torch

from analysis.bench import paired_timing
from analysis.bench.paired_timing import COLUMNS, difference, in_turns, row, times_faster

CPU = torch.device("cpu")


def test_contenders_take_turns_and_are_timed_one_by_one(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 13.0, 20.0, 22.0, 30.0, 37.0])
    monkeypatch.setattr(paired_timing.time, "perf_counter", lambda: next(clock))
    calls = []

    def contender(name):
        def run():
            calls.append(name)
            return f"{name}{len(calls)}"

        return run

    timed = in_turns({"a": contender("a"), "b": contender("b")}, 2, CPU)
    assert calls == ["a", "b", "a", "b"]
    assert timed.seconds == {"a": [1.0, 2.0], "b": [3.0, 7.0]}
    assert timed.results == {"a": ["a1", "a3"], "b": ["b2", "b4"]}


def test_ratio_is_the_median_of_the_turns_not_the_ratio_of_the_medians():
    # The machine became three times slower in the third turn: the ratios stay.
    assert times_faster([1.0, 2.0, 6.0], [4.0, 6.0, 24.0]) == (4.0, 3.0, 4.0)
    with pytest.raises(ValueError):
        times_faster([1.0], [1.0, 2.0])


def test_row_by_hand():
    found = row("sweep", "a", [2.0, 1.0, 4.0], unit="picture", units=8, baseline="b", baseline_seconds=[2.0, 3.0, 4.0])
    assert found == {
        "benchmark": "sweep", "contender": "a", "unit": "picture", "units": 8, "repeats": 3, "baseline": "b",
        "seconds_median": 2.0, "seconds_min": 1.0, "seconds_max": 4.0, "units_per_second": 4.0,
        "ratio_to_baseline": 1.0, "ratio_min": 1.0, "ratio_max": 3.0,
    }  # fmt: skip
    assert set(found) <= set(COLUMNS)


def test_row_of_what_was_not_measured_has_no_seconds():
    found = row("synthesizer", "a", [], unit="picture", units=1, note="not installed")
    assert found["repeats"] == 0 and found["note"] == "not installed"
    assert not {"seconds_median", "ratio_to_baseline"} & set(found)


def test_row_refuses_a_column_that_the_table_has_not():
    with pytest.raises(ValueError, match="sweep: unknown columns speed"):
        row("sweep", "a", [1.0], unit="picture", units=1, speed=3)


def test_nothing_to_compare_with_is_refused():
    with pytest.raises(ValueError, match="b: every number is zero"):
        difference(torch.zeros(2), torch.zeros(2), 0.0, 1e-5, "b")


def test_difference_is_relative_to_the_scale():
    found = difference(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0], dtype=torch.float64), 4.0, 1e-5, "b")
    assert found == {
        "difference_from": "b", "max_abs_difference": 0.5, "relative_difference": 0.125, "difference_bound": 1e-5,
    }  # fmt: skip
