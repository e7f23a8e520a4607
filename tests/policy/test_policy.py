"""What a rollout relies on: one observation and key, one answer, whatever surrounds them."""

import dataclasses

import numpy as np
import pytest
import torch

from vega_policy.policy.tokenizer import prompt_of, train_tokenizer
from vega_policy.spec import ContractError, EnvFault, Observation, Policy, PolicyFault
from vega_policy.testing.tiny_policy import (
    INSTRUCTIONS,
    tiny_config,
    tiny_observation,
    tiny_policy,
)
from vega_policy.vision.fusion import FusionConfig


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


@pytest.fixture(scope="module")
def batch():
    return [tiny_observation(i) for i in range(3)]


def actions(policy, batch, keys):
    return np.stack([chunk.actions for chunk in policy.act(batch, keys=keys)])


def keyed_policy():
    config = tiny_config()
    prior = dataclasses.replace(config.prior, noise="keyed")
    return tiny_policy(config=dataclasses.replace(config, prior=prior))


def test_it_is_a_policy_and_its_chunks_are_ready_for_the_environment(policy, batch):
    assert isinstance(policy, Policy)
    chunk = policy.act(batch[:1], keys=[0])[0]
    assert chunk.actions.shape == (8, 7)
    assert chunk.actions.dtype == np.float32
    assert np.abs(chunk.actions).max() <= 1
    assert set(np.unique(chunk.actions[:, 6])) <= {-1.0, 0.0, 1.0}
    assert {name: gate.shape for name, gate in chunk.gate.items()} == {
        "agentview": (2, 2),
        "wrist": (2, 2),
    }
    assert set(chunk.timing_ms) == {"processor", "prior", "model", "total"}


def test_batched_equals_single_bit_for_bit_on_a_cpu(policy, batch):
    single = np.concatenate([actions(policy, [o], [i]) for i, o in enumerate(batch)])
    assert np.array_equal(actions(policy, batch, [0, 1, 2]), single)


def test_one_pass_over_prompts_of_different_lengths_equals_single_calls(policy, batch):
    single = actions(policy, batch, [0, 1, 2])
    policy.max_batch = 3
    lengths = policy.processor.tokenise([o.instruction for o in batch])[1].sum(1)
    together = actions(policy, batch, [0, 1, 2])
    policy.max_batch = None
    assert len(set(lengths.tolist())) > 1
    np.testing.assert_allclose(together, single, atol=1e-5)


def test_the_same_key_gives_the_same_action_and_global_random_state_does_not_matter(batch):
    policy = keyed_policy()
    torch.manual_seed(0)
    first = actions(policy, batch[:1], [5])
    torch.manual_seed(1)
    assert np.array_equal(actions(policy, batch[:1], [5]), first)


def test_another_key_matters_only_with_keyed_noise(policy, batch):
    assert np.array_equal(actions(policy, batch[:1], [5]), actions(policy, batch[:1], [6]))
    keyed = keyed_policy()
    assert not np.array_equal(actions(keyed, batch[:1], [5]), actions(keyed, batch[:1], [6]))


@pytest.mark.parametrize("camera", ["agentview", "wrist"])
def test_a_black_image_changes_the_action(policy, batch, camera):
    seen = batch[0]
    images = {**seen.images, camera: np.zeros_like(seen.images[camera])}
    blind = dataclasses.replace(seen, images=images)
    assert not np.array_equal(actions(policy, [seen], [0]), actions(policy, [blind], [0]))


def test_cameras_are_told_apart_by_their_names(policy, batch):
    a, w = batch[0].images["agentview"], batch[0].images["wrist"]
    swapped = dataclasses.replace(batch[0], images={"wrist": a, "agentview": w})
    reordered = dataclasses.replace(batch[0], images={"wrist": w, "agentview": a})
    original = actions(policy, batch[:1], [0])
    assert np.array_equal(actions(policy, [reordered], [0]), original)
    assert not np.array_equal(actions(policy, [swapped], [0]), original)


def test_instruction_and_proprio_change_the_action(policy, batch):
    original = actions(policy, batch[:1], [0])
    other = dataclasses.replace(batch[0], instruction=INSTRUCTIONS[2])
    assert not np.array_equal(actions(policy, [other], [0]), original)
    moved = dataclasses.replace(batch[0], proprio=batch[0].proprio + np.float32(0.01))
    assert not np.array_equal(actions(policy, [moved], [0]), original)


def test_every_problem_of_an_observation_is_listed(policy, batch):
    bad = Observation(
        images={"agentview": np.zeros((64, 64, 3), np.uint8)},
        proprio=np.zeros(7, np.float32),
        instruction="x",
    )
    with pytest.raises(ContractError) as error:
        policy.act([batch[0], bad], keys=[0, 1])
    message = str(error.value)
    for words in ("no camera 'wrist'", "set image_transform=fast", "proprio is (7,)"):
        assert words in message
    assert "observation 0" not in message


def test_the_fast_transform_resizes_and_keeps_images_of_the_right_size(policy, batch):
    fast = tiny_policy(config=dataclasses.replace(tiny_config(), image_transform="fast"))
    assert np.array_equal(actions(fast, batch[:1], [0]), actions(policy, batch[:1], [0]))
    large = tiny_observation(0, image_px=64)
    assert fast.processor([large]).pixels.shape == (1, 2, 3, 32, 32)


def test_actions_that_are_not_finite_are_a_fault_of_the_policy(batch):
    policy = tiny_policy()
    with torch.no_grad():
        policy.model.head.fc_out.bias[0] = torch.nan
    with pytest.raises(PolicyFault, match="not finite"):
        policy.act(batch[:1], keys=[0])


def test_one_key_per_observation_is_required(policy, batch):
    with pytest.raises(ValueError, match="pass one for each"):
        policy.act(batch, keys=[0])


def test_the_tokenizer_is_a_function_of_the_sentences_and_knows_every_one():
    a, b = train_tokenizer(INSTRUCTIONS), train_tokenizer(reversed(INSTRUCTIONS))
    prompt = prompt_of("Open the MIDDLE drawer")
    assert prompt == "In: What action should the robot take to open the middle drawer?\nOut: "
    ids = a(prompt)["input_ids"]
    assert ids == b(prompt)["input_ids"]
    assert ids[0] == a.bos_token_id
    assert a.eos_token_id not in ids
    assert a.decode(a(prompt_of("grüße"))["input_ids"], skip_special_tokens=True) == prompt_of(
        "grüße"
    )


@pytest.mark.parametrize("fusion", ["token_gate", "residual_zero"])
def test_the_clamped_arm_is_the_gate_held_open_for_the_semantic_stream(batch, fusion):
    config = dataclasses.replace(tiny_config(), fusion=FusionConfig(name=fusion))
    policy = tiny_policy(config=config)
    if fusion == "residual_zero":  # starts as the identity, so that nothing could be told apart
        torch.nn.init.normal_(policy.model.vision.fusion.out.weight)
    full, clamped = policy.arm("full"), policy.arm("gate_clamped")
    assert np.array_equal(actions(full, batch, [0, 1, 2]), actions(policy, batch, [0, 1, 2]))
    assert clamped.model is policy.model
    chunk = clamped.act(batch[:1], keys=[0])[0]
    assert all((gate == 1).all() for gate in chunk.gate.values())
    apart = actions(clamped, batch, [0, 1, 2])
    assert not np.array_equal(apart, actions(full, batch, [0, 1, 2]))
    # The same as a gate that has learned to be 1.
    with torch.no_grad():
        policy.model.vision.fusion.score.bias.fill_(1e4)
    assert np.allclose(actions(policy, batch, [0, 1, 2]), apart, atol=1e-6)
    with pytest.raises(ContractError, match="did you mean 'gate_clamped'"):
        policy.arm("gate_clampd")


def test_a_device_without_memory_is_no_answer_of_the_policy(policy, batch, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(policy, "_pass", fail)
    with pytest.raises(EnvFault, match="20 GiB"):
        policy.act(batch[:1], keys=[0])
