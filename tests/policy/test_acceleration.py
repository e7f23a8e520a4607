"""Faster inference gives the same numbers and does not compile anew for every instruction."""

import dataclasses
import shutil
import sys

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from vega_policy.policy.acceleration import _own, compile_policy, is_quantised, quantise_nf4
from vega_policy.policy.heads import HeadConfig
from vega_policy.policy.pretrained import from_pretrained
from vega_policy.spec import ContractError
from vega_policy.testing.tiny_policy import tiny_config, tiny_observation, tiny_policy
from vega_policy.vision.fusion import FusionConfig

SENTENCES = ("open the drawer", "pick up the milk", "close it", "put the bowl on the stove")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def batch():
    return [tiny_observation(i, instruction=s) for i, s in enumerate(SENTENCES)]


def actions(policy, batch):
    chunks = policy.act(batch, keys=list(range(len(batch))))
    return np.stack([chunk.actions for chunk in chunks])


def graphs():
    return counters["stats"]["unique_graphs"]


def small_config(**changes):
    """One layer and the prior without a network: tracing takes seconds as it is."""
    base = tiny_config()
    return dataclasses.replace(
        base,
        prior=dataclasses.replace(base.prior, name="zero"),
        language=dataclasses.replace(base.language, depth=1),
        **changes,
    )


def compiled(config, **options):
    return compile_policy(
        tiny_policy(config=config), **{"prompt_lengths": (64,), "backend": "eager", **options}
    )


VARIANTS = {
    "published": small_config(),
    "without a prior": small_config(fusion=FusionConfig(name="none")),
    "with a network as prior": tiny_config(),
    "diffusion": small_config(head=HeadConfig(kind="diffusion", width=32, inference_steps=5)),
}


@pytest.mark.parametrize(
    "variant",
    [v if v == "published" else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS],
)
def test_compiled_equals_eager_and_new_instructions_compile_nothing(batch, variant):
    eager = actions(tiny_policy(config=VARIANTS[variant]), batch)
    policy = compiled(VARIANTS[variant])
    first = actions(policy, batch[:1])
    so_far = graphs()
    rest = actions(policy, batch)
    assert so_far > 0
    assert graphs() == so_far
    np.testing.assert_allclose(np.concatenate([first, rest[1:]]), eager, atol=2e-5)


@pytest.mark.slow
def test_batches_are_filled_up_to_one_of_the_sizes(batch):
    policy = compiled(small_config(), batch_sizes=(4,))
    policy.max_batch = 4
    found = [actions(policy, batch[:n]) for n in (1, 3, 4)]
    assert graphs() == 1
    assert [len(f) for f in found] == [1, 3, 4]
    assert np.array_equal(found[2][:3], found[1])
    np.testing.assert_allclose(
        found[2], actions(tiny_policy(config=small_config()), batch), atol=2e-5
    )


@pytest.mark.slow
def test_the_arm_without_the_prior_is_compiled_as_well(batch):
    eager = tiny_policy(config=small_config()).arm("gate_clamped")
    policy = compiled(small_config())
    clamped = policy.arm("gate_clamped")
    np.testing.assert_allclose(actions(clamped, batch), actions(eager, batch), atol=2e-5)
    assert not np.allclose(actions(policy, batch), actions(clamped, batch), atol=1e-3)


@pytest.mark.slow
def test_more_shapes_than_torch_expects_are_all_compiled(batch):
    policy = compiled(small_config())
    for length in range(40, 52):
        policy.processor.prompt_lengths = (length,)
        actions(policy, batch[:1])
    assert graphs() == 12


@torch.no_grad()
def test_a_compiled_model_that_is_given_no_features_runs_its_prior_with_the_keys(batch):
    base = small_config()
    prior = dataclasses.replace(base.prior, name="noise", noise="keyed")
    config = dataclasses.replace(base, prior=prior)

    def answer(policy, keys):
        inputs = policy.processor(batch[:1])
        return policy.model(
            inputs.pixels, inputs.proprio, inputs.input_ids, inputs.attention_mask, keys=keys
        ).actions

    plain, policy = tiny_policy(config=config), compiled(config)
    torch.testing.assert_close(answer(policy, [1]), answer(plain, [1]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(answer(policy, [2]), answer(plain, [1]), atol=1e-5)


def test_answers_are_copies_since_a_graph_writes_to_the_same_place_again():
    place = torch.zeros(2, 3)
    kept = _own((place, None, (place,)), 1)
    place += 1
    assert kept[0].tolist() == [[0, 0, 0]]
    assert kept[1] is None
    assert kept[2][0].shape == (1, 3)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.slow
def test_compiled_with_inductor_equals_eager_within_rounding(batch):
    eager = actions(tiny_policy(), batch)
    policy = compiled(tiny_config(), backend="inductor")
    np.testing.assert_allclose(actions(policy, batch), eager, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.slow
def test_cuda_graphs_equal_eager(batch):
    eager = actions(tiny_policy().to("cuda"), batch)
    policy = compile_policy(tiny_policy().to("cuda"), mode="reduce-overhead", prompt_lengths=(64,))
    for _ in range(4):  # the first passes record, the later ones replay
        np.testing.assert_allclose(actions(policy, batch), eager, atol=1e-4)


@pytest.mark.parametrize("lengths", [(64, 32), (0, 32), (32, 32)])
def test_lengths_that_do_not_rise_are_refused(lengths):
    with pytest.raises(ContractError, match="expected rising whole numbers"):
        compile_policy(tiny_policy(), prompt_lengths=lengths)


def wide_policy():
    config = tiny_config()
    language = dataclasses.replace(
        config.language, width=128, heads=4, mlp_width=256, init_std=0.02
    )
    return tiny_policy(config=dataclasses.replace(config, language=language))


def n_bytes(module):
    return sum(p.numel() * p.element_size() for p in module.parameters())


def test_nf4_takes_an_eighth_of_the_memory_and_answers_alike(batch):
    pytest.importorskip("bitsandbytes")
    policy, plain = wide_policy(), wide_policy()
    towers = n_bytes(policy.model.vision)
    quantise_nf4(policy.model)
    assert is_quantised(policy.model)
    assert not is_quantised(plain.model)
    assert n_bytes(policy.model.language.layers) < 0.14 * n_bytes(plain.model.language.layers)
    assert n_bytes(policy.model.vision) == towers
    with torch.no_grad():
        outputs = [
            p._forward(p.processor(batch), p.processor(batch).pixels, None, [0] * 4).actions
            for p in (policy, plain)
        ]
    change = (outputs[0] - outputs[1]).norm() / outputs[1].norm()
    assert 1e-4 < change < 0.2


def test_a_quantised_policy_is_not_saved(tmp_path):
    pytest.importorskip("bitsandbytes")
    policy = wide_policy()
    quantise_nf4(policy.model)
    with pytest.raises(ContractError, match="4 bits"):
        policy.save_pretrained(tmp_path / "small")


def test_a_checkpoint_is_quantised_as_it_is_loaded(tmp_path, batch):
    pytest.importorskip("bitsandbytes")
    plain = wide_policy()
    plain.save_pretrained(tmp_path / "whole")
    policy = from_pretrained(tmp_path / "whole", quantise="nf4")
    assert is_quantised(policy.model)
    assert np.isfinite(actions(policy, batch)).all()
    assert not np.array_equal(actions(policy, batch), actions(plain, batch))
    with pytest.raises(ContractError, match="quantise"):
        from_pretrained(tmp_path / "whole", quantise="int3")


def test_a_missing_bitsandbytes_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn.modules", None)
    with pytest.raises(ContractError, match="pip install"):
        quantise_nf4(tiny_policy().model)
