"""The benchmark command: what it writes, that its contenders agree, how it refuses. No test looks at a time."""

import getpass
import json
import platform
from pathlib import Path

import pandas as pd
import pytest
import torch

from analysis import devices
from analysis.bench import __main__ as bench
from analysis.bench import machine, picture_benchmarks
from analysis.bench.__main__ import main
from analysis.bench.machine import MatrixProduct, describe_machine
from analysis.bench.paired_timing import COLUMNS

MODEL_BENCHMARKS = ("machine", "sweep", "layers", "localization", "estimate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The output of a quick run of everything that passes pictures through the model, and of localization."""
    path = tmp_path_factory.mktemp("bench")
    arguments = ["--quick", "--repeats", "2", "--pictures", "2", "--layer-pictures", "2"]
    assert main([*arguments, "--only", ",".join(MODEL_BENCHMARKS), "--output-dir", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def tables(folder):
    return {name: pd.read_csv(folder / f"{name}.csv") for name in MODEL_BENCHMARKS}


def test_every_benchmark_is_a_whole_table_and_nothing_else_is_left(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{name}.csv" for name in MODEL_BENCHMARKS), "machine.json"]
    )


def test_rows_say_what_was_measured(tables):
    for name, table in tables.items():
        assert list(table.columns) == list(COLUMNS)
        assert set(table["benchmark"]) == {name}
        untimed = table["contender"].str.endswith("float64")
        assert table["repeats"][untimed].eq(0).all() and table["seconds_median"][untimed].isna().all()
        assert table["difference_bound"][untimed].notna().all()
        table = table[~untimed]
        assert (table["repeats"] >= 2).all()
        assert (table["seconds_min"] <= table["seconds_median"]).all()
        assert (table["seconds_median"] <= table["seconds_max"]).all()
        compared = table[table["ratio_to_baseline"].notna()]
        assert len(compared) and compared["baseline"].notna().all()
        assert (compared["ratio_min"] <= compared["ratio_to_baseline"]).all()
        assert (compared["ratio_to_baseline"] <= compared["ratio_max"]).all()
        assert table[["seconds_median", "units_per_second"]].gt(0).all(axis=None)


@pytest.mark.parametrize("name", ["sweep", "layers", "localization"])
def test_contenders_agree(tables, name):
    checked = tables[name][tables[name]["difference_bound"].notna()]
    assert len(checked) and checked["difference_from"].notna().all()
    assert (checked["relative_difference"] <= checked["difference_bound"]).all()


def test_sweep_rows(tables):
    sweep = tables["sweep"]
    assert sweep["contender"].tolist() == [
        "sweep, blocks taken apart", "sweep, blocks taken apart", "sweep, whole blocks", "Captum LayerFeatureAblation",
        "one forward per head", "sweep, blocks taken apart, float64",
    ]  # fmt: skip
    assert sweep["difference_bound"].tolist()[-1] == 1e-10
    sweep = sweep[:-1]
    assert sweep["units"].eq(3 * 4 * 2).all()  # heads of the control network, two pictures
    assert sweep["share_of_matmul_rate"].between(0, 10, inclusive="neither").all()
    full, shared = sweep["counted_gflop"].iloc[4], sweep["counted_gflop"].iloc[0]
    assert sweep["counted_ratio"].iloc[0] == pytest.approx(full / shared)


def test_layer_rows(tables):
    layers = tables["layers"]
    assert layers["contender"].tolist()[::3] == [
        "LayerConductance, all blocks", "InternalInfluence, all blocks", "LayerIntegratedGradients, all blocks",
    ]  # fmt: skip
    assert layers["goal"].dropna().tolist() == [6.0, 6.0]
    assert layers["difference_bound"].tolist()[2::3] == [1e-5] * 3


def test_machine_is_described_without_names_or_places(folder):
    text = (folder / "machine.json").read_text()
    record = json.loads(text)
    assert record["model"] == "tiny-random" and record["extent"]["pictures"] == 2
    found = record["machine"]
    assert found["torch_threads"] == torch.get_num_threads() and found["cores_available"] >= 1
    assert found["versions"]["torch"] == torch.__version__ and found["memory_gb"] > 0
    private = {platform.node(), str(Path.home()), str(Path.cwd()), str(folder), getpass.getuser()}
    assert not [name for name in private if len(name) > 4 and name in text]


def test_machine_reads_cpu_and_flags(monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx512_bf16 sse\n")
    for module in (devices, machine):
        monkeypatch.setattr(module, "CPU_INFO", info)
    assert machine.cpu_model() == "Some CPU @ 2 GHz" and machine.bfloat16_is_native(torch.device("cpu"))
    info.write_text("processor : 0\nflags : fpu not_avx512_bf16_at_all\n")
    assert machine.cpu_model() == (platform.processor() or platform.machine())
    assert not machine.bfloat16_is_native(torch.device("cpu"))
    for module in (devices, machine):
        monkeypatch.setattr(module, "CPU_INFO", tmp_path / "none")
    assert not machine.bfloat16_is_native(torch.device("cpu")) and describe_machine(torch.device("cpu"))["cpu"]


def test_matrix_product_multiplies():
    product = MatrixProduct(32, torch.device("cpu"))
    assert product() > 0 and product.gflop == 2 * 32**3 / 1e9
    torch.testing.assert_close(product.out, product.left @ product.right)


def test_published_generator_that_is_not_installed_is_a_row_that_says_so(monkeypatch):
    names = (*picture_benchmarks.SYNTHESIZERS, picture_benchmarks.PUBLISHED)
    rates = dict(zip(names, (50.0, 2.0, None), strict=True))
    monkeypatch.setattr(
        picture_benchmarks, "measure", lambda count, published: [(name, rate, "") for name, rate in rates.items()]
    )
    ours, preset, published = picture_benchmarks.synthesizer_rows(4, 1, 2)
    assert ours["units_per_second"] == pytest.approx(50.0) and "ratio_to_baseline" not in ours | preset
    assert published["note"] == "not installed" and published["repeats"] == 0
    rates[picture_benchmarks.PUBLISHED] = 5.0
    ours, preset, published = picture_benchmarks.synthesizer_rows(4, 1, 2)
    assert (ours["ratio_to_baseline"], preset["ratio_to_baseline"]) == pytest.approx((10.0, 0.4))


def test_a_benchmark_that_fails_leaves_the_table_of_an_earlier_run(monkeypatch, tmp_path, capsys):
    (tmp_path / "localization.csv").write_text("kept\n")
    earlier = '{"machine": {}, "model": "bundled", "extent": {}}'  # which names no tables yet
    (tmp_path / "machine.json").write_text(earlier)

    def fails(*_):
        raise ValueError("maps: expected floats")

    monkeypatch.setattr(bench, "localization_rows", fails)
    assert main(["--quick", "--only", "localization", "--output-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: maps: expected floats\n"
    assert (tmp_path / "localization.csv").read_text() == "kept\n"
    names = [".machine.json.writing", "localization.csv", "machine.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "machine.json").read_text() == earlier
    monkeypatch.setattr(bench, "localization_rows", lambda *_: [])
    assert main(["--quick", "--only", "localization", "--output-dir", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == names[1:]
    assert json.loads((tmp_path / "machine.json").read_text())["files"] == names[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "sweep,speed"], "--only: unknown speed, expected some of machine, sweep"),
        (["--pictures", "0"], "--pictures: expected at least 1, got 0"),
        (["--layer-pictures", "-1"], "--layer-pictures: expected at least 1"),
        (["--repeats", "0"], "--repeats: expected at least 1"),
        (["--model", "nowhere", "--only", "sweep"], "--model nowhere: expected bundled, tiny-random or a folder"),
        (["--device", "cuda:99", "--only", "sweep"], "--device cuda:99: not available"),
    ],
)
def test_bad_input_gets_one_line(arguments, message, tmp_path, capsys):
    assert main(["--quick", *arguments, "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_laws_are_printed_as_sentences():
    table = pd.DataFrame({"kind": ["measured", "law"], "stage": ["sweep", "sweep"], "note": [None, "seconds = 1"]})
    assert bench.readable(table).splitlines()[-1] == "sweep: seconds = 1"
