"""What is computed anew and what is not, when a run grows, shrinks, changes or is killed; and always the same bytes."""

import hashlib
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny_models import tiny_model

from analysis import passes, piecework, run_folder, truth_passes
from analysis.compare import main
from analysis.explain import explain
from analysis.models import OpenedModel, make_batch, open_model
from analysis.pictures import Pictures, PictureSource, open_source
from analysis.settings import CompareSettings
from analysis.timings import read_timings
from attribution.ablation import zero_ablation
from attribution.batch import MethodSettings
from attribution.gates import gate_ixg
from attribution.method import Method
from attribution.methods import METHODS as METHODS_TABLE
from attribution.methods import run_method
from data_synth import ChirpDataset, SynthConfig
from data_synth.folder import write_folder

MOST = 40
METHODS = ("gate_ixg", "cls_mass")
EVERYTHING = {"attention_maps", "cls_mass", "ablation_zero", "gate_ixg"}
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def opened():
    return OpenedModel(tiny_model(), "tiny", "0" * 64, is_control=True)


@pytest.fixture(scope="module")
def pictures(opened):
    rng = np.random.default_rng(0)
    size, num_targets = opened.model.config.image_size, len(opened.model.config.target_names)
    return Pictures(
        images=rng.integers(0, 256, (MOST, size, size, 3), dtype=np.uint8),
        labels=rng.normal(size=(MOST, num_targets)) * 10,
        indices=np.arange(MOST),
        patch_labels=None,
        masks=None,
        mean_image=np.full((size, size, 3), 127.5),
    )


def source_of(pictures, count):
    def draw(rows):
        chosen = list(rows)
        assert max(chosen) < count
        named = {name: getattr(pictures, name)[chosen] for name in ("images", "labels", "indices")}
        return replace(pictures, **named)

    return PictureSource(count, draw, {})


class Computed:
    """How often each score of each picture was computed, and after how many calls to fail."""

    def __init__(self):
        self.forget()

    def forget(self, stop_at=None, error=KeyboardInterrupt):
        self.counts, self.calls, self.stop_at, self.error = Counter(), 0, stop_at, error

    def add(self, names, batch):
        if self.calls == self.stop_at:
            raise self.error
        self.calls += 1
        self.counts.update((name, row) for name in names for row in batch.indices.tolist())

    @property
    def rows(self):
        """Score -> numbers of the pictures it was computed for, none of them twice."""
        assert set(self.counts.values()) <= {1}
        names = {name for name, _ in self.counts}
        return {name: sorted(row for other, row in self.counts if other == name) for name in names}


@pytest.fixture
def computed(monkeypatch):
    found = Computed()
    read, sweep, run = passes.read_attention_methods, truth_passes.zero_ablation, passes.run_with_extras

    def counted_read(model, batch, dials, *, heads, pixels, head_maps):
        found.add([*heads, *pixels, *(["attention_maps"] if head_maps else [])], batch)
        return read(model, batch, dials, heads=heads, pixels=pixels, head_maps=head_maps)

    def counted_sweep(model, batch, *, heads=None, **rest):
        found.add(["ablation_zero" if heads is None else "ablation_zero_poor"], batch)
        return sweep(model, batch, heads=heads, **rest)

    def counted_run(name, model, batch, dials):
        found.add([name], batch)
        return run(name, model, batch, dials)

    monkeypatch.setattr(passes, "read_attention_methods", counted_read)
    monkeypatch.setattr(truth_passes, "zero_ablation", counted_sweep)
    monkeypatch.setattr(passes, "run_with_extras", counted_run)
    return found


def run_of(opened, pictures, count, folder, *, methods=METHODS, overwrite=False, progress=None, **changes):
    settings = CompareSettings(model="tiny", methods=methods, truths=("zero",), num_pictures=count, **changes)
    report = (lambda *_: None) if progress is None else progress
    return explain(opened, source_of(pictures, count), settings, folder, report, overwrite=overwrite)


def each(names, rows):
    return {name: list(rows) for name in names}


def digests(folder, names=None):
    return {
        path.stem: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*.safetensors"))
        if names is None or path.stem in names
    }


def assert_tidy(folder, names=EVERYTHING):
    """Score files and timings alone, and pieces kept for a run that wants them again."""
    found = {path.name for path in folder.iterdir() if path.suffix != ".parts"}
    assert found == {"timings.json", *(f"{name}.safetensors" for name in names)}
    assert all(part.name.startswith("kept-") for part in folder.glob("*.parts/*"))


@pytest.fixture(scope="module")
def fresh(opened, pictures, tmp_path_factory):
    """Digests of an undisturbed run in a new folder."""

    def run(count, **changes):
        folder = tmp_path_factory.mktemp("fresh")
        run_of(opened, pictures, count, folder, **changes)
        return digests(folder)

    return run


def test_growing_computes_new_pieces_and_the_ragged_one(opened, pictures, tmp_path, computed, fresh):
    run_of(opened, pictures, 20, tmp_path)
    assert computed.rows == each(EVERYTHING, range(20))
    computed.forget()
    grown = run_of(opened, pictures, 36, tmp_path)
    assert computed.rows == each(EVERYTHING, range(16, 36))
    assert_tidy(tmp_path)
    assert digests(tmp_path) == fresh(36)
    assert len(grown.survey) == len(grown.scores["gate_ixg"]) == len(grown.maps["cls"]) == 36
    for row in (3, 17, 35):  # the pieces are in their places: a picture's numbers are those it has alone
        batch = make_batch(opened, source_of(pictures, 36).draw([row]))
        alone = run_method("gate_ixg", opened.model, batch, MethodSettings())[0].numpy()
        np.testing.assert_allclose(grown.scores["gate_ixg"][row], alone, rtol=1e-5, atol=1e-6 * np.abs(alone).max())
        effect = zero_ablation(opened.model, batch).delta_loss[0].numpy()
        np.testing.assert_allclose(grown.truth.delta_loss[row], effect, rtol=1e-8, atol=1e-12)
    assert set(grown.timings) == EVERYTHING and all(one["seconds"] > 0 for one in grown.timings.values())
    known, pieces = read_timings(tmp_path), [piece.sha256 for piece in grown.survey.pieces()]
    for name, one in grown.timings.items():  # the price as measured, of old pieces and new
        seconds, forward = (sum(known[name][sha][key] for sha in pieces) for key in ("seconds", "forward_seconds"))
        assert forward > 0 and one["forwards_measured"] == pytest.approx(seconds / forward)


def test_the_unit_of_prices_is_timed_again_after_whatever_took_long(opened, pictures, tmp_path, monkeypatch):
    """A pass that takes many forwards has one timed behind it; those that take few share one."""
    units, now = [], [0.0]

    def unit(*_):
        units.append(float(len(units) + 1))
        return units[-1]

    def lasting(compute, batch, size, name):
        now[0] += 1000.0 if name.startswith("ablation") else 0.5
        return compute(batch, size.pictures)

    monkeypatch.setattr(piecework, "plain_forward_seconds", unit)
    monkeypatch.setattr(piecework, "compute_fitting", lasting)
    monkeypatch.setattr(piecework.time, "perf_counter", lambda: now[0])
    done = run_of(opened, pictures, 5, tmp_path, methods=("cls_mass", "gate_saliency", "gate_ixg"))
    found = {name: next(iter(pieces.values()))["forward_seconds"] for name, pieces in read_timings(tmp_path).items()}
    assert found == {"attention_maps": 1, "cls_mass": 1, "ablation_zero": 2, "gate_saliency": 3, "gate_ixg": 3}
    assert units == [1, 2, 3] and done.timings["ablation_zero"]["forwards_measured"] == 1000 / 2


@pytest.mark.parametrize(("count", "again"), [(32, []), (20, range(16, 20)), (16, []), (7, range(7))])
def test_shrinking_computes_the_ragged_piece_alone(opened, pictures, tmp_path, computed, fresh, count, again):
    run_of(opened, pictures, 36, tmp_path)
    computed.forget()
    run_of(opened, pictures, count, tmp_path)
    assert computed.rows == (each(EVERYTHING, again) if again else {})
    assert_tidy(tmp_path)
    assert digests(tmp_path) == fresh(count)
    computed.forget()
    run_of(opened, pictures, 36, tmp_path)  # what was computed once is still there
    assert computed.rows == {} and digests(tmp_path) == fresh(36)


def test_the_same_again_computes_and_writes_nothing(opened, pictures, tmp_path, computed):
    first = run_of(opened, pictures, 20, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    computed.forget()
    second = run_of(opened, pictures, 20, tmp_path)
    assert not computed.counts and {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    assert first.timings == second.timings
    np.testing.assert_array_equal(first.truth.delta_loss, second.truth.delta_loss)


@pytest.mark.parametrize("added", ["gate_ixg", "cls_mass", "rollout_drop", "random"])
def test_another_method_computes_that_method_alone(opened, pictures, tmp_path, computed, fresh, added):
    others = tuple(name for name in METHODS if name != added)
    run_of(opened, pictures, 20, tmp_path, methods=others)
    before = digests(tmp_path)
    computed.forget()
    run_of(opened, pictures, 20, tmp_path, methods=(*others, added))
    assert computed.rows == {added: list(range(20))}
    assert digests(tmp_path, before) == before and set(digests(tmp_path)) == {*before, added}
    assert digests(tmp_path) == fresh(20, methods=(*others, added))


def test_more_pictures_and_more_methods_at_once(opened, pictures, tmp_path, computed, fresh):
    run_of(opened, pictures, 20, tmp_path, methods=("cls_mass",))
    computed.forget()
    run_of(opened, pictures, 36, tmp_path)
    old = each(EVERYTHING - {"gate_ixg"}, range(16, 36))
    assert computed.rows == {**old, "gate_ixg": list(range(36))}
    assert digests(tmp_path) == fresh(36)


def test_overwrite_computes_everything(opened, pictures, tmp_path, computed):
    run_of(opened, pictures, 20, tmp_path, methods=(*METHODS, "random"))
    (tmp_path / "notes.txt").write_text("mine")
    before = digests(tmp_path)
    computed.forget()
    run_of(opened, pictures, 20, tmp_path, overwrite=True)
    assert computed.rows == each(EVERYTHING, range(20))
    # Scores that were not asked for are gone too, other people's files are not.
    assert digests(tmp_path) == {name: digest for name, digest in before.items() if name != "random"}
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert set(read_timings(tmp_path)) == EVERYTHING


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"batch_size": 8}, EVERYTHING),
        ({"seed": 1}, set(METHODS)),
        ({"steps": 3}, set()),  # none of these methods takes steps
        ({"bootstrap_replicates": 10, "num_permutations": 10}, set()),
    ],
)
def test_a_changed_setting_computes_what_depends_on_it(opened, pictures, tmp_path, computed, fresh, changes, again):
    run_of(opened, pictures, 20, tmp_path)
    computed.forget()
    run_of(opened, pictures, 20, tmp_path, **changes)
    assert computed.rows == each(again, range(20))
    assert digests(tmp_path) == fresh(20, **changes)


def test_another_model_computes_everything(opened, pictures, tmp_path, computed):
    run_of(opened, pictures, 20, tmp_path)
    computed.forget()
    run_of(replace(opened, sha256="1" * 64), pictures, 20, tmp_path)
    assert computed.rows == each(EVERYTHING, range(20))


@pytest.mark.parametrize("name", ["images", "labels"])
def test_a_changed_picture_computes_its_piece(opened, pictures, tmp_path, computed, name):
    run_of(opened, pictures, 36, tmp_path)
    values = getattr(pictures, name).copy()
    values[18] += 1
    computed.forget()
    run_of(opened, replace(pictures, **{name: values}), 36, tmp_path)
    assert computed.rows == each(EVERYTHING, range(16, 32))


def test_a_damaged_score_file_is_computed_anew(opened, pictures, tmp_path, computed):
    run_of(opened, pictures, 20, tmp_path)
    before, path = digests(tmp_path), tmp_path / "gate_ixg.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    computed.forget()
    run_of(opened, pictures, 20, tmp_path)
    assert computed.rows == {"gate_ixg": list(range(20))} and digests(tmp_path) == before


@pytest.mark.parametrize("change", ["a bit", "a type"])
def test_numbers_that_were_changed_in_a_file_are_computed_anew(opened, pictures, tmp_path, computed, change):
    """One flipped bit among the last picture's numbers costs its piece, an array of another type all pieces."""
    run_of(opened, pictures, 20, tmp_path)
    before, path = digests(tmp_path), tmp_path / "gate_ixg.safetensors"
    if change == "a bit":
        content = bytearray(path.read_bytes())
        content[-3] ^= 2
        path.write_bytes(bytes(content))
    else:
        with safe_open(path, framework="numpy") as file:
            metadata, scores = file.metadata(), file.get_tensor("scores")
        save_file({"scores": (scores * 10).astype(np.int8)}, path, metadata)
    computed.forget()
    found = run_of(opened, pictures, 20, tmp_path)
    assert computed.rows == {"gate_ixg": list(range(16, 20) if change == "a bit" else range(20))}
    assert digests(tmp_path) == before
    batch = make_batch(opened, source_of(pictures, 20).draw(range(16, 20)))
    expected = run_method("gate_ixg", opened.model, batch, MethodSettings()).numpy()
    np.testing.assert_allclose(found.scores["gate_ixg"][16:], expected, rtol=1e-6)


def test_a_method_that_cannot_be_told_from_another_is_never_reused(opened, pictures, tmp_path, capsys, monkeypatch):
    device = open("/dev/zero", "rb")  # what it gives, no digest tells

    def fickle(model, batch, settings):
        return (-1.0) ** (device.tell() + len(device.read(1))) * gate_ixg(model, batch, settings)

    monkeypatch.setitem(METHODS_TABLE, "mine", Method("mine", fickle))
    first = run_of(opened, pictures, 8, tmp_path, methods=("mine",))
    second = run_of(opened, pictures, 8, tmp_path, methods=("mine",))
    np.testing.assert_array_equal(first.scores["mine"], -second.scores["mine"])
    device.close()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mine: ")]
    assert len(lines) == 2 and all("computed anew every time" in line for line in lines)


def test_a_changed_sign_in_what_a_method_holds_is_another_method(opened, pictures, tmp_path, computed, monkeypatch):
    def method_of(sign):
        return lambda model, batch, settings: sign * gate_ixg(model, batch, settings)

    found = []
    for sign in (torch.tensor(1.0), torch.tensor(1.0), torch.tensor(-1.0)):
        monkeypatch.setitem(METHODS_TABLE, "mine", Method("mine", method_of(sign)))
        computed.forget()
        found.append((run_of(opened, pictures, 8, tmp_path, methods=("mine",)).scores["mine"], "mine" in computed.rows))
    assert [again for _, again in found] == [True, False, True]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][0], -found[2][0])


def test_a_method_put_in_the_place_of_another_is_run(opened, pictures, tmp_path, monkeypatch):
    """Those that give more than scores too: nothing is dispatched by name."""
    usual = run_of(opened, pictures, 8, tmp_path, methods=("gate_ixg_out",))
    monkeypatch.setitem(METHODS_TABLE, "gate_ixg_out", Method("gate_ixg_out", gate_ixg))
    other = run_of(opened, pictures, 8, tmp_path, methods=("gate_ixg_out",))
    expected = run_of(opened, pictures, 8, tmp_path, methods=("gate_ixg",)).scores["gate_ixg"]
    np.testing.assert_array_equal(other.scores["gate_ixg_out"], expected)
    assert not np.allclose(usual.scores["gate_ixg_out"], expected)


def test_wherever_a_run_is_stopped_it_goes_on(opened, pictures, tmp_path, computed, fresh):
    expected, stop_at = fresh(36), 0
    computed.forget()
    while True:
        folder = tmp_path / str(stop_at)
        computed.forget(stop_at)
        try:
            run_of(opened, pictures, 36, folder)
        except KeyboardInterrupt:
            first = computed.counts
            computed.forget()
            run_of(opened, pictures, 36, folder)
            # Together once: what was finished is not computed again, and what was not is.
            assert set((first + computed.counts).values()) == {1}
            assert first.total() + computed.counts.total() == 4 * 36
            assert digests(folder) == expected
            assert_tidy(folder)
            stop_at += 1
        else:
            break
    assert stop_at == 9  # three pieces of three passes


def test_an_error_keeps_what_is_finished(opened, pictures, tmp_path, computed):
    source, drawn = source_of(pictures, 36), []

    def draw(rows):
        drawn.append(tuple(rows))
        if 20 in rows:
            raise OSError("picture 20: not readable")
        return source.draw(rows)

    settings = CompareSettings(model="tiny", methods=METHODS, truths=("zero",), num_pictures=36)
    with pytest.raises(OSError, match="picture 20: not readable"):
        explain(opened, replace(source, draw=draw), settings, tmp_path, lambda *_: None)
    assert computed.rows == each({"attention_maps", "cls_mass"}, range(16))
    computed.forget()
    run_of(opened, pictures, 36, tmp_path)
    assert computed.rows["attention_maps"] == list(range(16, 36)) and computed.rows["gate_ixg"] == list(range(36))


def test_memory_that_does_not_suffice_halves_the_batch_from_then_on(
    opened, pictures, tmp_path, computed, monkeypatch, capsys
):
    expected = run_of(opened, pictures, 36, tmp_path / "enough").scores["gate_ixg"]
    counted, sizes = passes.run_with_extras, []

    def scarce(name, model, batch, dials):
        sizes.append(len(batch))
        if len(batch) > 4:
            raise MemoryError
        return counted(name, model, batch, dials)

    monkeypatch.setattr(passes, "run_with_extras", scarce)
    computed.forget()
    found = run_of(opened, pictures, 36, tmp_path / "scarce").scores["gate_ixg"]
    assert sizes == [16, 8] + [4] * 9
    assert computed.rows["gate_ixg"] == list(range(36))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: gate_ixg")]
    assert [line.split("going on with ")[1] for line in warnings] == [f"{n} pictures at a time" for n in (8, 4)]


def test_progress_ends_at_the_cost_of_everything_whatever_is_known(opened, pictures, tmp_path):
    def cost():
        done = Counter()

        def progress(name, forwards):
            done[name] += forwards

        run_of(opened, pictures, 36, tmp_path, progress=progress)
        return done

    first, second = cost(), cost()
    assert set(first) == {"attention_maps", "ablation_zero", "gate_ixg"} and first["attention_maps"] == 36
    assert second == pytest.approx(first)


def test_an_estimate_goes_on_too(opened, pictures, tmp_path, computed, fresh):
    expected = fresh(36, estimate=20)
    for stop_at in (3, 5, 6):
        folder = tmp_path / str(stop_at)
        computed.forget(stop_at)
        with pytest.raises(KeyboardInterrupt):
            run_of(opened, pictures, 36, folder, estimate=20)
        first = computed.counts
        computed.forget()
        run_of(opened, pictures, 36, folder, estimate=20)
        both = first + computed.counts
        assert set(both.values()) == {1}
        assert sum(name == "ablation_zero" for name, _ in both) == 20
        assert digests(folder) == expected


def test_more_pictures_of_a_folder(tmp_path, computed):
    list(write_folder(ChirpDataset("test", 20, SynthConfig(num_layouts=4)), tmp_path / "chirps"))
    opened = open_model("tiny-random", "cpu")

    def run(count, folder):
        names = opened.model.config.target_names
        source = open_source(str(tmp_path / "chirps"), count, seed=0, image_size=224, patch_size=14, target_names=names)
        settings = CompareSettings(model="tiny-random", methods=("cls_mass",), truths=("zero",), num_pictures=count)
        computed.forget()
        return explain(opened, source, settings, folder, lambda *_: None)

    everything = EVERYTHING - {"gate_ixg"}
    run(18, tmp_path / "scores")
    found = run(20, tmp_path / "scores")
    assert computed.rows == each(everything, range(16, 20))
    assert found.survey.masks.shape == (20, 3, 224, 224)
    run(20, tmp_path / "fresh")
    assert digests(tmp_path / "scores") == digests(tmp_path / "fresh")
    picture = tmp_path / "chirps" / "images" / "0000018.png"
    pixels = np.array(Image.open(picture))
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(picture)
    run(20, tmp_path / "scores")
    # One of 20 pictures moves the mean that all pieces depend on.
    assert computed.rows == each(everything, range(20))


def test_a_run_that_is_killed_twice_gives_the_same_bytes(tmp_path, computed, monkeypatch):
    monkeypatch.setattr(run_folder, "write_figures", lambda *_, **__: [])  # half of the time, and no tables
    few = ["--bootstrap-replicates", "20", "--num-permutations", "20"]
    arguments = [
        "--config",
        "analysis/configs/tiny.yaml",
        "--num-pictures",
        "40",
        "--methods",
        "gate_ixg,cls_mass",
        "--truths",
        "zero",
    ]
    arguments = [*arguments, *few, "--output-dir"]
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for name in ("attention_maps", "gate_ixg"):
        process = subprocess.Popen(
            [sys.executable, "-m", "analysis.compare", *arguments, str(killed)],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not list((killed / "scores" / f"{name}.parts").glob("*.safetensors")):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (killed / "manifest.json").exists() and not list(killed.glob("*.csv"))
    (killed / "scores" / f".gate_ixg.safetensors.{process.pid}.tmp").write_bytes(b"half")
    assert (killed / "scores" / "attention_maps.safetensors").exists()
    assert main([*arguments, str(killed)]) == 0
    # The attention was finished, and at least the first piece of the others.
    assert {name: rows[0] >= 16 for name, rows in computed.rows.items()} == {"ablation_zero": True, "gate_ixg": True}
    assert main([*arguments, str(undisturbed)]) == 0
    assert_tidy(killed / "scores")
    assert digests(killed / "scores") == digests(undisturbed / "scores")
    tables = {path.name for path in undisturbed.glob("*.csv")}
    assert {"head_scorecard.csv", "agreement.csv", "localization.csv", "methods.csv"} <= tables
    assert {path.name for path in killed.glob("*.csv")} == tables
    for name in tables - {"methods.csv"}:
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert pd.read_csv(killed / "methods.csv")["seconds"].gt(0).all()
