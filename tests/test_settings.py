import pytest

from analysis.settings import CompareSettings, read_settings, with_overrides


def test_file_then_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("num-pictures: 32\nsteps: 8\nmethods: gate_ig, rollout_drop\n")
    settings = with_overrides(read_settings(path), {"steps": 4})
    assert settings == CompareSettings(num_pictures=32, steps=4, methods=("gate_ig", "rollout_drop"))


def test_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "run.yaml").write_text("")
    assert read_settings(tmp_path / "run.yaml") == CompareSettings()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("pictures: 3", "unknown key pictures, expected one of"),
        ("num_pictures: 1", "num_pictures: expected a whole number >= 2, got 1"),
        ("steps: many", "steps: expected a whole number >= 1, got 'many'"),
        ("steps: true", "steps: expected a whole number"),
        ("- a\n- b", "expected a table of settings, got list"),
        ("a: [", "not readable as YAML"),
        ("model: 3", "model: expected a text"),
        ("methods: 5", "methods: expected a list of names, got 5"),
        ("output_dir: [a]", "output_dir: expected a text"),
        ("methods: []", "methods: expected a list of names"),
        ("num_pictures: 99999999999999999999", "num_pictures: expected a whole number up to 2147483647, got 99999"),
        ("estimate: 99999999999999999999", "estimate: expected a whole number >= 3, up to 2147483647, got 99999"),
        ("seed: 99999999999999999999", "seed: expected a whole number up to 2147483647"),
        ("methods: " + "[" * 3_000 + "]" * 3_000, "not readable as YAML"),
        ("methods: " + "[" * 50 + "]" * 50, "methods: expected a list of names, got ([[["),
        ("methods: [a, [" + "b, " * 10_000 + "]]", "methods: expected a list of names, got ('a', ['b',"),
        ("methods: &a [x]\ntruths: *a", "line 2: found an alias (*), expected values written out"),
        ("steps: 3\nseed: 1\nsteps: 4", "line 3: steps: expected once, it is there twice"),
        ("num-pictures: 3\nnum_pictures: 4", "num_pictures: expected once, it is there with - and with _"),
        ("seed: 2001-99-99", "not readable as YAML"),
    ],
)
def test_bad_files_name_the_file_and_the_key(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"run\.yaml") as caught:
        read_settings(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_of_aliases_are_refused_at_once(tmp_path):
    """Thirty lines that stand for 10^30 names."""
    lines = ["methods:", "- &a0 [x]", *(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 31))]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"run\.yaml: .*line 3: found an alias") as caught:
        read_settings(tmp_path / "run.yaml")
    assert len(str(caught.value)) < 500
