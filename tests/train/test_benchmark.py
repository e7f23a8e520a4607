"""The training benchmark measures a real update."""

import pytest
import torch

from vega_policy.testing.tiny_policy import tiny_policy
from vega_policy.train.benchmark import measure_training
from vega_policy.train.lora import LoraConfig, prepare_weights


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_speed_and_share_of_the_machine_are_measured(tune):
    policy = tiny_policy()
    prepare_weights(policy.model, tune=tune, lora=LoraConfig(rank=2))
    before = policy.model.head.fc_out.weight.clone()
    speed = measure_training(policy, batch_size=2, accumulate=2, updates=2, precision=torch.float32)
    assert speed.samples_per_s == pytest.approx(4 / speed.update_s)
    assert 0 < speed.utilisation < 1
    assert speed.trained == sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    assert not torch.equal(policy.model.head.fc_out.weight, before)
