"""Two and three runs written by hand; every number again by loops, scipy's own bootstrap and sets."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from scipy.stats import kendalltau, spearmanr, ttest_ind
from written_runs import (
    FIRST,
    HEADS,
    INDICES,
    LAYERS,
    MEAN,
    METHOD_NAMES,
    REPLICATES,
    N,
    centred,
    numbers,
    profile,
    write_run,
    write_three,
)

from analysis.seed_runs import read_runs
from analysis.seed_statements import statement_texts
from analysis.seeds import compare_seeds, main


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder, write_three(folder)


@pytest.fixture(scope="module")
def tables(written):
    folder, effects = written
    return compare_seeds(read_runs([folder / name for name in effects]), REPLICATES)


def test_layers_of_every_model_truth_and_estimator(written, tables):
    table = tables["layers_by_seed"]
    assert list(table) == "model layer truth estimator effect_var_pct ci_low ci_high n".split()
    assert len(table) == (2 + 3 + 2) * 2 * LAYERS and set(table["n"]) == {N}
    for (model, truth, estimator), rows in table.groupby(["model", "truth", "estimator"]):
        if (model, truth) in (("one", "ablation_zero"), ("two", "ablation_counterfactual")):
            effects = written[1][model][truth]
            for _, row in rows.iloc[[0, 5, -1]].iterrows():
                pictures = [100 * sum(effects[i, row["layer"]]) / HEADS for i in range(N)]
                # Student's t of one sample: Yuen's test against zeros, which have no spread.
                trim = 0.1 if estimator == "trimmed" else 0.0
                limits = ttest_ind(pictures, np.zeros(N), equal_var=False, trim=trim).confidence_interval(0.95)
                expected = [profile(effects, range(N), estimator)[row["layer"]], *limits]
                assert [row["effect_var_pct"], row["ci_low"], row["ci_high"]] == pytest.approx(expected, rel=1e-9)


def test_methods_and_their_ranks(written, tables):
    table = tables["methods_by_seed"]
    for model in written[1]:
        given = pd.read_csv(written[0] / model / "agreement.csv")
        given = given[(given["statistic"] == "spearman") & (given["estimator"] == "mean")]
        rows = table[table["model"] == model].set_index(["method", "truth"])
        assert len(rows) == len(given)
        for _, row in given.iterrows():
            mine = rows.loc[(row["method"], row["truth"])]
            names = ["value", "ci_low", "ci_high", "value_cross", "noise_ceiling", "n"]
            assert [*mine.drop(["model", "rank"])] == pytest.approx([*row[names]], nan_ok=True)
            others = given.loc[given["truth"] == row["truth"], "value"]
            assert mine["rank"] == 1 + (others > row["value"]).sum() + ((others == row["value"]).sum() - 1) / 2
    assert set(table.loc[table["method"] == "chefer", "n"]) == {FIRST}


def test_heads_side_by_side(written, tables):
    table = tables["heads_by_seed"]
    assert list(dict.fromkeys(table["truth"])) == ["ablation_zero", "ablation_mean"]
    assert len(table) == 2 * LAYERS * HEADS
    for _, row in table.iterrows():
        for model, effects in written[1].items():
            means = [
                [100 * sum(effects[row["truth"]][:, at, head]) / N for head in range(HEADS)] for at in range(LAYERS)
            ]
            mine = means[row["layer"]][row["head"]]
            assert row[f"effect_var_pct_{model}"] == pytest.approx(mine)
            assert row[f"rank_{model}"] == 1 + sum(other > mine + 1e-12 for part in means for other in part)


def agreement_by_hand(a, b, statistic):
    if statistic == "spearman":
        return spearmanr(a.ravel(), b.ravel()).statistic
    if statistic == "spearman_within_layers":
        return np.mean([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    return len({*np.argsort(a.ravel())[-10:]} & {*np.argsort(b.ravel())[-10:]}) / 10


def test_models_agree_on_heads_as_scipy_says(written, tables):
    table = tables["seed_agreement"]
    assert set(zip(table["model_a"], table["model_b"], strict=True)) == {
        ("one", "two"), ("one", "three"), ("two", "three"),
    }  # fmt: skip
    assert len(table) == 3 * 2 * 2 * 3
    rows = table[(table["truth"] == "ablation_zero") & (table["model_a"] == "one") & (table["model_b"] == "three")]
    a, b = (written[1][name]["ablation_zero"] for name in ("one", "three"))
    for _, row in rows.iterrows():
        means = [[np.apply_along_axis(MEAN[row["estimator"]], 0, x[drawn]) for x in (a, b)] for drawn in INDICES]
        whole = [np.apply_along_axis(MEAN[row["estimator"]], 0, x) for x in (a, b)]
        found = [agreement_by_hand(*pair, row["statistic"]) for pair in means]
        expected = centred(agreement_by_hand(*whole, row["statistic"]), found)
        if row["statistic"] == "top_10":
            expected[1] = max(0, expected[1])
        assert numbers(row) == pytest.approx(expected, abs=1e-9)


def test_the_ceiling_is_that_of_both_models_noise(written, tables):
    """√(split-half of a · split-half of b), over the halves that the seed draws."""
    halves = np.random.default_rng(0).permuted(np.tile(np.arange(N), (200, 1)), axis=1) < N // 2
    split, cross = {}, []
    a, b = (written[1][name]["ablation_mean"] for name in ("one", "two"))
    for name, effects in (("a", a), ("b", b)):
        split[name] = np.mean(
            [spearmanr(effects[half].mean(0).ravel(), effects[~half].mean(0).ravel()).statistic for half in halves]
        )
    cross = [spearmanr(b[half].mean(0).ravel(), a[~half].mean(0).ravel()).statistic for half in halves]
    table = tables["seed_agreement"].set_index(["model_a", "model_b", "truth", "estimator", "statistic"])
    row = table.loc[("one", "two", "ablation_mean", "mean", "spearman")]
    assert row["noise_ceiling"] == pytest.approx(np.sqrt(split["a"] * split["b"]))
    assert row["value_cross"] == pytest.approx(np.mean(cross))


def scores_of(folder, method):
    scores = load_file(folder / "scores" / f"{method}.safetensors")["scores"]
    return -scores if method == "cls_entropy" else scores


def test_the_order_of_methods_is_bootstrapped_with_the_heads(written, tables):
    table = tables["method_order_by_seed"].set_index(["model_a", "model_b", "truth"])
    assert set(table["num_methods"]) == {4} and len(table) == 6  # random, a control, has no say
    names = METHOD_NAMES[:-1]

    def of(model, drawn):
        found, truth = [], written[1][model]["ablation_zero"]
        for method in names:
            scores = scores_of(written[0] / model, method)
            kept = [i for i in drawn if i < len(scores)]
            found.append(spearmanr(scores[kept].mean(0).ravel(), truth[kept].mean(0).ravel()).statistic)
        return np.round(found, 12)

    whole = kendalltau(of("one", range(N)), of("two", range(N))).statistic
    resampled = [kendalltau(of("one", drawn), of("two", drawn)).statistic for drawn in INDICES]
    row = table.loc[("one", "two", "ablation_zero")]
    assert numbers(row) == pytest.approx(centred(whole, resampled))
    assert row["ci_low"] < row["ci_high"]


def test_an_order_without_its_scores_has_no_interval(written, tmp_path):
    shutil.copytree(written[0] / "one", tmp_path / "one")
    (tmp_path / "one" / "scores" / "gate_ig.safetensors").unlink()
    runs = read_runs([tmp_path / "one", written[0] / "two"])
    rows = compare_seeds(runs, REPLICATES)["method_order_by_seed"]
    assert rows["value"].notna().all() and rows["ci_low"].isna().all()


def test_the_same_effects_hold_together(written, tmp_path):
    """Equal runs of two models: every tested statement of the one is that of both, and all agreement is 1."""
    write_run(tmp_path / "a", 0, kinds=("zero",))
    write_run(tmp_path / "b", 0, kinds=("zero",))
    record = json.loads((tmp_path / "b" / "manifest.json").read_text())
    record["model"]["weights_sha256"] = "others"
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(record))
    found = compare_seeds(read_runs([tmp_path / "a", tmp_path / "b"]), REPLICATES)
    assert found["seed_agreement"]["value"].tolist() == pytest.approx([1.0] * 6)
    assert found["method_order_by_seed"][["value", "ci_low", "ci_high"]].to_numpy().tolist() == [[1.0, 1.0, 1.0]]
    assert list(dict.fromkeys(found["layers_by_seed"]["model"])) == ["a", "b"]  # one model's name: folders tell
    every = found["statements"].query("model == 'every'").set_index(["statement", "estimator"])["holds"]
    assert [every[name, "mean"] for name in statement_texts(LAYERS)] == [True, None, True, True, None]


def test_command_writes_everything_twice_alike(written, tmp_path, capsys):
    arguments = [str(written[0] / name) for name in ("one", "two")]
    texts = []
    for name in ("x", "y"):
        place = tmp_path / name
        assert main([*arguments, "--output-dir", str(place), "--bootstrap-replicates", "50"]) == 0
        texts.append({path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()})
    assert texts[0] == texts[1]
    assert set(texts[0]) == {
        *("layers_by_seed.csv", "methods_by_seed.csv", "heads_by_seed.csv", "seed_agreement.csv", "manifest.json"),
        *("method_order_by_seed.csv", "statements.csv"),
        *(f"seeds_ablation_{kind}.{end}" for kind in ("zero", "mean") for end in ("png", "svg")),
    }
    record = json.loads(texts[0]["manifest.json"])
    assert [run["weights_sha256"] for run in record["runs"]] == ["weights 0", "weights 1"]
    assert [run["folder"] for run in record["runs"]] == ["one", "two"] and record["data"]["sha256"] == "pictures"
    said = capsys.readouterr().out
    assert "In every model:" in said and "Not in every run, so not compared: ablation_counterfactual." in said
    assert f"Indicative: {N} pictures" in said
    read = pd.read_csv(tmp_path / "x" / "statements.csv")
    assert set(read.loc[read["statement"] == "last_above_first_quarter", "holds"].astype(str)) <= {"True", "False"}
    assert read.loc[read["statement"] == "first_quarter_share", "holds"].isna().all()
    assert set(read["n"]) == {N} and set(read["model"]) == {"one", "two", "every"}


def test_truths_stand_in_their_order(tables):
    found = list(dict.fromkeys(tables["layers_by_seed"].query("model == 'two'")["truth"]))
    assert found == ["ablation_zero", "ablation_mean", "ablation_counterfactual"]


@pytest.mark.parametrize("name", ["gate_ixg", "ablation_mean"])
def test_flipped_bits_of_stored_scores_are_refused(tmp_path, capsys, name):
    write_three(tmp_path)
    path = tmp_path / "two" / "scores" / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # within what tables of rounded numbers forgive
    path.write_bytes(bytes(content))
    folders = [str(tmp_path / one) for one in ("one", "two")]
    assert main([*folders, "--output-dir", str(tmp_path / "out"), "--bootstrap-replicates", "20"]) == 2
    said = capsys.readouterr().err
    assert f"{name}.safetensors: pictures " in said and said.count("\n") == 1
