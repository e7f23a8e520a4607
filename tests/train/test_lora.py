"""Adapters start as nothing, train what the recipe trains, and merge into what they were."""

import pytest
import torch

from vega_policy.policy import from_pretrained
from vega_policy.policy.config import PolicyConfig
from vega_policy.policy.empty import empty_model
from vega_policy.spec import ContractError
from vega_policy.testing.tiny_policy import tiny_config, tiny_observation, tiny_policy
from vega_policy.train.lora import (
    GRAFTED,
    WHOLE,
    LoraConfig,
    adapted_modules,
    merge_lora,
    prepare_weights,
)
from vega_policy.vision.fusion import FUSIONS

RANK = 4


def adapted(policy, **changes):
    options = {"tune": "lora", "lora": LoraConfig(rank=RANK, alpha=2), **changes}
    prepare_weights(policy.model, **options)
    return policy


def moved(policy):
    """Give every adapter something to say."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def actions(policy):
    (chunk,) = policy.act([tiny_observation()], keys=[0])
    return torch.from_numpy(chunk.actions)


def test_new_adapters_change_nothing():
    policy = tiny_policy()
    before = actions(policy)
    assert torch.equal(actions(adapted(policy)), before)


def test_adapters_are_on_every_linear_layer_and_patch_embedding_of_the_recipe():
    model = adapted(tiny_policy()).model
    found = {n.partition(".lora_A.")[0] for n, _ in model.named_parameters() if ".lora_A." in n}
    assert "vision.semantic.dino.embeddings.patch_embeddings.projection" in found
    assert "vision.semantic.siglip.embeddings.patch_embedding" in found
    assert {f"vision.semantic_projector.fc{i}" for i in (1, 2, 3)} <= found
    assert {f"language.layers.1.mlp.{p}_proj" for p in ("gate", "up", "down")} <= found
    assert not [name for name in found if name.startswith(WHOLE) or "prior" in name]
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert trained == {n for n, _ in model.named_parameters() if n.startswith(WHOLE)}


def test_the_first_factor_has_the_recipes_spread_and_comes_from_the_seed():
    one, same, other = (
        dict(adapted(tiny_policy(), seed=s, lora=LoraConfig(rank=16)).model.named_parameters())
        for s in (0, 0, 1)
    )
    names = [n for n in one if ".lora_A." in n]
    values = torch.cat([one[n].flatten() for n in names])
    assert values.std().item() == pytest.approx(1 / 16, rel=0.03)
    assert all(torch.equal(one[n], same[n]) for n in names)
    assert not torch.equal(one[names[0]], other[names[0]])


def test_base_weights_are_short_and_frozen_trained_ones_long():
    model = adapted(tiny_policy(), base_dtype=torch.bfloat16).model
    for name, parameter in model.named_parameters():
        if not name.startswith("vision.prior."):
            expected = torch.float32 if parameter.requires_grad else torch.bfloat16
            assert parameter.dtype == expected, name
    assert model.language.rotary_emb.inv_freq.dtype == torch.float32


def test_grafted_trains_the_new_parts_alone():
    model = adapted(tiny_policy(), tune="grafted").model
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if n.startswith(GRAFTED)}


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize(
    "changes",
    [
        *({"fusion": {"name": name}} for name in FUSIONS),
        {"prior": {"name": "layer_norm", "width": 32}, "fusion": {"name": "prior_only"}},
        {"head": {"kind": "diffusion"}, "semantic": {"film": True}},
        {"head": {"kind": "discrete"}, "language": {"vocab_size": 640}, "proprio_size": 0},
    ],
    ids=str,
)
def test_every_trained_weight_gets_a_gradient(tune, changes):
    """Processes that share a batch wait for all of them."""
    policy = adapted(tiny_policy(config=tiny_config().changed(changes)), tune=tune)
    generator = torch.Generator().manual_seed(0)
    output = policy.model.train()(
        torch.randint(0, 256, (2, 2, 3, 32, 32), generator=generator),
        torch.rand(2, 8, generator=generator),
        *policy.processor.tokenise(["open the drawer", "pick up the milk"]),
        keys=[0, 1],
        targets=torch.rand(2, 8, 7, generator=generator),
    )
    output.loss.backward()
    without = {n for n, p in policy.model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()


def test_a_policy_without_a_graft_has_no_grafted_parts_to_train():
    policy = tiny_policy(config=tiny_config().changed({"fusion": {"name": "none"}}))
    with pytest.raises(ContractError, match="graft=true"):
        adapted(policy, tune="grafted")


def test_a_merged_policy_answers_as_its_adapters_did_and_can_be_loaded(tmp_path):
    policy = moved(adapted(tiny_policy()))
    with_adapters = actions(policy)
    merged = merge_lora(policy)
    assert not [n for n, _ in merged.model.named_parameters() if "lora" in n or "base_layer" in n]
    torch.testing.assert_close(actions(merged), with_adapters, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(actions(from_pretrained(tmp_path / "merged")), actions(merged))
    # The adapters do say something, and the policy in training is as it was.
    assert (with_adapters - actions(adapted(tiny_policy()))).abs().max() > 1e-2
    assert torch.equal(actions(policy), with_adapters)


def test_merging_adds_in_float32_and_rounds_once():
    policy = moved(adapted(tiny_policy(), base_dtype=torch.bfloat16))
    merged = merge_lora(policy).model.state_dict()
    layers = dict(policy.model.named_modules())
    for name in adapted_modules(tiny_policy().model):
        layer = layers[name]
        exact = layer.base_layer.weight.float() + layer.get_delta_weight("default")
        assert merged[f"{name}.weight"].dtype == torch.bfloat16
        torch.testing.assert_close(
            merged[f"{name}.weight"].float(), exact.bfloat16().float(), rtol=2**-7, atol=1e-6
        )


def test_the_count_of_weights_is_the_published_one_plus_what_differs_on_purpose():
    """The published adapter has 110,828,288 weights.

    Ours has separate adapters on query, key and value of the towers, where upstream's layers hold
    the three in one, and none on what never gets a gradient.
    """
    rank = 32
    model = empty_model(PolicyConfig.preset("7b"))
    prepare_weights(model, tune="lora", lora=LoraConfig(rank=rank))
    ours = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)

    def adapter(source, target):
        return rank * (source + target)

    def tower(width, mlp, blocks, *, fused=True):
        qkv = adapter(width, 3 * width) if fused else 3 * adapter(width, width)
        layers = qkv + adapter(width, width) + 2 * adapter(width, mlp)
        return adapter(3 * 14 * 14, width) + blocks * layers

    language = 32 * (4 * adapter(4096, 4096) + 3 * adapter(4096, 11008))
    projector = adapter(2176, 8704) + adapter(8704, 4096) + adapter(4096, 4096)
    pool = (
        2 * adapter(1152, 1152)  # q, proj
        + adapter(1152, 2 * 1152)  # kv
        + 2 * adapter(1152, 4304)
    )
    unused = pool + adapter(4096, 32064)
    published = tower(1024, 4096, 24) + tower(1152, 4304, 27) + projector + language + unused
    assert published == 110_828_288
    assert ours == (
        tower(1024, 4096, 23, fused=False)
        + tower(1152, 4304, 26, fused=False)
        + projector
        + language
    )
