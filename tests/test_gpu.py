"""What a GPU computes is what a CPU computes: sweeps, every method, a run from end to end, a few steps of training.

Not run by default: `python -m pytest -m gpu`, on a machine with a CUDA GPU. VITHEADS_TEST_DEVICE names another device.
"""

import os

import pandas as pd
import pytest
import torch
from tiny_models import tiny_batch, tiny_model

from analysis.compare import main
from analysis.models import make_batch, open_model
from analysis.pictures import open_source
from attribution import finetune
from attribution.ablation import counterfactual_ablation, mean_ablation, resample_ablation, zero_ablation
from attribution.batch import Batch, MethodSettings
from attribution.method import cost
from attribution.methods import METHODS

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("VITHEADS_TEST_DEVICE", "cuda")
SETTINGS = MethodSettings(steps=4, internal_batch_size=8)
FEW = ["--num-pictures", "8", "--bootstrap-replicates", "50", "--num-permutations", "50"]


@pytest.fixture(scope="module", autouse=True)
def device():
    """The device; a test run that was asked for it and has none fails."""
    try:
        return torch.zeros(1, device=DEVICE).device
    except (RuntimeError, AssertionError) as error:
        pytest.fail(f"{DEVICE}: not available ({str(error).splitlines()[0]})")


def moved(batch: Batch, device) -> Batch:
    """All tensors of a batch but the numbers of pictures, on a device."""
    values = {name: value for name, value in vars(batch).items() if name != "indices"}
    return Batch(**{name: None if value is None else value.to(device) for name, value in values.items()},
                 indices=batch.indices)  # fmt: skip


def far(found, expected):
    """Largest difference, in shares of the largest number."""
    return float((found.cpu().double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2_lora", "registers"])
def test_sweeps_are_those_of_the_cpu(device, kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    ablations = {
        "zero": zero_ablation,
        "mean": lambda model, batch: mean_ablation(model, batch, batch.mean_context),
        "resample": resample_ablation,
        "counterfactual": counterfactual_ablation,
    }
    expected = {name: ablation(model, batch).delta_loss for name, ablation in ablations.items()}
    there, model = moved(batch, device), model.to(device)
    for name, ablation in ablations.items():
        assert far(ablation(model, there).delta_loss, expected[name]) < 1e-9, name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_what_it_gives_on_the_cpu(device, name):
    if cost(METHODS[name], SETTINGS, num_layers=3, num_targets=3) == (0, 0) and name == "random":
        return  # knows no model: drawn from picture numbers alone
    model = tiny_model()
    batch = tiny_batch(model)
    expected = METHODS[name].function(model, batch, SETTINGS)
    assert far(METHODS[name].function(model.to(device), moved(batch, device), SETTINGS), expected) < 1e-8


def test_the_bundled_model_reads_the_same(device):
    here, there = open_model("bundled", "cpu"), open_model("bundled", str(device))
    names = here.model.config.target_names
    source = open_source("default", 4, seed=0, image_size=224, patch_size=14, target_names=names)
    batches = [make_batch(opened, source.draw(range(4))) for opened in (here, there)]
    both = zip((here, there), batches, strict=True)
    effects = [zero_ablation(opened.model, batch).delta_loss for opened, batch in both]
    assert far(effects[1], effects[0]) < 1e-3  # float32 sums in another order


def test_a_run_gives_the_tables_of_the_cpu(device, tmp_path, capsys):
    tables = []
    for place in ("cpu", str(device)):
        folder = tmp_path / place.replace(":", "")
        arguments = ["--model", "tiny-random", *FEW, "--device", place, "--checks", "knockout,joint_removal"]
        assert main([*arguments, "--output-dir", str(folder)]) == 0
        tables.append({name: pd.read_csv(folder / f"{name}.csv") for name in ("head_scorecard", "knockout")})
    capsys.readouterr()
    for name, expected in tables[0].items():
        found = tables[1][name]
        for column in (one for one in expected if one.endswith("_var_pct")):
            scale = expected[column].abs().max()
            assert (found[column] - expected[column]).abs().max() <= 1e-3 * scale, (name, column)


def test_a_model_is_trained_there(device, tmp_path, capsys):
    folder = tmp_path / "model"
    arguments = ["--backbone", "tiny-dinov2", "--data", "data_synth:labelled_pictures", "--num-pictures", "32"]
    trains_on = "cpu" if device.type == "cpu" else "auto"
    few = ["--batch-size", "8", "--validation-pictures", "8", "--validate-every", "2", "--workers", "0"]
    assert finetune.main([*arguments, *few, "--device", trains_on, "--output-dir", str(folder)]) == 0
    assert (folder / "golden.safetensors").is_file() and open_model(str(folder), str(device)).name == "model"
    capsys.readouterr()
