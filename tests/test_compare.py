import hashlib
import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import spearmanr

from analysis.answer import compare_with_reference, method_ranking
from analysis.checks.trials import CHECKS
from analysis.compare import main
from analysis.explain import explain, require_better_than_mean
from analysis.models import make_batch, open_model
from analysis.passes import chosen_methods
from analysis.pictures import open_pictures, open_source
from analysis.score_files import read_scores
from analysis.settings import CompareSettings
from attribution.methods import METHODS
from data_synth import ChirpDataset, SynthConfig
from data_synth.folder import write_folder

TINY = "analysis/configs/tiny.yaml"
SMALL = ["--config", TINY, "--num-pictures", "4", "--steps", "2", "--bootstrap_replicates", "50"]
ZERO = ["--truths", "zero"]
METHOD_NAMES = "gate_ixg,cls_mass,random,layer_index,saliency,chefer"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    assert main([*SMALL, *ZERO, "--methods", METHOD_NAMES, "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def chirp_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chirps")
    list(write_folder(ChirpDataset("test", 4, SynthConfig(num_layouts=4)), folder))
    return folder


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("methods.csv", "manifest.json", "report.html", "timings.json")
    }


def test_every_file_of_a_run(run):
    names = {path.name for path in run.iterdir()}
    assert {
        *("head_scorecard.csv", "head_scores.csv", "methods.csv", "localization.csv", "pixel_localization.csv"),
        *("agreement.csv", "truths.csv", "differences.csv", "differences_from_depth.csv"),
        *("ablation_at_cost.csv", "league.csv"),
        *("manifest.json", "report.html", "figures", "scores"),
    } == names
    scorecard = pd.read_csv(run / "head_scorecard.csv")
    assert len(scorecard) == 12 and scorecard["ablation_zero_var_pct"].notna().all()
    assert {"iou_chirp_adjusted", "mass_special", "score_gate_ixg", "rank_cls_mass"} <= set(scorecard)
    record = json.loads((run / "manifest.json").read_text())
    assert record["pictures"] == {"done": 4, "total": 4} and record["model"]["control"] is True
    figures = {path.stem for path in (run / "figures").glob("*.png")}
    assert {"ablation_effect", "head_ranking", "agreement", "iou_regions", "attention_gallery"} <= figures
    assert {"league", "cost_front"} <= figures and "truth_matrix" not in figures  # of one truth


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    """Every truth and check, but few methods."""
    folder = tmp_path_factory.mktemp("full") / "tiny"
    methods = "gate_ixg_out,gate_ig,value_norm,layer_deep_lift,random,layer_index,saliency,sobel"
    few = ["--permutations", "2", "--shapley-pictures", "3", "--check-pictures", "2", "--path-pictures", "3"]
    options = ["--truths", "all", "--checks", "all", "--curve-pictures", "3", "--resample-pictures", "3"]
    assert main([*SMALL, *few, *options, "--methods", methods, "--output-dir", str(folder)]) == 0
    return folder


def test_every_truth_and_check_leaves_its_table(full_run):
    tables = {path.stem: pd.read_csv(path) for path in full_run.glob("*.csv")}
    assert set(CHECKS) < set(tables) and {"truths", "league", "calibration", "pixel_localization"} < set(tables)
    assert all(len(table) for table in tables.values())
    truths = ["ablation_zero", "ablation_mean", "ablation_resample", "ablation_counterfactual", "shapley"]
    scorecard = tables["head_scorecard"]
    assert all(f"{name}_var_pct" in scorecard for name in truths)
    assert (scorecard["ablation_resample_n"] == 3).all() and (scorecard["shapley_n"] == 3).all()
    assert list(dict.fromkeys(tables["truths"]["truth_a"])) == truths
    league = tables["league"].set_index("method")
    assert {f"rank_{name}" for name in truths} < set(league)
    assert league["n"].to_dict() == {name: 3 if name == "gate_ig" else 4 for name in league.index}
    assert set(league.index[league["is_control"]]) == {"random", "layer_index"}
    methods = tables["methods"].set_index("method")
    assert methods["completeness_delta"].notna().to_dict() == {
        name: name in ("gate_ig", "layer_deep_lift") for name in methods.index
    }
    assert {"pixel_saliency", "pixel_sobel", "pixel_occupancy"} == set(tables["pixel_localization"]["method"])
    figures = {path.stem for path in (full_run / "figures").glob("*.png")}
    assert {"truth_matrix", "league", "removal_curves", "knockout", "randomised", "planted"} <= figures


def test_effects_of_every_truth_are_its_scores_on_disk(full_run):
    """The tables again from the stored scores, by plain means."""
    scorecard = pd.read_csv(full_run / "head_scorecard.csv")
    for kind in ("zero", "mean", "resample", "counterfactual"):
        stored, _ = read_scores(full_run / "scores" / f"ablation_{kind}.safetensors")
        effect = 100 * stored["delta_loss"].mean(axis=0).ravel()
        np.testing.assert_allclose(scorecard[f"ablation_{kind}_var_pct"], effect, rtol=1e-9, atol=1e-12)
        assert len(stored["delta_loss"]) == (3 if kind == "resample" else 4)
    shapley = read_scores(full_run / "scores" / "shapley.safetensors")[0]["scores"]
    np.testing.assert_allclose(scorecard["shapley_var_pct"], 100 * shapley.mean(axis=0).ravel(), rtol=1e-9)
    agreement = pd.read_csv(full_run / "agreement.csv")
    score = read_scores(full_run / "scores" / "gate_ixg_out.safetensors")[0]["scores"]
    expected = spearmanr(score.mean(axis=0).ravel(), stored["delta_loss"].mean(axis=0).ravel()).statistic
    row = agreement.query(
        "method == 'gate_ixg_out' and truth == 'ablation_counterfactual' and estimator == 'mean'"
        " and statistic == 'spearman'"
    )
    assert row["value"].item() == pytest.approx(expected, abs=1e-9) and row["n"].item() == 4


def test_control_is_labelled_wherever_it_appears(run):
    assert "CONTROL" in (run / "report.html").read_text()


def test_scorecard_is_what_the_model_does(run):
    """A second derivation: one head zeroed by hand in its own forward pass."""
    import torch

    from attribution.vit import loss_per_image, output_projections

    opened = open_model("tiny-random", "cpu")
    names = opened.model.config.target_names
    pictures = open_pictures("default", 4, seed=0, image_size=224, patch_size=14, target_names=names)
    batch = make_batch(opened, pictures)
    projection, size = output_projections(opened.model)[1], 8
    with torch.no_grad():
        intact = loss_per_image(opened.model(batch.pixel_values), batch.labels)
        projection.weight[:, 2 * size : 3 * size] = 0
        ablated = loss_per_image(opened.model(batch.pixel_values), batch.labels)
    scorecard = pd.read_csv(run / "head_scorecard.csv").set_index(["layer", "head"])
    assert 100 * (ablated - intact).mean().item() == pytest.approx(
        scorecard.loc[(1, 2), "ablation_zero_var_pct"], abs=2e-3
    )


def test_same_command_same_bytes_and_scores_are_reused(run, tmp_path, capsys):
    again = tmp_path / "again"
    assert main([*SMALL, *ZERO, "--methods", METHOD_NAMES, "--output_dir", str(again)]) == 0
    assert digests(again) == digests(run)
    stamps = {path: path.stat().st_mtime_ns for path in (again / "scores").glob("*.safetensors")}
    assert main([*SMALL, *ZERO, "--methods", METHOD_NAMES, "--output_dir", str(again)]) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert digests(again) == digests(run)


def test_a_folder_gives_the_numbers_of_the_synthesizer(run, chirp_folder, tmp_path):
    other = tmp_path / "folder"
    arguments = ["--data", str(chirp_folder), "--methods", "gate_ixg,saliency", "--output-dir", str(other)]
    assert main([*SMALL, *arguments]) == 0
    # The pictures differ only by their layouts' pool, so the run is complete, not equal.
    assert set(pd.read_csv(other / "localization.csv")["region"]) >= {"chirp", "text", "colorbar"}
    masks = pd.read_csv(chirp_folder / "metadata.csv").drop(columns="mask_file_name")
    bare = tmp_path / "bare"
    shutil.copytree(chirp_folder, bare)
    masks.to_csv(bare / "metadata.csv", index=False)
    arguments[1], arguments[5] = str(bare), str(tmp_path / "unmasked")
    assert main([*SMALL, *arguments]) == 0
    assert not (tmp_path / "unmasked" / "localization.csv").exists()
    assert "without masks" in (tmp_path / "unmasked" / "report.html").read_text()
    effects = [
        pd.read_csv(place / "head_scorecard.csv")["ablation_zero_var_pct"] for place in (other, tmp_path / "unmasked")
    ]
    np.testing.assert_array_equal(*effects)


def test_listing_and_dry_run(capsys, tmp_path):
    assert main(["--list-methods"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in METHODS) and "Left out" in listed
    assert main([*SMALL, "--dry-run", "--output-dir", str(tmp_path / "none")]) == 0
    assert "ablation_zero" in capsys.readouterr().out and not (tmp_path / "none").exists()


def broken_folder(source, target, change):
    shutil.copytree(source, target)
    table = pd.read_csv(target / "metadata.csv")
    if change == "nan":
        table.loc[2, "start_freq_hz"] = np.nan
    elif change == "column":
        table = table.drop(columns="end_freq_hz")
    elif change == "empty":
        table = table.head(0)
    elif change == "outside":
        table.loc[1, "mask_file_name"] = "../other.png"
    table.to_csv(target / "metadata.csv", index=False)
    if change == "size":
        Image.new("RGB", (32, 32)).save(target / "images" / "0000001.png")
    elif change == "unreadable":
        (target / "images" / "0000001.png").write_bytes(b"not a picture")
    elif change == "mask":
        Image.new("L", (10, 10)).save(target / "masks" / "0000001.png")
    elif change in ("images", "masks"):  # a pipe, which would be waited for
        (target / change / "0000001.png").unlink()
        os.mkfifo(target / change / "0000001.png")
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nan", "row 4, start_freq_hz"),
        ("column", "no column end_freq_hz"),
        ("empty", "no pictures"),
        ("size", "picture 1: expected 224 x 224 pixels, got 32 x 32"),
        ("unreadable", "not a readable PNG"),
        ("mask", "expected 480 x 640"),
        ("images", "0000001.png: expected a PNG file, not a device or pipe"),
        ("masks", "0000001.png: expected a PNG mask, not a device or pipe"),
        ("outside", "expected a path below the folder"),
    ],
)
def test_bad_folders_get_one_line(chirp_folder, tmp_path, capsys, change, message):
    folder = broken_folder(chirp_folder, tmp_path / "data", change)
    target = tmp_path / "out"
    assert main([*SMALL, "--data", str(folder), "--output-dir", str(target)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "--model nowhere: expected bundled"),
        (["--model", "tests"], "tests"),
        (["--data", "nowhere"], "--data nowhere: expected one of default, published"),
        (["--methods", "gate_ig,magic"], "methods: unknown magic"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--num-pictures", "1"], "num_pictures: expected a whole number >= 2"),
        (["--device", "cuda:99"], "--device cuda:99: not available"),
        (["--device", "meta"], "--device meta: not available"),
        (["--num-pictures", "9" * 20], "num_pictures: expected a whole number up to"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    assert main([*SMALL, "--output-dir", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and message in error[-1]


def test_a_run_that_is_stopped_says_how_far_it_came(tmp_path, capsys, monkeypatch):
    def stopped(opened, source, settings, folder, on_progress, **_):
        on_progress("attention_maps", 4.0)
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.compare.explain", stopped)
    assert main([*SMALL, *ZERO, "--methods", "random", "--output-dir", str(tmp_path / "out")]) == 3
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(r"stopped after 4 of \d+ forward passes; the same command goes on from there", last)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*SMALL, "--output-dir", str(tmp_path / "file")]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_model_worse_than_the_mean_is_refused():
    import torch

    labels = torch.tensor([[0.0], [2.0]])
    require_better_than_mean(torch.tensor([[0.1], [1.9]]), labels, "m")
    with pytest.raises(ValueError, match="not below that of predicting their mean"):
        require_better_than_mean(torch.tensor([[2.0], [0.0]]), labels, "m")


def test_methods_by_name():
    assert set(chosen_methods(("gate_ig", "rollout_drop"))) == {"gate_ig", "rollout_drop"}
    assert set(chosen_methods(("all",))) == set(METHODS)
    assert set(chosen_methods(("default",))) == {name for name, method in METHODS.items() if method.default}


def test_explain_refuses_unfinished_models(tmp_path):
    opened = open_model("tiny-random", "cpu")
    source = open_source(
        "default", 2, seed=0, image_size=224, patch_size=14, target_names=opened.model.config.target_names
    )
    opened.model.train()
    with pytest.raises(ValueError, match="eval"):
        explain(opened, source, CompareSettings(num_pictures=2), tmp_path, lambda *_: None)


def test_reference_of_another_model_is_not_compared_with(run):
    scorecard, agreement = (pd.read_csv(run / f"{name}.csv") for name in ("head_scorecard", "agreement"))
    from analysis.answer import read_reference

    reference = read_reference(run)
    assert "another model" in compare_with_reference(scorecard, agreement, reference, "other", {})[0]
    same = compare_with_reference(scorecard, agreement, reference, reference.weights_sha256, reference.data)
    assert "among its own, agree with it: Spearman 1.00" in same[-1] and "Indicative" in same[-1]
    other = compare_with_reference(scorecard, agreement, reference, reference.weights_sha256, {"folder": "mine"})
    assert "of another kind" in other[-1]
    assert "No reference run" in compare_with_reference(scorecard, agreement, None, "x", {})[0]
    assert not set(method_ranking(agreement)["method"]) & {"random", "layer_index"}
