"""Settings that no run could have are one sentence each, before anything is loaded."""

import pytest
import torch

from vega_policy.spec import ContractError
from vega_policy.train.config import TrainConfig
from vega_policy.train.imitation import train
from vega_policy.train.ranks import Ranks
from vega_policy.vision.prior import PRIORS, WEIGHTLESS

GOOD = {"prior_path": "random", "data": {"dirs": ["x"]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": "lora"}, "tune is 'lora' but init_from is not set"),
        ({"tune": "grafted"}, "tune is 'grafted' but init_from is not set"),
        ({"graft": True}, "graft is true but init_from is not set"),
        ({"statistics": "checkpoint"}, "statistics is 'checkpoint' but init_from is not set"),
        (
            {"base_dtype": "bfloat16", "precision": "float32"},
            "base_dtype is 'bfloat16' but precision is 'float32'",
        ),
        ({"base_dtype": "float16"}, "base_dtype is 'float16', expected one of"),
        ({"tune": "qlora"}, "tune is 'qlora', expected one of 'full', 'lora', 'grafted'"),
        ({"lora": {"rank": 0}}, "lora.rank is 0, expected at least 1"),
        ({"policy": {"prior": {"name": "wann"}}}, "unknown prior 'wann'; did you mean 'wan'"),
        ({"policy": {"fusion": {"name": "ad"}}}, "unknown fusion 'ad'; did you mean 'add'"),
        ({"prior_path": None}, "prior_path is not set, expected the directory or hub id of prior"),
        ({"data": {"dirs": ["x"], "augment": {"prior_dropout": 1.0}}}, "prior_dropout is 1.0"),
        (
            {"data": {"dirs": ["x"], "augment": {"crop": 0.1, "style": "openvla"}}},
            "set data.features.cached=false",
        ),
    ],
)
def test_bad_settings_say_what_to_do(changes, message):
    TrainConfig.from_dict(GOOD)
    with pytest.raises(ContractError) as caught:
        TrainConfig.from_dict({**GOOD, **changes})
    assert message in str(caught.value)


def test_only_priors_with_weights_ask_for_them():
    assert {"zero", "noise", "layer_norm", "precomputed"} == WEIGHTLESS
    for name in PRIORS:
        for start in ({}, {"init_from": "x", "graft": True}):
            values = {**GOOD, **start, "prior_path": None, "policy": {"prior": {"name": name}}}
            if name in WEIGHTLESS:
                TrainConfig.from_dict(values)
            else:
                with pytest.raises(ContractError, match=f"of prior '{name}'"):
                    TrainConfig.from_dict(values)
            values["policy"]["fusion"] = {"name": "none"}
            TrainConfig.from_dict(values)
    TrainConfig.from_dict({**GOOD, "prior_path": None, "init_from": "x"})


def test_a_batch_that_cannot_be_divided_is_refused_before_anything_is_looked_at():
    ranks = Ranks(torch.device("cpu"))
    ranks.size = 3
    with pytest.raises(ContractError, match="a batch of 64 cannot be divided equally among 3"):
        train(TrainConfig.from_dict(GOOD), ranks=ranks)
