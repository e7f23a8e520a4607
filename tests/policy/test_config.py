"""The configuration tree survives JSON, answers typing errors, and equals the YAML."""

import json
from pathlib import Path

import pytest
import yaml

from vega_policy.policy.config import PRESETS, PolicyConfig
from vega_policy.spec import ContractError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name):
    config = PolicyConfig.preset(name)
    assert PolicyConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(("name", "prior"), [("nano", "nano"), ("7b", "wan2_1")])
def test_the_yaml_equals_the_preset(name, prior):
    values = yaml.safe_load((CONFIGS / "policy" / f"{name}.yaml").read_text())
    values["prior"] = yaml.safe_load((CONFIGS / "prior" / f"{prior}.yaml").read_text())
    values["fusion"] = yaml.safe_load((CONFIGS / "fusion" / "token_gate.yaml").read_text())
    assert {**PolicyConfig.preset(name).to_dict(), "preset": name} == values


def test_a_partial_dictionary_changes_only_what_it_names():
    config = PolicyConfig.from_dict({"preset": "7b", "fusion": {"name": "residual_zero"}})
    assert config.fusion.name == "residual_zero"
    assert config.language == PolicyConfig.preset("7b").language


def test_all_unknown_keys_and_wrong_values_are_listed_with_advice():
    with pytest.raises(ContractError) as error:
        PolicyConfig.from_dict(
            {
                "languge": {},
                "prior": {"noise": "random", "blok_index": 2},
                "head": 3,
                "proprio_size": "eight",
                "semantic": {"dino": {"pixel_mean": [0.5, 0.5]}},
            }
        )
    for words in (
        "unknown key 'languge'; did you mean 'language'",
        "'prior.blok_index'; did you mean 'block_index'",
        "prior.noise is 'random', expected one of 'constant', 'keyed'",
        "head is 3, expected a group",
        "proprio_size is 'eight', expected int",
        "semantic.dino.pixel_mean is [0.5, 0.5]",
    ):
        assert words in str(error.value)


def test_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(ContractError, match="did you mean 'nano'"):
        PolicyConfig.preset("nanno")
