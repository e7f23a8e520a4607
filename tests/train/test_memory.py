"""The estimate before a run, against real tensors and against what upstream reports."""

import dataclasses
import logging

import pytest
import torch

from vega_policy.policy.config import PolicyConfig
from vega_policy.policy.empty import empty_model
from vega_policy.spec import ContractError
from vega_policy.testing.published import published_checkpoint, published_config
from vega_policy.testing.tiny_policy import tiny_config, tiny_policy
from vega_policy.train.config import TrainConfig
from vega_policy.train.lora import prepare_weights
from vega_policy.train.memory import GB, OVERHEAD, estimate, remedies, report_memory
from vega_policy.train.ranks import Ranks
from vega_policy.train.start import Start


def settings(policy=None, **changes):
    values = {
        "init_from": "x",
        "prior_path": "random",
        "batch_size": 8,
        "data": {"dirs": ["x"]},
        "optim": {"ema_decay": 0.0},
        "policy": policy or tiny_config().to_dict(),
        **changes,
    }
    return TrainConfig.from_dict(values)


@pytest.mark.parametrize("tune", ["full", "lora", "grafted"])
def test_weights_gradients_and_moments_are_those_of_a_real_step(tune):
    config = settings(tune=tune, base_dtype="bfloat16")
    model = tiny_policy().model
    prepare_weights(model, tune=tune, lora=config.lora, base_dtype=torch.bfloat16)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    moments = [t for s in optimiser.state.values() for t in s.values() if t.ndim]
    found = estimate(config)
    prior = sum(p.nbytes for p in model.vision.prior.parameters())
    assert found.weights == sum(p.nbytes for p in model.parameters()) - prior
    assert found.prior == prior
    assert found.gradients == sum(p.grad.nbytes for p in trained)
    assert found.optimiser == sum(t.nbytes for t in moments)
    assert found.trained == sum(p.numel() for p in trained)


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing():
    config = settings(tune="lora")
    small, large = (
        estimate(dataclasses.replace(config, batch_size=b)).activations for b in (4, 16)
    )
    assert 3.5 < large / small < 4.1
    lean = estimate(dataclasses.replace(config, gradient_checkpointing=True)).activations
    assert lean < estimate(config).activations


def test_dividing_weights_and_batch_leaves_each_process_less():
    config = settings(tune="full")
    one, many = (
        estimate(config),
        estimate(dataclasses.replace(config, parallel="fsdp"), world_size=4),
    )
    assert many.optimiser == pytest.approx(one.optimiser / 4, rel=0.01)
    assert many.activations < 0.3 * one.activations
    assert many.gathered > 0
    with pytest.raises(ContractError, match="multiple of 3"):
        estimate(config, world_size=3)


@pytest.mark.parametrize("kind", ["l1", "diffusion", "discrete"])
def test_the_sizes_are_those_of_the_checkpoint_that_is_trained(tmp_path, caplog, kind):
    """Not those of the preset; a graft counts, and what a base model lacks."""
    own = published_config(kind=kind)
    wanted = {**tiny_config().to_dict(), "head": own.to_dict()["head"], "fusion": {"name": "add"}}
    wanted["proprio_size"] = own.proprio_size
    found = []
    for is_base in (False, True):
        start = published_checkpoint(tmp_path / str(is_base), config=own, is_base=is_base)
        config = settings(wanted, init_from=str(start), graft=True, tune="full")
        with caplog.at_level(logging.INFO):
            report_memory(config, Ranks(torch.device("cpu")))
        found.append(caplog.messages[-1])
        model = empty_model(Start.of(config).policy_config)
        trained = sum(p.numel() for n, p in model.named_parameters() if "vision.prior." not in n)
        assert f"{trained:,} weights trained" in found[-1]
    assert found[0] == found[1]


def test_what_to_change_is_told_in_order_until_it_fits():
    config = settings(tune="full", optim={"ema_decay": 0.9}, lora={"rank": 1})
    steps = remedies(config, world_size=1, capacity=0)
    assert [what.partition("=")[0] for what, _ in steps] == [
        *("optim.ema_decay", "gradient_checkpointing", "batch_size", "batch_size", "batch_size"),
        "tune",
    ]
    totals = [after.total for _, after in steps]
    assert totals == sorted(totals, reverse=True)
    assert len(remedies(config, world_size=1, capacity=10 * OVERHEAD)) == 1


@pytest.mark.slow
def test_seven_billion_weights_are_near_upstreams_figures():
    """Upstream: 25.7 GB at batch 1, 62.5 GB at batch 8, in pure bfloat16 and without a prior."""
    policy = {**PolicyConfig.preset("7b").to_dict(), "fusion": {"name": "none"}}
    config = settings(policy, tune="lora", base_dtype="bfloat16", batch_size=1)
    one = estimate(config)
    eight = estimate(dataclasses.replace(config, batch_size=8))
    assert one.total / GB == pytest.approx(25.7, rel=0.15)
    assert eight.total / GB == pytest.approx(62.5, rel=0.15)
