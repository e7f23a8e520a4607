"""A prior on a trained policy: nothing changes before training, and then the new parts move.

The second half plays every fusion rule end to end: act, save, load, train, autocast, batch.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from vega_policy.policy import from_pretrained
from vega_policy.policy.grafting import graft, remove_prior
from vega_policy.policy.policy import VegaPolicy
from vega_policy.policy.pretrained import resolve
from vega_policy.policy.published import load_published_model
from vega_policy.policy.statistics import load_statistics
from vega_policy.policy.tokenizer import train_tokenizer
from vega_policy.rollout.doctor.samples import load_samples
from vega_policy.spec import ContractError, Observation
from vega_policy.testing.tiny_policy import INSTRUCTIONS, tiny_config, tiny_observation, tiny_policy
from vega_policy.vision.fusion import FUSIONS, FusionConfig, dropped_priors
from vega_policy.vision.prior import PriorConfig
from vega_policy.vision.stream import ProjectorConfig, branch_size

DATA = Path(__file__).parents[1] / "data"
IO = np.load(DATA / "oft_tiny_io.npz")
RULES = tuple(name for name in FUSIONS if name != "none")
DTYPES = (torch.float32, torch.bfloat16)


def tiny(fusion="token_gate", **changes):
    config = dataclasses.replace(tiny_config(), fusion=FusionConfig(name=fusion), **changes)
    return tiny_policy(config=config)


def published(dtype):
    """The published layout; a tokenizer of our own, since theirs may not be shipped."""
    model = load_published_model(DATA / "oft_tiny", dtype=dtype)
    return VegaPolicy(
        model=model.eval(),
        tokenizer=train_tokenizer(INSTRUCTIONS, vocab_size=320),
        statistics=load_statistics(DATA / "oft_tiny" / "dataset_statistics.json"),
        image_transform="none",
    )


def published_observation(i):
    images = dict(zip(("agentview", "wrist"), IO["images"][i], strict=True))
    return Observation(
        images=images, proprio=IO["state"][i].astype(np.float32), instruction=INSTRUCTIONS[0]
    )


def fitting(policy, **changes):
    """A small Wan whose features lie on the policy's grid."""
    changes.setdefault("grid", policy.config.semantic.grid)
    return dataclasses.replace(tiny_config().prior, **changes)


def grafted(policy, fusion="residual_zero", **settings):
    return graft(policy, prior=fitting(policy), fusion=FusionConfig(name=fusion), **settings)


def act(policy, batch):
    return np.stack([c.actions for c in policy.act(batch, keys=range(len(batch)))])


def inputs(policy, batch):
    """What the model takes of observations, as tensors."""
    read = policy.processor(batch)
    proprio = policy.statistics[policy.unnorm_key].proprio.normalise(read.proprio.numpy())
    return {
        "pixels": read.pixels,
        "proprio": torch.from_numpy(proprio).float(),
        "input_ids": read.input_ids,
        "attention_mask": read.attention_mask,
    }


def assert_same_answers(a, b, batch):
    """Bit for bit, one at a time and as a batch."""
    for max_batch in (1, 2):
        a.max_batch = b.max_batch = max_batch
        assert np.array_equal(act(a, batch), act(b, batch))


def assert_same_outputs(a, b, batch):
    """Before they are clipped and turned into commands, too."""
    assert_same_answers(a, b, batch)
    with torch.no_grad():
        found = [p.model(**inputs(p, batch), keys=[0, 1]).actions for p in (a, b)]
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_published_policy_with_a_new_residual_prior_acts_bit_for_bit_as_before(dtype):
    policy = published(dtype)
    batch = [published_observation(0), published_observation(1)]
    new = grafted(policy)
    assert new.config.fusion.name == "residual_zero"
    assert {p.dtype for p in new.model.vision.fusion.parameters()} == {dtype}
    assert {p.dtype for p in new.model.vision.prior_projector.parameters()} == {dtype}
    assert_same_outputs(policy, new, batch)
    # What makes it so: with the last layer moved the prior is heard.
    torch.nn.init.normal_(new.model.vision.fusion.out.weight)
    assert not np.array_equal(act(policy, batch), act(new, batch))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_shipped_policy_loses_its_prior_and_gets_an_invisible_one(dtype):
    policy = from_pretrained("nano-libero-object", dtype=dtype)
    batch = load_samples("libero_object", image_px=policy.config.image_px)
    bare = remove_prior(policy)
    assert bare.model.prior is None
    assert not np.array_equal(act(bare, batch), act(policy, batch))
    assert_same_answers(bare, policy.arm("gate_clamped"), batch)
    new = graft(
        bare,
        prior=policy.config.prior,
        prior_path=resolve("nano-libero-object") / "prior",
        fusion=FusionConfig(name="residual_zero"),
        seed=3,
    )
    ours, theirs = policy.model.prior.state_dict(), new.model.prior.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert_same_outputs(bare, new, batch)


@pytest.mark.parametrize("fusion", ["token_gate", "token_gate_residual", "add", "concat"])
def test_other_rules_are_heard_at_once(fusion):
    """The control of the two tests above."""
    policy, batch = tiny("none"), [tiny_observation(0), tiny_observation(1)]
    assert not np.array_equal(act(policy, batch), act(grafted(policy, fusion), batch))


def test_a_graft_shares_every_weight_and_leaves_the_first_policy_alone():
    policy = tiny()
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    config = policy.config
    new = grafted(policy, "concat")
    ours, theirs = policy.model.state_dict(), new.model.state_dict()
    branch = ("vision.prior.", "vision.prior_projector.", "vision.fusion.")
    shared = [k for k in ours if not k.startswith(branch)]
    assert len(shared) > 50
    assert all(ours[k].data_ptr() == theirs[k].data_ptr() for k in shared)
    assert {k for k in theirs if not k.startswith(branch)} == set(shared)
    assert policy.config is config
    assert all(torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())
    assert remove_prior(new).model.prior is None
    assert new.model.prior is not None


def test_new_weights_are_a_function_of_the_seed():
    policy = tiny("none")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    a, b, c = (grafted(policy, "concat", seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    name = "vision.fusion.fc1.weight"
    assert torch.equal(a[name], b[name])
    assert not torch.equal(a[name], c[name])


def test_a_prior_that_does_not_fit_is_refused_before_anything_is_run():
    policy = tiny("none")
    fusion = FusionConfig(name="residual_zero")
    with pytest.raises(ContractError, match=r"set prior\.grid=2"):
        graft(policy, prior=fitting(policy, name="zero", image_px=64, grid=4), fusion=fusion)
    with pytest.raises(ContractError, match=r"set prior\.width=32"):
        graft(policy, prior=fitting(policy, name="layer_norm", width=8), fusion=fusion)


def test_a_projector_of_another_size_is_that_of_the_prior_alone():
    policy = tiny("none")
    wanted = ProjectorConfig(semantic_hidden=999, prior_kind="linear", prior_norm="none")
    new = grafted(policy, projector=wanted)
    kept = dataclasses.replace(wanted, semantic_hidden=policy.config.projector.semantic_hidden)
    assert new.config.projector == kept
    sizes = [tuple(p.shape) for p in new.model.vision.prior_projector.parameters()]
    assert sizes == [(32, 32), (32,)]
    batch = [tiny_observation(0), tiny_observation(1)]
    assert_same_outputs(policy, new, batch)


def test_added_hidden_units_are_silent_until_they_are_trained_and_saved_like_all(tmp_path):
    policy, batch = tiny("none"), [tiny_observation(0), tiny_observation(1)]
    before = policy.model.state_dict()
    wide = grafted(policy, "none", widen=5)
    after = wide.model.state_dict()
    assert wide.config.projector.semantic_hidden == policy.config.projector.semantic_hidden + 5
    changed = {name for name in before if before[name].shape != after[name].shape}
    prefix = "vision.semantic_projector."
    assert changed == {prefix + name for name in ("fc1.weight", "fc1.bias", "fc2.weight")}
    assert np.allclose(act(policy, batch), act(wide, batch), atol=1e-5)
    assert after[prefix + "fc1.weight"][-5:].abs().min() > 0, "they look, so they can learn"
    with torch.no_grad():
        wide.model.vision.semantic_projector.fc2.weight[:, -5:] = 1.0
    assert not np.allclose(act(policy, batch), act(wide, batch), atol=1e-5)
    wide.save_pretrained(tmp_path / "wide")
    again = from_pretrained(tmp_path / "wide", unnorm_key=wide.unnorm_key)
    assert_same_answers(wide, again, batch)
    with pytest.raises(ContractError, match="widen is -1"):
        grafted(policy, "none", widen=-1)


def test_without_fusion_the_prior_settings_are_not_even_looked_at(tmp_path):
    odd = PriorConfig(grid=3, width=7)
    policy = tiny("none", prior=odd)
    assert policy.model.prior is None
    assert policy.model.vision.prior_projector is None
    seen = torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)
    assert policy.model.prior_features(seen) is None
    policy.save_pretrained(tmp_path / "bare")
    assert not (tmp_path / "bare" / "prior").exists()
    loaded = from_pretrained(tmp_path / "bare")
    assert loaded.model.prior is None
    assert np.array_equal(act(loaded, [tiny_observation(0)]), act(policy, [tiny_observation(0)]))


@pytest.mark.parametrize("kind", ["mlp", "linear"])
@pytest.mark.parametrize("name", FUSIONS)
def test_the_size_of_a_branch_is_what_is_trained(name, kind):
    projector = dataclasses.replace(tiny_config().projector, prior_kind=kind)
    model = tiny(name, projector=projector).model
    size = branch_size(model.config.vision, width=32)
    found = {
        part: sum(p.numel() for n, p in model.vision.named_parameters() if n.startswith(f"{part}."))
        for part in ("prior_projector", "fusion")
    }
    assert size == {**found, "total": sum(found.values())}


def step(policy, batch, *, autocast=False, **options):
    """Make one optimiser step; return the loss and the names of the weights that moved."""
    model = policy.model.train()
    weights = dict(model.named_parameters())
    before = {k: v.detach().clone() for k, v in weights.items()}
    optimizer = torch.optim.AdamW([w for w in weights.values() if w.requires_grad], lr=1e-2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**inputs(policy, batch), keys=[0, 1], targets=torch.ones(2, 8, 7), **options)
    output.loss.backward()
    optimizer.step()
    return output.loss, {k for k, v in weights.items() if not torch.equal(v, before[k])}


@pytest.mark.parametrize("fusion", RULES)
def test_one_step_moves_what_was_grafted_and_never_the_prior(fusion):
    policy = grafted(tiny("none"), fusion)
    batch = [tiny_observation(0), tiny_observation(1)]
    loss, moved = step(policy, batch)
    assert torch.isfinite(loss)
    names = {n for n, _ in policy.model.named_parameters()}
    new = {n for n in names if n.startswith(("vision.prior_projector.", "vision.fusion."))}
    if fusion == "residual_zero":  # everything else waits until ``out`` is no longer zero
        assert "vision.fusion.out.weight" in moved
        _, moved = step(policy, batch)
    assert new <= moved
    assert any(n.startswith("vision.prior.") for n in names)
    assert not any(n.startswith("vision.prior.") for n in moved)
    reached = any(n.startswith("vision.semantic_projector.") for n in moved)
    assert reached is (fusion != "prior_only")


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_rule_acts_saves_loads_and_does_not_look_at_its_neighbours(fusion, tmp_path):
    policy = tiny(fusion)
    batch = [tiny_observation(0), tiny_observation(2)]
    chunks = policy.act(batch, keys=[0, 1])
    has_gate = policy.model.vision.fusion.has_gate
    for chunk in chunks:
        assert chunk.actions.shape == (8, 7)
        assert (chunk.gate is not None) is has_gate
        if chunk.gate is not None:
            assert chunk.gate["wrist"].shape == (2, 2)
    policy.save_pretrained(tmp_path / "saved")
    loaded = from_pretrained(tmp_path / "saved")
    assert loaded.config == policy.config
    assert np.array_equal(act(loaded, batch), act(policy, batch))
    singles = act(policy, batch)
    policy.max_batch = 2
    np.testing.assert_allclose(act(policy, batch), singles, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_rule_trains(fusion, autocast):
    loss, moved = step(tiny(fusion), [tiny_observation(0), tiny_observation(1)], autocast=autocast)
    assert torch.isfinite(loss)
    assert "head.fc_out.weight" in moved


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_clamped_arm_of_every_rule_is_the_policy_without_a_prior(fusion):
    policy, batch = tiny(fusion), [tiny_observation(0), tiny_observation(1)]
    clamped = policy.arm("gate_clamped")
    assert_same_answers(clamped, remove_prior(policy), batch)
    gate = clamped.act(batch, keys=[0, 1])[0].gate
    assert (gate is not None) is policy.model.vision.fusion.has_gate
    if gate is not None:
        assert (gate["agentview"] == 1).all()


@pytest.mark.parametrize("fusion", sorted(set(RULES) - {"sequence_concat"}))
def test_a_dropped_prior_is_that_of_its_observation_only(fusion):
    policy = tiny(fusion)
    model, given = policy.model, inputs(policy, [tiny_observation(0), tiny_observation(1)])
    with torch.no_grad():
        full = model(**given, keys=[0, 1])
        bare = model(**given, keys=[0, 1], shut_out_prior=True)
        mixed = model(**given, keys=[0, 1], shut_out_prior=torch.tensor([False, True]))
    torch.testing.assert_close(mixed.actions[0], full.actions[0])
    torch.testing.assert_close(mixed.actions[1], bare.actions[1])
    if mixed.gate is not None:
        assert torch.equal(mixed.gate, torch.stack([full.gate[0], bare.gate[1]]))


def test_prior_dropout_in_a_training_step():
    batch = [tiny_observation(0), tiny_observation(1)]
    drop = dropped_priors(2, probability=0.5, seed=(0, 0))
    loss, moved = step(tiny("token_gate"), batch, shut_out_prior=drop)
    assert torch.isfinite(loss)
    assert drop.any() and not drop.all()  # noqa: PT018
    assert "vision.fusion.score.weight" in moved
    with pytest.raises(ContractError, match="prior dropout off"):
        step(tiny("sequence_concat"), batch, shut_out_prior=drop)


def test_the_control_without_a_second_encoder_reads_the_semantic_tokens(tmp_path):
    prior = dataclasses.replace(tiny_config().prior, name="layer_norm", width=32)
    policy, batch = tiny(prior=prior), [tiny_observation(0), tiny_observation(1)]
    model, given = policy.model, inputs(policy, batch)
    assert model.prior_features(given["pixels"]) is None
    with torch.no_grad():
        read = model.vision.semantic(given["pixels"])
        normed = torch.nn.functional.layer_norm(read, (32,))
        expected = model.vision.fusion(
            model.vision.semantic_projector(read).flatten(1, 2),
            model.vision.prior_projector(normed).flatten(1, 2),
        )
        assert torch.equal(model.vision(given["pixels"]).tokens, expected.tokens)
    policy.save_pretrained(tmp_path / "control")
    loaded = from_pretrained(tmp_path / "control")
    assert np.array_equal(act(loaded, batch), act(policy, batch))
    _, moved = step(policy, batch)
    assert "vision.prior_projector.1.weight" in moved


def test_sequence_concat_gives_the_language_model_twice_the_tokens():
    vision = tiny("sequence_concat").model.vision
    tokens = vision(torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)).tokens
    assert tokens.shape == (1, 2 * 2 * vision.n_tokens, 32)
