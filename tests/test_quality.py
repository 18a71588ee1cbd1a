import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import r2_score

from analysis.intervals import bootstrap_indices
from analysis.models import open_model
from analysis.quality import distractor_edits, distractor_rows, leak_table, main, measure, predict, quality_table
from data_synth import TARGET_NAMES, ChirpDataset, SynthConfig
from data_synth.twins import CHIRP_ELSEWHERE, has_region, move, twin_scene

RNG = np.random.default_rng(0)
LABELS = RNG.uniform(0, 100, (200, 3))
PREDICTED = LABELS + RNG.normal(0, 10, (200, 3)) + 3
INDICES = bootstrap_indices(200, 300, seed=0)


def test_quality_is_what_scipy_and_scikit_learn_say():
    table = quality_table(PREDICTED, LABELS, INDICES).set_index(["target", "statistic"])
    sweep = (LABELS[:, 2] - LABELS[:, 1], PREDICTED[:, 2] - PREDICTED[:, 1])
    columns = [(LABELS[:, k], PREDICTED[:, k]) for k in range(3)] + [sweep]
    for name, (labels, predicted) in zip([*TARGET_NAMES, "sweep_hz"], columns, strict=True):
        assert table.loc[(name, "pearson_r"), "value"] == pytest.approx(
            pearsonr(labels, predicted).statistic, abs=1e-10
        )
        assert table.loc[(name, "r2"), "value"] == pytest.approx(r2_score(labels, predicted), abs=1e-10)
        assert table.loc[(name, "rmse"), "value"] == pytest.approx(np.sqrt(np.mean((labels - predicted) ** 2)))
    assert (table["ci_low"] < table["value"]).all() and (table["value"] < table["ci_high"]).all()
    assert table.loc[("sweep_hz", "rmse"), "unit"] == "hz"


def test_leak_is_found_and_its_absence_too():
    features = RNG.normal(size=(200, 20))
    clean = leak_table(RNG.normal(size=(200, 3)), features, LABELS, INDICES, seed=0)
    assert (clean["squared_correlation"] < 0.03).all() and (clean["probe_test_r2"] < 0.05).all()
    leaking = np.column_stack([features, LABELS[:, 0]])
    table = leak_table(PREDICTED, leaking, LABELS, INDICES, seed=0).set_index("target")
    assert table.loc["start_time_s", "probe_test_r2"] > 0.9 > 0.1 > table.loc["end_freq_hz", "probe_test_r2"]
    assert (table["squared_correlation"] > 0.7).all()


def test_distractor_rows_by_hand():
    before, after, labels = np.zeros((4, 3)), np.tile([1.0, -2.0, 0.0], (4, 1)), np.ones((4, 3))
    rows = distractor_rows(move("title"), before, after, labels, labels, bootstrap_indices(4, 50, seed=0))
    assert [row["shift"] for row in rows] == [1, -2, 0]
    assert [row["abs_shift"] for row in rows] == [1, 2, 0]
    assert [row["squared_error_change"] for row in rows] == [-1, 8, 0]
    assert rows[0]["item"] == "title" and rows[0]["edit"] == "move" and rows[0]["n"] == 4


def test_a_model_that_follows_the_chirp_is_not_distracted_by_it():
    indices = bootstrap_indices(4, 50, seed=0)
    rows = distractor_rows(CHIRP_ELSEWHERE, LABELS[:4], LABELS[4:8], LABELS[:4], LABELS[4:8], indices)
    assert [(row["shift"], row["abs_shift"], row["squared_error_change"]) for row in rows] == [(0, 0, 0)] * 3


def test_every_preset_allows_its_edits():
    for preset in ("default", "published"):
        dataset = ChirpDataset("test", 12, SynthConfig(preset=preset, num_layouts=8))
        for edit in distractor_edits(preset):
            index = 0
            while edit != CHIRP_ELSEWHERE and not has_region(dataset.scene(index), edit.region):
                index += 1
            assert twin_scene(dataset, index, edit).index == index


def test_tables_of_a_model_that_was_never_trained():
    model = open_model("tiny-random", "cpu").model
    dataset = ChirpDataset("test", 12, SynthConfig(num_layouts=8))
    tables = measure(model, dataset, num_distractor_pictures=6, replicates=50)
    assert set(tables) == {"model_quality", "leak", "distractors"}
    assert {"text", "title", "colorbar", "chirp"} <= set(tables["distractors"]["item"])
    predictions, features = predict(model, (dataset.image(i) for i in range(3)), 3, "again", batch_size=2)
    assert predictions.shape == (3, 3) and features.shape == (3, 32)
    assert not model.head._forward_pre_hooks


def test_command_writes_and_refuses(tmp_path, capsys):
    arguments = ["--model", "tiny-random", "--num-pictures", "8", "--distractor-pictures", "4"]
    assert main([*arguments, "--output-dir", str(tmp_path / "q")]) == 0
    assert len(pd.read_csv(tmp_path / "q" / "model_quality.csv")) == 12
    assert main(["--model", "nowhere"]) == 2
    assert main(["--num-pictures", "2"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
    for more, told in (
        (["--device", "meta"], "--device meta: not available"),
        (["--num-pictures", "9" * 20], "--num-pictures: expected 8 or more, up to 2147483647"),
    ):
        assert main(["--model", "tiny-random", "--output-dir", str(tmp_path / "other"), *more]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1 and not (tmp_path / "other").exists()


def test_a_table_of_the_users_beside_ours_is_not_taken_for_ours(tmp_path, capsys):
    (tmp_path / "model_quality.csv").write_text("target,statistic,unit,value,ci_low,ci_high,n\n")
    (tmp_path / "leak.csv").write_text("mine\n")
    assert main(["--model", "tiny-random", "--num-pictures", "8", "--output-dir", str(tmp_path)]) == 2
    assert "leak.csv: not written by analysis.quality" in capsys.readouterr().err
    assert (tmp_path / "leak.csv").read_text() == "mine\n"
    (tmp_path / "leak.csv").unlink()
    (tmp_path / "model_quality.csv").write_text("target,statistic,unit,value\n")
    assert main(["--model", "tiny-random", "--num-pictures", "8", "--output-dir", str(tmp_path)]) == 2
    assert "model_quality.csv: not written by analysis.quality" in capsys.readouterr().err
