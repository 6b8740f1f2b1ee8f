"""Defaults, YAML and flags."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixpol_models.backbones import BACKBONES, build_backbone, own_options
from mixpol_models.training import TrainConfig, load_config


def test_the_shipped_file_states_every_default() -> None:
    import yaml

    import mixpol_models

    text = (Path(mixpol_models.__file__).parent / "configs" / "din.yaml").read_text()
    assert list(yaml.safe_load(text)) == list(TrainConfig.model_fields)
    assert load_config("din") == TrainConfig()


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_a_file(name: str) -> None:
    config = load_config(name)
    assert config.backbone == name
    assert set(config.options) <= set(own_options(name))
    build_backbone(name, n_items=3, n_users=2, n_contexts=1, **config.backbone_options())


def test_the_budget_is_the_longest_history() -> None:
    config = TrainConfig(backbone="transformer", budget=7, options={"positions": "concatenated"})
    assert config.backbone_options()["max_length"] == 7
    assert config.backbone_options()["positions"] == "concatenated"
    assert "max_length" not in TrainConfig(backbone="mixformer").backbone_options()


def test_checking_a_backbone_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    TrainConfig(backbone="mixformer", options={"decoupled": True})
    assert torch.equal(before, torch.get_rng_state())


def test_options_make_the_round_trip(tmp_path: Path) -> None:
    config = TrainConfig(backbone="hyformer", options={"encoder": "swiglu", "queries": 4})
    file = tmp_path / "a.yaml"
    file.write_text(config.to_yaml())
    assert load_config(file) == config


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
        ("backbone: onetran", "backbone is 'onetran', expected 'din', 'din_two_lists'"),
        (
            "backbone: onetrans\noptions: {layer: 2}",
            "options has 'layer', which backbone 'onetrans' does not take there",
        ),
        ("backbone: onetrans\noptions: {max_length: 9}", "options has 'max_length'"),
        ("options: {layers: 2}", "options has 'layers', which backbone 'din' does not take there"),
        ("backbone: onetrans\nnormalize: softmax", "normalize is 'softmax', which backbone 'onetrans' does not take"),
        ("backbone: onetrans\noptions: {heads: 3}", "heads is 3, expected a divisor of 16"),
        ("backbone: onetrans\noptions: {layers: two}", "backbone 'onetrans' with options {'layers': 'two'}"),
        ("options: 3", "options is 3, expected"),
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
