import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from analysis import estimate_coverage
from analysis.estimate_coverage import main, read_stored

TABLES = ("estimate_precision.csv", "estimate_cost.csv", "estimate_coverage.csv")
FEW = ("--populations", "3", "--draws", "4", "--bootstrap-replicates", "20")


def arrays(num_images=20):
    """The arrays of an ablation file and of a predictor file."""
    rng = np.random.default_rng(0)
    changes = rng.normal(size=(num_images, 3, 2, 3))
    residuals = rng.normal(size=(num_images, 3))
    contributions = -changes + 0.2 * rng.normal(size=changes.shape)
    effects = (changes * (changes + 2 * residuals[:, None, None])).mean(axis=-1)
    predicted = (contributions * (contributions - 2 * residuals[:, None, None])).mean(axis=-1)
    return (
        {"delta_loss": effects, "output_changes": changes, "residuals": residuals},
        {"scores": predicted.astype(np.float32), "contributions": contributions},
    )


def write_run(folder, ablation, predictor):
    (folder / "scores").mkdir(parents=True, exist_ok=True)
    for name, content in (("ablation_zero", ablation), ("gate_ixg_out", predictor)):
        save_file({key: np.ascontiguousarray(value) for key, value in content.items()}, _path(folder, name))
    return folder


def _path(folder, name):
    return folder / "scores" / f"{name}.safetensors"


def test_reads_what_a_run_stored(tmp_path):
    ablation, predictor = arrays()
    stored = read_stored(write_run(tmp_path, ablation, predictor))
    np.testing.assert_array_equal(stored.effects, ablation["delta_loss"])
    np.testing.assert_array_equal(stored.predicted, predictor["scores"].astype(np.float64))
    np.testing.assert_array_equal(stored.predicted_changes, -predictor["contributions"])
    assert list(stored.estimators) == ["scores", "outputs"]
    for part, missing in ((ablation, "output_changes"), (predictor, "contributions"), (ablation, "residuals")):
        kept = {key: value for key, value in part.items() if key != missing}
        files = (kept, predictor) if part is ablation else (ablation, kept)
        assert list(read_stored(write_run(tmp_path, *files)).estimators) == ["scores"]


def donors(num_images=20, predicted_images=24):
    """The same of resample ablation: effects are means over donors, and more pictures have predictions."""
    rng = np.random.default_rng(1)
    changes, residuals = rng.normal(size=(num_images, 3, 2, 4, 3)), rng.normal(size=(num_images, 3))
    more = rng.normal(size=(predicted_images - num_images, *changes.shape[1:]))
    contributions = np.concatenate([-changes + 0.2 * rng.normal(size=changes.shape), more])
    effects = (changes * (changes + 2 * residuals[:, None, None, None])).mean(axis=(3, 4))
    return (
        {"delta_loss": effects, "output_changes": changes, "residuals": residuals},
        {"scores": rng.normal(size=(predicted_images, 3, 2)).astype(np.float32), "contributions": contributions},
    )


def test_resample_ablation_is_tried_donor_by_donor(tmp_path, capsys):
    ablation, predictor = donors()
    run = write_run(tmp_path / "run", ablation, predictor)
    for name, other in (("ablation_zero", "ablation_resample"), ("gate_ixg_out", "patch_donors_out")):
        _path(run, name).rename(_path(run, other))
    stored = read_stored(run, "resample", "patch_donors_out")
    assert stored.changes.shape == (20, 3, 2, 4, 3) and list(stored.estimators) == ["scores", "outputs"]
    np.testing.assert_array_equal(stored.predicted_changes, -predictor["contributions"][:20])
    assert main([str(run), *FEW, "--truth", "resample"]) == 0
    table = pd.read_csv(run / TABLES[0]).set_index(["estimator", "num_swept"])
    assert table.loc["outputs", "r2_median"].min() > 0.5
    capsys.readouterr()
    assert main([str(run), *FEW, "--truth", "shapley"]) == 2
    assert "--truth: expected one of zero, mean, resample, counterfactual, got shapley" in capsys.readouterr().err


def test_writes_three_tables_that_come_out_the_same_again(tmp_path, capsys):
    run = write_run(tmp_path / "run", *arrays())
    assert main([str(run), *FEW]) == 0
    printed = capsys.readouterr().out
    assert "not tried" not in printed
    first = {name: (run / name).read_bytes() for name in TABLES}
    assert main([str(run), *FEW, "--output-dir", str(tmp_path / "new" / "place")]) == 0
    assert {name: (tmp_path / "new" / "place" / name).read_bytes() for name in TABLES} == first
    assert main([str(run), *FEW, "--seed", "1", "--output-dir", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / TABLES[0]).read_bytes() != first[TABLES[0]]

    precision, cost, coverage = (pd.read_csv(run / name) for name in TABLES)
    assert list(zip(precision["estimator"], precision["num_swept"], strict=True)) == [("scores", 16), ("outputs", 16)]
    assert precision["num_pictures"].eq(20).all() and precision["draws"].eq(4).all()
    assert (precision["r2_min"] <= precision["r2_median"]).all() and (precision["r2_median"] < 1).all()
    share = 16 / 20
    expected = 1 / (1 - precision["r2_min"] * (1 - share))
    np.testing.assert_allclose(precision["variance_reduction_min"], expected)

    assert len(cost) == 2 * 1 * 6 * 4 * 2
    np.testing.assert_allclose(cost["times_cheaper"], cost["exact_forwards"] / cost["estimate_forwards"])
    one = cost[(cost["rule"] == "all_estimated") & (cost["predictor_forwards"] == 2) & (cost["num_pictures"] == 160)]
    # 16 of 160 pictures swept at 1 + 2·(1.7 + 0.7)/3 forwards each.
    np.testing.assert_allclose(one["estimate_forwards"], 0.1 * (1 + 2 * 2.4 / 3) + 2)

    designs = {(number, swept) for number, swept in zip(coverage["num_pictures"], coverage["num_swept"], strict=True)}
    assert designs >= set(estimate_coverage.DESIGNS) | {(16, 16), (512, 512)}
    exact = coverage[coverage["estimator"] == "exact"]
    assert exact["num_pictures"].eq(exact["num_swept"]).all()
    np.testing.assert_allclose(exact.loc[exact["interval"] == "bca", "width_ratio"], 1.0)
    assert set(exact["interval"]) == {"bca", "student_t"}
    bca = coverage[(coverage["estimator"] != "exact") & (coverage["interval"] == "bca")]
    assert bca["equal_width_pictures"].between(3, 600).all()
    equal = (bca["num_pictures"] / bca["width_ratio"] ** 2).round()
    np.testing.assert_allclose(bca["equal_width_pictures"], equal.clip(lower=3), atol=1)
    others = coverage.drop(bca.index)
    assert others["equal_width_pictures"].isna().all()
    assert coverage["populations"].eq(3).all() and coverage["coverage_median"].between(0, 1).all()


def test_says_when_outputs_were_not_stored(tmp_path, capsys):
    ablation, predictor = arrays()
    run = write_run(tmp_path, {"delta_loss": ablation["delta_loss"]}, {"scores": predictor["scores"]})
    assert main([str(run), *FEW]) == 0
    assert "the estimator `outputs` is not tried" in capsys.readouterr().out
    assert set(pd.read_csv(run / TABLES[0])["estimator"]) == {"scores"}


def fails(argv, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_bad_runs_are_refused(tmp_path, capsys):
    ablation, predictor = arrays()
    assert "ablation_zero.safetensors: no such file" in fails([str(tmp_path / "none"), *FEW], capsys)
    run = write_run(tmp_path, ablation, predictor)
    assert "ablation_mean.safetensors: no such file" in fails([str(run), *FEW, "--truth", "mean"], capsys)
    assert "gate_x.safetensors: no such file" in fails([str(run), *FEW, "--predictor", "gate_x"], capsys)
    _path(run, "ablation_zero").write_bytes(b"none")
    assert "expected a safetensors file" in fails([str(run), *FEW], capsys)
    assert not any((run / name).exists() for name in TABLES)


@pytest.mark.parametrize(
    ("which", "name", "change", "message"),
    [
        (0, "delta_loss", lambda found: found * np.nan, "expected finite delta_loss with 3 axes"),
        (0, "delta_loss", lambda found: found[:16], "at least 17 images, got [16, 3, 2]"),
        (0, "delta_loss", lambda found: found + 1, "expected delta_loss to be what output_changes do"),
        (0, "output_changes", lambda found: -found, "expected delta_loss to be what output_changes do"),
        (0, "output_changes", lambda found: found[..., :2], "expected output_changes and contributions [20, 3, 2, 3]"),
        (1, "scores", lambda found: found[:, :2], "expected scores [20, 3, 2], got [20, 2, 2]"),
        (1, "scores", lambda found: found[0], "expected finite scores with 3 axes"),
        (0, "residuals", lambda found: found[:18], "expected output_changes and contributions"),
        (1, "contributions", lambda found: found * np.inf, "expected finite contributions with 4 axes"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, capsys, which, name, change, message):
    files = arrays()
    files[which][name] = change(files[which][name])
    assert message in fails([str(write_run(tmp_path, *files)), *FEW], capsys)


def test_missing_scores_and_bad_options(tmp_path, capsys):
    ablation, predictor = arrays()
    del predictor["scores"]
    assert "expected finite scores" in fails([str(write_run(tmp_path, ablation, predictor)), *FEW], capsys)
    for option, value in (("--populations", "1"), ("--draws", "0"), ("--bootstrap-replicates", "9"), ("--seed", "-1")):
        assert f"{option}: expected at least" in fails([str(tmp_path), *FEW, option, value], capsys)
