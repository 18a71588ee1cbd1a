"""Two and three runs written by hand; every number again by loops, scipy's own bootstrap and sets."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from scipy.stats import bootstrap, kendalltau, spearmanr, trim_mean

from analysis.agreement import agreement_table
from analysis.intervals import bootstrap_indices
from analysis.score_files import Piece, join_pieces, score_file, store_piece
from analysis.seeds import Parts, compare_seeds, main, read_runs, statement_texts

N, LAYERS, HEADS, FIRST = 24, 8, 3, 16
REPLICATES = 41
INDICES = bootstrap_indices(N, REPLICATES, seed=0)
MEAN = {"mean": np.mean, "trimmed": lambda values: trim_mean(values, 0.1)}
METHOD_NAMES = ("gate_ixg", "gate_ig", "cls_entropy", "chefer", "random")


def write_scores(folder, name, arrays):
    file = score_file(folder, name, {})
    count = len(next(iter(arrays.values())))
    pieces = [Piece(tuple(range(start, min(start + 10, count))), f"{name}{start}") for start in range(0, count, 10)]
    for piece in pieces:
        store_piece(file, piece, {key: values[list(piece.rows)] for key, values in arrays.items()}, {})
    join_pieces(file, pieces)


def write_run(folder, seed, *, name="model", kinds=("zero", "mean"), heads=HEADS, falls=False):
    """A run of a made-up model whose later layers matter more; what its tables hold follows from its scores."""
    rng = np.random.default_rng(seed)
    size = (np.arange(LAYERS)[:, None] ** 2 + 8) / 1000 * rng.uniform(0.1, 1.8, (LAYERS, heads))
    size = size[::-1] if falls else size
    effects = {
        f"ablation_{kind}": size * rng.exponential(1.0, (N, LAYERS, heads)) - 0.003 + 0.001 * place
        for place, kind in enumerate(kinds)
    }
    layer, head = (part.ravel() for part in np.indices((LAYERS, heads)))
    scorecard = {"layer": layer, "head": head}
    (folder / "scores").mkdir(parents=True)
    for truth, found in effects.items():
        write_scores(folder / "scores", truth, {"delta_loss": found})
        scorecard[f"{truth}_var_pct"] = 100 * found.mean(axis=0).ravel()
    pd.DataFrame(scorecard).to_csv(folder / "head_scorecard.csv", index=False)
    tables = []
    for place, method in enumerate(METHOD_NAMES):
        count = FIRST if method == "chefer" else N
        scores = effects["ablation_zero"][:count] + 0.02 * (place + 1) * rng.normal(size=(count, LAYERS, heads))
        turned = -scores if method == "cls_entropy" else scores
        write_scores(folder / "scores", method, {"scores": turned})
        truths = {truth: found[:count] for truth, found in effects.items()}
        signed = {method: method.startswith("gate")}
        indices = bootstrap_indices(count, 20, seed=0)
        tables.append(agreement_table({method: scores}, truths, signed, indices, 0, num_halves=5))
    pd.concat(tables).to_csv(folder / "agreement.csv", index=False)
    record = {
        "model": {"name": name, "weights_sha256": f"weights {seed}", "config": {"target_names": ["start"]}},
        "data": {"preset": "default", "sha256": "pictures"},
        "pictures": {"done": N, "total": N},
    }
    (folder / "manifest.json").write_text(json.dumps(record))
    return effects


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    kinds = {"one": ("zero", "mean"), "two": ("zero", "mean", "counterfactual"), "three": ("zero", "mean")}
    effects = {
        name: write_run(folder / name, seed, name=f"models/{name}", kinds=kinds[name])
        for seed, name in enumerate(kinds)
    }
    return folder, effects


@pytest.fixture(scope="module")
def tables(written):
    folder, effects = written
    return compare_seeds(read_runs([folder / name for name in effects]), REPLICATES)


def by_scipy(statistic):
    """Value and BCa limits of a statistic of the numbers of pictures, by scipy.stats.bootstrap."""
    found = bootstrap(
        (np.arange(N),), statistic, n_resamples=REPLICATES, vectorized=False, rng=np.random.default_rng(0)
    )
    return [statistic(np.arange(N)), *found.confidence_interval]


def centred(value, replicates):
    low, high = np.quantile(replicates, [0.025, 0.975]) + value - np.mean(replicates)
    return [value, max(-1, min(low, value)), min(1, max(high, value))]


def profile(effects, drawn, estimator="mean"):
    """Effect of each layer in % on the pictures drawn."""
    return [MEAN[estimator]([100 * sum(effects[i, layer]) / HEADS for i in drawn]) for layer in range(effects.shape[1])]


def numbers(row):
    return [row["value"], row["ci_low"], row["ci_high"]]


def test_layers_of_every_model_truth_and_estimator(written, tables):
    table = tables["layers_by_seed"]
    assert list(table) == "model layer truth estimator effect_var_pct ci_low ci_high n".split()
    assert len(table) == (2 + 3 + 2) * 2 * LAYERS and set(table["n"]) == {N}
    for (model, truth, estimator), rows in table.groupby(["model", "truth", "estimator"]):
        if (model, truth) in (("one", "ablation_zero"), ("two", "ablation_counterfactual")):
            effects = written[1][model][truth]
            for _, row in rows.iloc[[0, 5, -1]].iterrows():
                expected = by_scipy(lambda drawn, at=row["layer"]: profile(effects, drawn, estimator)[at])  # noqa: B023
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


@pytest.mark.parametrize("estimator", ["mean", "trimmed"])
@pytest.mark.parametrize("model", ["one", "two"])
def test_statements_by_loops(written, tables, model, estimator):
    effects = written[1][model]["ablation_zero"]
    table = tables["statements"].set_index(["truth", "estimator", "model", "statement"]).sort_index()
    rows = table.loc[("ablation_zero", estimator, model)]

    def first(drawn):
        return np.mean(profile(effects, drawn, estimator)[:2])

    expected = by_scipy(lambda drawn: np.mean(profile(effects, drawn, estimator)[6:]) - first(drawn))
    assert numbers(rows.loc["last_above_first_quarter"]) == pytest.approx(expected, rel=1e-9)
    assert rows.loc["last_above_first_quarter", "holds"] == (expected[1] > 0)
    assert by_scipy(first)[1] > 0
    expected = by_scipy(lambda drawn: np.mean(profile(effects, drawn, estimator)[4:]) / first(drawn))
    assert numbers(rows.loc["second_half_to_first_quarter"]) == pytest.approx(expected, rel=1e-9)

    def depth(drawn):
        return spearmanr(profile(effects, drawn, estimator), range(LAYERS)).statistic

    expected = centred(depth(range(N)), [depth(drawn) for drawn in INDICES])
    assert numbers(rows.loc["effect_rises_with_depth"]) == pytest.approx(expected)
    largest = sorted(int(np.argmax(profile(effects, drawn, estimator))) for drawn in INDICES)
    value = int(np.argmax(profile(effects, range(N), estimator)))
    # 2.5 % of the way from the first to the last of 41 is the place 1.
    assert numbers(rows.loc["largest_layer"]) == [value, largest[1], largest[-2]]

    def share(drawn):
        heads = [[max(0, MEAN[estimator](effects[drawn, at, head])) for head in range(HEADS)] for at in range(LAYERS)]
        return sum(map(sum, heads[:2])) / sum(map(sum, heads))

    expected = centred(share(np.arange(N)), [share(drawn) for drawn in INDICES])
    expected[1] = max(0, expected[1])
    assert numbers(rows.loc["first_quarter_share"]) == pytest.approx(expected)
    assert rows.loc[["largest_layer", "first_quarter_share", "second_half_to_first_quarter"], "holds"].isna().all()


def test_a_statement_holds_only_if_it_holds_in_every_model(tmp_path):
    """Effects that rise in one model and fall in the other; a first quarter around 0 bounds no ratio."""
    write_run(tmp_path / "up", 0, kinds=("zero",))
    write_run(tmp_path / "down", 1, kinds=("zero",), falls=True)
    runs = read_runs([tmp_path / "up", tmp_path / "down"])
    up = runs[0].effects["ablation_zero"]
    up[:, :2] -= up[:, :2].mean() - 1e-3
    table = compare_seeds(runs, REPLICATES)["statements"]
    table = table[table["estimator"] == "mean"].set_index(["statement", "model"])
    for name in ("last_above_first_quarter", "effect_rises_with_depth"):
        assert [table.loc[(name, model), "holds"] for model in ("up", "down", "every")] == [True, False, False]
    ratio = table.loc[("second_half_to_first_quarter", "up")]
    assert ratio["value"] > 0 and np.isnan(ratio["ci_low"]) and np.isnan(ratio["ci_high"])
    assert table.loc[("largest_layer", "every"), "holds"] is False
    assert table.loc[("largest_layer", "every"), "value"] != table.loc[("largest_layer", "every"), "value"]


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


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(12, "L0-L2 L9-L11 L6-L11"), (2, "L0 L1 L1"), (3, "L0 L2 L1-L2"), (24, "L0-L5 L18-L23 L12-L23")],
)
def test_parts_of_any_number_of_layers(layers, expected):
    parts = Parts.of(layers)
    names = [Parts.name(part) for part in (parts.first_quarter, parts.last_quarter, parts.second_half)]
    assert " ".join(names) == expected


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


def change_record(folder, **parts):
    record = json.loads((folder / "manifest.json").read_text())
    for part, values in parts.items():
        record[part] |= values
    (folder / "manifest.json").write_text(json.dumps(record))


def drop(name):
    return lambda folder: (folder / name).unlink()


def scale_effects(folder):
    table = pd.read_csv(folder / "head_scorecard.csv")
    table.assign(ablation_mean_var_pct=table["ablation_mean_var_pct"] * 1.01).to_csv(
        folder / "head_scorecard.csv", index=False
    )


def estimated(folder):
    table = pd.read_csv(folder / "head_scorecard.csv")
    table.rename(columns=lambda name: name.replace("zero_var", "zero_estimated_var")).to_csv(
        folder / "head_scorecard.csv", index=False
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("manifest.json"), "missing manifest.json"),
        (drop("head_scorecard.csv"), "missing head_scorecard.csv"),
        (drop("scores/ablation_mean.safetensors"), "expected effects per picture"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "expected the manifest of a run"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "expected the manifest of a run"),
        (lambda folder: (folder / "agreement.csv").write_text("method,truth\n"), "missing column"),
        (lambda folder: (folder / "scores" / "ablation_zero.safetensors").write_bytes(b"no"), "safetensors"),
        (lambda folder: change_record(folder, model={"weights_sha256": "weights 0"}), "the same weights as"),
        (lambda folder: change_record(folder, data={"sha256": "others"}), "other pictures than .* sha256 differ"),
        (lambda folder: change_record(folder, data={"preset": "published"}), "other pictures .* preset differ"),
        (lambda folder: change_record(folder, pictures={"total": 30}), "expected delta_loss"),
        (lambda folder: change_record(folder, model={"config": {"target_names": ["end"]}}), "reads"),
        (scale_effects, "scores of the same run"),
        (estimated, "expected swept effects"),
    ],
)
def test_bad_runs_are_one_line_and_exit_2(written, tmp_path, capsys, change, message):
    shutil.copytree(written[0] / "two", tmp_path / "other")
    change(tmp_path / "other")
    output = tmp_path / "out"
    assert main([str(written[0] / "one"), str(tmp_path / "other"), "--output-dir", str(output)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("error: ") and error.count("\n") == 1
    assert not output.exists()


def test_other_bad_input(written, tmp_path, capsys):
    one, two = str(written[0] / "one"), str(written[0] / "two")
    write_run(tmp_path / "wide", 7, heads=4)
    output = ["--output-dir", str(tmp_path / "out")]
    assert main([one, *output]) == 2
    assert "at least 2 run folders" in capsys.readouterr().err
    assert main([one, one, *output]) == 2
    assert "the same weights" in capsys.readouterr().err
    assert main([one, str(tmp_path / "nowhere"), *output]) == 2
    assert "nowhere: expected a finished run" in capsys.readouterr().err
    assert main([one, str(tmp_path / "wide"), *output]) == 2
    assert "24 x 8 x 4 pictures x layers x heads, expected 24 x 8 x 3" in capsys.readouterr().err
    assert main([one, two, "--output-dir", one]) == 2
    assert "the folder of a run" in capsys.readouterr().err and (written[0] / "one" / "manifest.json").exists()
    assert main([one, two, *output, "--bootstrap-replicates", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_truths_stand_in_their_order(tables):
    found = list(dict.fromkeys(tables["layers_by_seed"].query("model == 'two'")["truth"]))
    assert found == ["ablation_zero", "ablation_mean", "ablation_counterfactual"]
