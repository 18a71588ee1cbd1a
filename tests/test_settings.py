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
    ],
)
def test_bad_files_name_the_file_and_the_key(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"run\.yaml") as caught:
        read_settings(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
