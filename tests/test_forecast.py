"""What a run is said to take, against sums done by hand."""

import numpy as np
import pytest
import torch

from analysis import forecast as forecasts
from analysis.forecast import forecast, forward_seconds, plain_forward_seconds, total_forwards
from analysis.models import open_model
from analysis.out_of_memory import BatchSize
from analysis.passes import Pass
from analysis.pictures import Pictures
from attribution.batch import Batch

NOTHING = {"compute": lambda *_: {}}
PASSES = [
    Pass("attention_maps", {"attention_maps": {}, "cls_mass": {}, "pixel_rollout": {}}, forwards=1.0, **NOTHING),
    Pass("sample", {"sample": {}}, forwards=5.5, rows=tuple(range(12)), **NOTHING),
    Pass("gate_ig", {"gate_ig": {"steps": 16}}, forwards=36.8, **NOTHING),
    Pass("random", {"random": {}}, forwards=0.0, **NOTHING),
]


def test_forward_passes_by_hand():
    assert total_forwards(PASSES[:1], 40) == 40
    assert total_forwards(PASSES[1:2], 40) == total_forwards(PASSES[1:2], 400) == 66  # of its sample alone
    assert total_forwards(PASSES, 40) == pytest.approx(40 + 66 + 36.8 * 40)
    assert total_forwards([], 40) == 0


def test_the_table_by_hand():
    # 0.5 s a forward pass: 20, 33, 736 and 0 s; (40 + 66 + 1472) / 40 = 39.45 forward passes a picture, 789 s in all.
    assert forecast(PASSES, 0.5, 40).splitlines() == [
        "pass                     forward passes each  seconds",
        "attention_maps                           1.0       20",
        "  and cls_mass",
        "  and pixel_rollout",
        "sample                                   5.5       33  of 12 pictures",
        "gate_ig                                 36.8      736",
        "random                                   0.0        0",
        "total                                   39.5      789",
    ]


def test_seconds_are_those_of_one_picture(monkeypatch):
    opened, count = open_model("tiny-random", "cpu"), 20
    pictures = Pictures(np.zeros((count, 224, 224, 3), np.uint8), *[None] * 5)
    seen, clock = [], iter([100.0, 108.0])
    opened.model.register_forward_pre_hook(
        lambda _, args: seen.append((len(args[0]), torch.is_inference_mode_enabled()))
    )
    monkeypatch.setattr(forecasts.time, "perf_counter", lambda: next(clock))
    assert forward_seconds(opened, pictures) == 8 / 16  # 16 of them in one pass, timed after a first one
    assert seen == [(2, True), (16, True)]


def test_a_plain_pass_takes_all_pictures_in_passes_as_large_as_the_methods(monkeypatch):
    opened = open_model("tiny-random", "cpu")
    batch = Batch(torch.zeros(5, 3, 224, 224), torch.zeros(5, 3), torch.arange(5), torch.zeros(3, 224, 224))
    seen, clock = [], iter([1.0, 5.0, 7.5])

    def scarce(_, args):
        seen.append((len(args[0]), torch.is_inference_mode_enabled()))
        if len(args[0]) > 2:
            raise MemoryError("none left")

    opened.model.register_forward_pre_hook(scarce)
    monkeypatch.setattr(forecasts.time, "perf_counter", lambda: next(clock))
    size = BatchSize(4)
    assert plain_forward_seconds(opened, batch, size) == 2.5  # without the pass that did not fit
    assert size.pictures == 2
    assert [count for count, _ in seen] == [4, 2, 2, 1, 2, 2, 1] and all(inference for _, inference in seen)
