"""Each probe fails on the policy that is broken in its way, and on no other."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AttentionInterface

from vega_policy.policy import image_path, probes
from vega_policy.policy.policy import VegaPolicy
from vega_policy.policy.probes import _image_path, checks
from vega_policy.rollout.doctor import policy_checks
from vega_policy.testing.tiny_policy import (
    tiny_config,
    tiny_observation,
    tiny_policy,
    tiny_statistics,
)
from vega_policy.vision import attention


@pytest.fixture
def policy():
    return tiny_policy()


@pytest.fixture(scope="module")
def observations():
    return [tiny_observation(i) for i in range(2)]


def outcome(policy, observations, suite="libero_object"):
    found = list(checks(policy, observations, suite=suite))
    assert all(c.expected and c.fix for c in found if c.status in ("failed", "warning"))
    return (
        [c.name for c in found if c.status == "failed"],
        [c.name for c in found if c.status == "warning"],
        " ".join(c.found for c in found if c.status != "ok"),
    )


def with_statistics(policy, **changes):
    """Replace arrays of the statistics: action_q01=..., proprio_max=..."""
    key = policy.unnorm_key
    entry = policy.statistics[key]
    for name, values in changes.items():
        part, _, field = name.partition("_")
        bounds = dataclasses.replace(getattr(entry, part), **{field: np.asarray(values)})
        entry = dataclasses.replace(entry, **{part: bounds})
    policy.statistics[key] = entry
    return policy


def test_a_sound_policy_passes_and_is_left_as_it_was(policy, observations):
    before = policy.act(observations[:1], keys=[0])[0].actions
    assert outcome(policy, observations)[:2] == ([], [])
    assert np.array_equal(policy.act(observations[:1], keys=[0])[0].actions, before)
    assert not policy.model.language._forward_pre_hooks


def test_the_doctor_asks_a_policy_for_its_own_checks(policy, observations):
    names = [c.name for c in policy_checks(policy, observations, suite="libero_object")]
    assert names[0] == "answers"
    assert "bidirectional_attention" in names


def test_a_camera_the_policy_is_made_without_is_not_missed(observations):
    one = tiny_policy(config=dataclasses.replace(tiny_config(), cameras=("wrist",)))
    found = list(policy_checks(one, observations, suite="libero_object"))
    assert [c.name for c in found if c.status == "skipped"] == ["sees_agentview"]
    assert [c.name for c in found if c.status == "failed"] == []


def test_causal_attention_is_caught(policy, observations):
    def causal(module, query, key, value, mask, scaling=None, dropout=0.0, **kwargs):
        n = query.shape[2]
        is_language = n > 4 * 3 + 2
        triangle = torch.ones(n, n, dtype=torch.bool).tril() if is_language else None
        if triangle is not None and mask is not None:
            triangle = triangle & mask
        return attention.attention(module, query, key, value, triangle, scaling, dropout, **kwargs)

    registered = AttentionInterface()[attention.NAME]
    AttentionInterface.register(attention.NAME, causal)
    try:
        failed, _, said = outcome(policy, observations)
    finally:
        AttentionInterface.register(attention.NAME, registered)
    assert failed == ["bidirectional_attention"]
    assert "0 (alone), 0 (padded)" in said


def test_attention_that_is_causal_with_padding_only_is_caught(policy, observations, monkeypatch):
    whole = type(policy.model)._attend

    def attend(self, sequence, prompt, **counts):
        if prompt is None:
            return whole(self, sequence, prompt, **counts)
        s = sequence.shape[1]
        triangle = torch.ones(s, s, dtype=torch.bool).tril().expand(len(sequence), 1, s, s)
        return self.language(
            inputs_embeds=sequence, attention_mask=triangle, use_cache=False
        ).last_hidden_state

    monkeypatch.setattr(type(policy.model), "_attend", attend)
    failed, _, said = outcome(policy, observations)
    assert failed == ["bidirectional_attention"]
    assert "0 (padded)" in said


def test_the_statistics_of_another_suite_are_caught_where_its_own_are_there(observations):
    statistics = {"libero_object": tiny_statistics(), "libero_goal_no_noops": tiny_statistics()}
    sound = tiny_policy()
    policy = VegaPolicy(
        model=sound.model,
        tokenizer=sound.tokenizer,
        statistics=statistics,
        unnorm_key="libero_object",
    )
    assert outcome(policy, observations)[0] == []
    failed, _, said = outcome(policy, observations, suite="libero_goal")
    assert failed == ["statistics_key"]
    assert "libero_goal_no_noops" in said


def test_a_suite_the_policy_was_not_trained_on_is_a_warning(policy, observations):
    assert outcome(policy, observations, suite="libero_goal")[:2] == ([], ["statistics_key"])
    table = np.float32([0, 0, 3, 0, 0, 0, 0, 0])
    higher = [dataclasses.replace(o, proprio=o.proprio + table) for o in observations]
    assert outcome(policy, higher)[0] == ["proprio_range"]
    failed, warned, _ = outcome(policy, higher, suite="libero_goal")
    assert (failed, warned) == ([], ["statistics_key", "proprio_range"])


def test_identity_normalisation_is_caught(policy, observations, monkeypatch):
    monkeypatch.setattr(
        policy, "commands", lambda normalised: VegaPolicy.commands(policy, normalised)
    )
    assert outcome(policy, observations)[0] == []

    def identity(normalised):
        out = np.array(normalised)
        out[..., -1] = -np.sign(2 * out[..., -1] - 1)
        return out

    monkeypatch.setattr(policy, "commands", identity)
    failed, _, said = outcome(policy, observations)
    assert failed == ["action_scale"]
    assert "stay in normalised units" in said


def test_a_number_left_out_of_normalisation_is_caught(policy, observations):
    mask = np.array([True, True, False, True, True, True, False])
    failed, _, said = outcome(with_statistics(policy, action_mask=mask), observations)
    assert failed == ["action_scale"]
    assert "z is not normalised" in said


def test_extremes_under_the_name_of_quantiles_are_no_quantiles(policy, observations):
    wide = tiny_statistics().action.q99 * 1.5
    assert outcome(with_statistics(policy, action_q99=wide), observations)[0] == ["action_scale"]


def test_a_normalised_gripper_is_caught(policy, observations):
    failed, _, said = outcome(with_statistics(policy, action_mask=np.ones(7, bool)), observations)
    assert failed == ["gripper_sign"]
    assert "normalised like the other numbers" in said


def test_a_gripper_recorded_as_commands_is_caught(policy, observations):
    low = np.append(tiny_statistics().action.min[:-1], -1.0)
    failed, _, said = outcome(with_statistics(policy, action_min=low), observations)
    assert failed == ["gripper_sign"]
    assert "spans -1 to 1" in said


def test_a_gripper_the_wrong_way_round_is_caught(policy, observations, monkeypatch):
    right = policy.commands

    def wrong(normalised):
        commands = right(normalised)
        commands[..., -1] *= -1
        return commands

    monkeypatch.setattr(policy, "commands", wrong)
    failed, _, said = outcome(policy, observations)
    assert failed == ["gripper_sign"]
    assert "open (1) becomes +1" in said


def test_another_source_of_the_state_is_caught(policy, observations):
    turned = [
        dataclasses.replace(o, proprio=o.proprio + np.float32([0, 0, 0, -0.9, 2.2, 0, 0, 0]))
        for o in observations
    ]
    failed, _, said = outcome(policy, turned)
    assert failed == ["proprio_range"]
    assert "rotation y is 2" in said


def test_a_data_set_with_normalised_quaternions_is_caught(policy, observations):
    sound = tiny_statistics().proprio
    low, high = sound.min.copy(), sound.max.copy()
    low[3], high[3] = -3.14, 3.14
    failed, _, said = outcome(
        with_statistics(policy, proprio_min=low, proprio_max=high), observations
    )
    assert failed == ["quaternion_sign"]
    assert "normalised to w>=0" in said


def test_a_conversion_that_normalises_the_sign_is_caught(policy, observations, monkeypatch):
    def flipped(quaternion):
        q = quaternion if quaternion[3] >= 0 else -quaternion
        return q[:3] * 2 * np.arccos(q[3]) / np.sqrt(1 - q[3] ** 2)

    monkeypatch.setattr(probes, "quat_to_axis_angle", flipped)
    failed, _, said = outcome(policy, observations)
    assert failed == ["quaternion_sign"]
    assert "w<0 gives" in said


def test_another_image_path_than_in_training_is_caught(policy, observations):
    policy.processor.image_transform = "fast"
    failed, _, said = outcome(policy, observations)
    assert failed == ["image_path"]
    assert "trained with 'none'" in said


def test_a_crop_the_policy_was_not_trained_with_is_caught(policy, observations, monkeypatch):
    transform = policy.processor._transform

    def cropped(images):
        inner = transform(images)[..., 1:-1, 1:-1]
        return torch.nn.functional.pad(inner, (1, 1, 1, 1))

    monkeypatch.setattr(policy.processor, "_transform", cropped)
    failed, _, said = outcome(policy, observations)
    assert failed == ["image_path"]
    assert "is cut off" in said


@pytest.mark.parametrize("transform", ["exact", "fast"])
def test_a_policy_that_crops_does_not_see_the_border(policy, observations, monkeypatch, transform):
    """The order of the published evaluation: compress, resize, crop the centre."""
    levels = probes._LEVELS
    noise = np.random.default_rng(0)
    large = [
        dataclasses.replace(
            o,
            images={c: noise.integers(60, 200, (256, 256, 3)).astype(np.uint8) for c in o.images},
        )
        for o in observations
    ]
    cropping = dataclasses.replace(policy.config, image_transform=transform, centre_crop=True)
    monkeypatch.setattr(type(policy), "config", cropping)
    monkeypatch.setattr(policy.processor, "config", cropping)
    monkeypatch.setattr(policy.processor, "image_transform", transform)
    assert _image_path(policy, large).status == "ok"
    monkeypatch.setattr(probes, "_LEVELS", 0)  # compression and filter do carry something inwards
    assert _image_path(policy, large).status == "failed"
    monkeypatch.setattr(probes, "_LEVELS", levels)
    monkeypatch.setattr(image_path, "centre_crop", lambda images: images)
    assert "reaches a policy trained on its centre" in _image_path(policy, large).found


def test_actions_far_outside_are_a_warning_and_absurd_ones_fail(policy, observations):
    with torch.no_grad():
        policy.model.head.fc_out.bias[:6] += 3
    assert outcome(policy, observations)[:2] == ([], ["action_range"])
    with torch.no_grad():
        policy.model.head.fc_out.bias[:6] += 30
    assert outcome(policy, observations)[0] == ["action_range"]


def test_a_probe_that_raises_is_a_failed_check(policy, observations, monkeypatch):
    def broken(_):
        raise RuntimeError("no codec")

    monkeypatch.setattr(policy.processor, "images", broken)
    failed, _, said = outcome(policy, observations)
    assert "image_path" in failed
    assert "RuntimeError: no codec" in said
