"""The audit of the released procedure end to end, on a tiny model; its tables against numbers worked out by hand."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model

import analysis.published
from analysis.audit import (
    AS_RELEASED_NAME,
    CONFIGURATIONS,
    TREND_COLUMNS,
    TRUE_NAME,
    map_table,
    order_name,
    ordered,
    read_maps,
    scenario_rows,
    trend_table,
)
from analysis.published import main
from analysis.released_formats import PREDICTION_COLUMNS, write_released_format
from attribution.ablation import zero_ablation
from attribution.backbone import tiny_backbone
from attribution.batch import Batch
from attribution.checkpoint import load_pretrained, save_pretrained
from attribution.folder_lock import only_run
from attribution.released_procedure import FAULTS, NONE, state_predictions
from attribution.vit import RegressorConfig, ViTRegressor
from data_synth import TARGET_NAMES, TARGET_UNITS, ChirpDataset, SynthConfig

NUM_PICTURES, BATCH_SIZE, SIZE, PATCH = 6, 4, 56, 14


def write_model(folder, *, preprocessing_mean=(0.0, 0.0, 0.0), preprocessing_std=(1.0, 1.0, 1.0)):
    """A tiny 12-layer ViT with LoRA, that reads chirps (badly), stored."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = tiny_backbone("vit", image_size=SIZE, patch_size=PATCH, num_layers=12, num_heads=2, hidden_size=16)
        backbone = get_peft_model(backbone, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
        for name, value in backbone.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(value, std=0.2)
        config = RegressorConfig(
            TARGET_NAMES,
            TARGET_UNITS,
            (22.5, 50.0, 50.0),
            (13.0, 29.0, 29.0),
            SIZE,
            preprocessing_mean,
            preprocessing_std,
            "tiny-vit",
        )
        model = ViTRegressor(backbone, config).eval().requires_grad_(False)
    save_pretrained(model, folder, np.zeros((2, SIZE, SIZE, 3), dtype=np.uint8))
    return folder


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    model = write_model(folder / "model")
    options = [
        "--model",
        str(model),
        "--data",
        "default",
        "--num-pictures",
        str(NUM_PICTURES),
        "--batch-size",
        str(BATCH_SIZE),
    ]
    assert main([*options, "--shuffles", "2", "--output-dir", str(folder / "run")]) == 0
    return folder / "run", model, options


def test_tables_are_whole(audited):
    folder, _, _ = audited
    trend, scenarios = pd.read_csv(folder / "trend.csv"), pd.read_csv(folder / "scenarios.csv")
    assert list(trend.columns) == list(TREND_COLUMNS)
    orders = trend.groupby("configuration")["order"].nunique()
    assert set(orders.index) == set(CONFIGURATIONS) and len(CONFIGURATIONS) == 14
    assert orders[AS_RELEASED_NAME] == 3 and orders.sum() == 14 + 2
    assert (scenarios.groupby(["configuration", "order"]).size() == 24).all()
    record = json.loads((folder / "manifest.json").read_text())
    assert record["settings"]["other_preprocessing"] == "imagenet" and record["data"]["preset"] == "default"
    for name in ("faults", "orders", "maps"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 10_000


def test_true_ablation_is_zero_ablation(audited):
    folder, path, _ = audited
    model = load_pretrained(path)
    dataset = ChirpDataset("test", NUM_PICTURES, SynthConfig(image_size=SIZE, patch_size=PATCH))
    images = np.stack([dataset.image(index) for index in range(NUM_PICTURES)])
    labels = np.stack([dataset.labels(index) for index in range(NUM_PICTURES)])
    pixel_values = model.preprocess(images)
    batch = Batch(pixel_values, model.standardise(labels), torch.arange(NUM_PICTURES), pixel_values.mean(0))
    truth = zero_ablation(model, batch)
    scenarios = pd.read_csv(folder / "scenarios.csv")
    found = scenarios[scenarios["configuration"] == TRUE_NAME]
    halves = torch.stack([truth.delta_loss[:BATCH_SIZE].mean(0), truth.delta_loss[BATCH_SIZE:].mean(0)])
    expected = 100 * halves.mean(0)  # the mean of batch means
    np.testing.assert_allclose(found["increase_var_pct"], expected.ravel(), rtol=0, atol=2e-4)
    results = pd.read_csv(folder / "released-format" / "true-ablation" / "ablation_results.csv")
    np.testing.assert_allclose(results["loss"], found["loss"], rtol=1e-12)


def test_a_single_fault_of_timing_spoils_the_first_batch_alone(audited):
    folder, _, _ = audited
    scenarios = pd.read_csv(folder / "scenarios.csv").set_index("configuration")
    late, true = scenarios.loc["only_after_forward"], scenarios.loc[TRUE_NAME]
    assert (late["increase_pct"].to_numpy() != true["increase_pct"].to_numpy()).all()
    raw = scenarios.loc["only_raw_labels"]
    assert raw["baseline_loss"].iloc[0] > 100  # labels in units against standardised predictions
    assert (raw["loss"] - raw["baseline_loss"]).abs().max() > 0


def test_files_are_those_of_the_released_code(audited):
    folder = audited[0] / "released-format" / "as-released"
    results = pd.read_csv(folder / "ablation_results.csv")
    assert list(results.columns) == ["layer", "head", "loss"] and len(results) == 24
    baseline = pd.read_csv(folder / "baseline.csv")
    assert list(baseline.columns) == list(PREDICTION_COLUMNS) and len(baseline) == NUM_PICTURES
    for layer in range(12):
        for head in range(2):
            found = pd.read_csv(folder / f"scenario_layer_{layer}_head_{head}.csv")
            assert list(found.columns) == list(PREDICTION_COLUMNS) and len(found) == NUM_PICTURES
    everything = pd.read_csv(folder / "baseline_ablation_results.csv")
    assert everything["layer"].tolist() == ["all"]
    # its own reader computes the increase from the two
    scenarios = pd.read_csv(audited[0] / "scenarios.csv")
    own = scenarios[(scenarios["configuration"] == AS_RELEASED_NAME) & (scenarios["order"] == "original")]
    increase = 100 * (results["loss"] - everything["loss"][0]) / everything["loss"][0]
    np.testing.assert_allclose(increase, own["increase_pct"], rtol=1e-6)
    assert (folder / "loss_increase_heatmap.png").is_file()
    assert (folder / "layer_head_distribution_grid.png").is_file()


def test_a_second_run_computes_only_what_is_damaged(audited, monkeypatch):
    folder, _, options = audited
    before = {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}
    files = sorted((folder / "scores").glob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:100])
    computed = []

    def counted(*given, **named):
        computed.append(given)
        return state_predictions(*given, **named)

    monkeypatch.setattr(analysis.published, "state_predictions", counted)
    assert main([*options, "--shuffles", "2", "--output-dir", str(folder)]) == 0
    assert len(computed) == 1 < len(files)
    assert {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))} == before


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--num-pictures", "1"], "--num-pictures: expected 2 or more"),
        (["--batch-size", "0"], "--batch-size: expected 1 or more"),
        (["--num-pictures", "9" * 20], "--num-pictures: expected 2 or more, up to 2147483647"),
        (["--device", "meta"], "--device meta: not available"),
        (["--other-preprocessing", "unit"], "that is what the model was trained with"),
        (["--other-preprocessing", "none"], "expected one of imagenet, unit, half"),
        (["--model", "nowhere"], "--model nowhere: expected"),
        (["--model", "tiny-random"], "expected a backbone with adapters"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_code_2(audited, tmp_path, capfd, more, told):
    _, _, options = audited
    assert main([*options, "--output-dir", str(tmp_path / "run"), *more]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and told in lines[0]


def test_orders_are_permutations_and_the_first_is_as_released():
    scenarios = [(layer, head) for layer in range(3) for head in range(2)]
    assert ordered(scenarios, 0, 0) == scenarios
    one, other = ordered(scenarios, 1, 0), ordered(scenarios, 2, 0)
    assert sorted(one) == sorted(other) == scenarios and one != other and one != scenarios
    assert order_name(0) == "original" and order_name(2) == "shuffled-2"


def test_increases_by_hand():
    states = torch.zeros(3, 2, 1, dtype=torch.float64)
    states[1], states[2] = 1.0, 3.0
    standardised, in_units = torch.zeros(2, 1).double(), torch.full((2, 1), 10.0).double()
    found = scenario_rows(TRUE_NAME, "original", [(0, 0), (0, 1)], states + 1, standardised, in_units, (5.0,), 2)
    assert found["baseline_loss"].tolist() == [1.0, 1.0] and found["loss"].tolist() == [4.0, 16.0]
    assert found["increase_pct"].tolist() == [300.0, 1500.0] == found["increase_var_pct"].tolist()
    raw = scenario_rows("only_raw_labels", "original", [(0, 0), (0, 1)], states, standardised, in_units, (5.0,), 2)
    assert raw["loss"].tolist() == [81.0, 49.0]
    assert raw["increase_pct"].tolist() == [-19.0, -51.0]
    assert raw["increase_var_pct"].tolist() == [100 * -19 / 25, 100 * -51 / 25]


def test_trends_by_hand():
    layers = np.repeat(np.arange(12), 2)
    table = pd.DataFrame(
        {
            "configuration": TRUE_NAME,
            "order": "original",
            "position": np.arange(24),
            "layer": layers,
            "head": np.tile([0, 1], 12),
            "loss": 1.0 + layers,
            "baseline_loss": 1.0,
            "increase_pct": 100.0 * layers,
            "increase_var_pct": 10.0 * layers,
        }
    )
    (row,) = trend_table(table).to_dict("records")
    assert row["early_pct"] == 100 and row["sixth_pct"] == 500 and row["late_pct"] == 800
    assert row["sixth_over_early"] == 5 and row["late_over_early"] == 8
    assert row["slope_per_layer_pct"] == pytest.approx(100) and row["slope_per_layer_var_pct"] == pytest.approx(10)
    assert row["spearman_layer"] == pytest.approx(1) and row["num_unchanged"] == 2
    assert [row[name] for name in FAULTS] == [False] * 6 and CONFIGURATIONS[TRUE_NAME] == NONE
    short = trend_table(table[table["layer"] < 6]).iloc[0]
    assert np.isnan(short["late_pct"]) and short["sixth_pct"] == 500


def test_maps_as_released_by_hand():
    # one special token, three patches; queries: special, patch 0, 1, 2
    weights = torch.tensor([[0.4, 0.1, 0.2, 0.3], [0.1, 0.6, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.1, 0.1, 0.4, 0.4]])
    found = read_maps([weights[None, None].double()], 1)
    expected = {
        "cls": [1 / 6, 2 / 6, 3 / 6],
        "patch_mean": [0.9 / 2.7, 0.9 / 2.7, 0.9 / 2.7],
        "patch_0": [6 / 9, 2 / 9, 1 / 9],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name][0, 0, 0], values, atol=1e-6)
    weights[3] = torch.tensor([0.1, 0.1, 0.2, 0.6])
    scaled = read_maps([weights[None, None].double()], 1)["as_released"][0, 0, 0]
    mean = np.array([0.9, 0.7, 1.1]) / 3
    np.testing.assert_allclose(scaled, (mean - mean.min()) / (mean - mean.min()).sum(), atol=1e-6)


def test_lifts_and_rank_correlations_by_hand():
    rng = np.random.default_rng(0)
    maps = {name: rng.random((2, 1, 1, 4)) for name in ("cls", "patch_mean", "as_released", "patch_0")}
    maps = {name: values / values.sum(-1, keepdims=True) for name, values in maps.items()}
    maps["patch_0"] = maps["cls"] ** 2 / (maps["cls"] ** 2).sum(-1, keepdims=True)
    chirp = np.array([[True, False, False, False], [False, False, False, False]])
    table = map_table(maps, chirp).set_index("map")
    for name in maps:
        assert table.loc[name, "chirp_lift"] == pytest.approx(maps[name][0, 0, 0, 0] * 4)
        assert table.loc[name, "n"] == 1
    assert table.loc["patch_0", "spearman_cls"] == pytest.approx(1)  # squares keep the order
    assert abs(table.loc["patch_mean", "spearman_cls"]) < 1
    with pytest.raises(ValueError, match="none of them shows one"):
        map_table(maps, np.zeros((2, 4), dtype=bool))


def test_files_of_another_number_of_targets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected 3 targets, got 1"):
        write_released_format(tmp_path / "x", [(0, 0)], [1.0], np.zeros((1, 2, 1)), 1.0, np.zeros((2, 1)))
    assert not (tmp_path / "x").exists()


def test_a_folder_that_another_run_holds_is_left_alone(audited, capfd):
    folder, _, options = audited
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with only_run(folder):
        assert main([*options, "--shuffles", "2", "--output-dir", str(folder)]) == 2
    assert "another run is under way in this folder" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_figures_that_cannot_be_drawn_leave_the_earlier_audit(audited, monkeypatch):
    folder, _, options = audited
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr("analysis.published.audit_figures", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([*options, "--shuffles", "2", "--output-dir", str(folder)])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
