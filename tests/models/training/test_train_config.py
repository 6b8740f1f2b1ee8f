"""Defaults, YAML and flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixpol_models.training import TrainConfig, load_config


def test_the_shipped_file_states_every_default() -> None:
    import yaml

    import mixpol_models

    text = (Path(mixpol_models.__file__).parent / "configs" / "din.yaml").read_text()
    assert list(yaml.safe_load(text)) == list(TrainConfig.model_fields)
    assert load_config("din") == TrainConfig()


def test_round_trip(tmp_path: Path) -> None:
    config = TrainConfig(sequence="mixed", negative_share=0.5, tower_units=(8,), output="somewhere", seed=3)
    file = tmp_path / "a.yaml"
    file.write_text(config.to_yaml())
    assert load_config(file) == config


def test_flags_override_the_file_and_absent_flags_do_not(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("budget: 7\nfusion: bias\n")
    config = load_config(file, {"budget": 9, "fusion": None, "user_embedding": False})
    assert (config.budget, config.fusion, config.user_embedding) == (9, "bias", False)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# nothing\n")
    assert load_config(file) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fusoin: bias", "'fusoin' is no setting: did you mean 'fusion'?"),
        ("zzz: 1", "--print-config"),
        ("budget: 0", "budget is 0, expected greater than or equal to 1"),
        ("fusion: both", "fusion is 'both', expected 'none', 'bias' or 'tapf'"),
        ("sequence: positive\nnegative_share: 0.5", "negative_share is 0.5 with sequence 'positive'"),
        ("precision: fp16\naccelerator: cpu", "take 'bf16'"),
        ("- a", "holds a list, expected 'name: value' lines"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        load_config(file)
    assert words in str(error.value)


def test_no_such_file() -> None:
    with pytest.raises(ValueError, match=r"config is 'dni', where there is no file; expected a path or one of"):
        load_config("dni")
