"""The sequence: bidirectional, blind to padding, shifted by one, with a frozen prior."""

import dataclasses

import pytest
import torch

from vega_policy.policy.config import PolicyConfig
from vega_policy.policy.model import BOS, EOS, VegaModel
from vega_policy.testing.tiny_policy import tiny_config
from vega_policy.vision.prior import ZeroPrior


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VegaModel(tiny_config()).eval()


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 300, (2, 9), generator=g)
    ids[:, 0] = BOS
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    return {
        "pixels": torch.randint(0, 256, (2, 2, 3, 32, 32), generator=g, dtype=torch.uint8),
        "proprio": torch.rand(2, 8, generator=g) * 2 - 1,
        "input_ids": ids,
        "attention_mask": mask,
    }


def row(inputs, i, length):
    one = {k: v[i : i + 1] for k, v in inputs.items()}
    for name in ("input_ids", "attention_mask"):
        one[name] = one[name][:, :length]
    return one


def test_shapes(model, inputs):
    output = model(**inputs)
    assert output.actions.shape == (2, 8, 7)
    assert output.gate.shape == (2, 8)
    assert ((output.gate > 0) & (output.gate < 1)).all()


@torch.no_grad()
def test_a_padded_batch_equals_single_calls_and_padding_content_is_ignored(model, inputs):
    together = model(**inputs).actions
    for i, length in ((0, 9), (1, 6)):
        alone = model(**row(inputs, i, length)).actions[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)
    inputs["input_ids"][1, 6:] = 42
    torch.testing.assert_close(model(**inputs).actions, together, atol=1e-6, rtol=1e-6)


def variant(kind="l1", *, film=False, **settings):
    """Return the tiny configuration with another head, FiLM or other settings."""
    base = tiny_config()
    return dataclasses.replace(
        base,
        head=dataclasses.replace(base.head, kind=kind, inference_steps=3),
        semantic=dataclasses.replace(base.semantic, film=film, film_init="torch"),
        language=dataclasses.replace(base.language, vocab_size=384),
        **settings,
    )


def build(config):
    torch.manual_seed(0)
    return VegaModel(config).eval()


VARIANTS = {
    "l1": variant(),
    "diffusion": variant("diffusion"),
    "discrete": variant("discrete"),
    "film": variant(film=True),
    "without proprio": variant(proprio_size=0),
}
over_variants = pytest.mark.parametrize("name", VARIANTS)


@over_variants
@torch.no_grad()
def test_every_variant_answers_a_padded_batch_as_single_observations(name, inputs):
    model = build(VARIANTS[name])
    together = model(**inputs, keys=[5, 6]).actions
    assert together.shape == (2, 8, 7)
    assert together.dtype == torch.float32
    for i, length in ((0, 9), (1, 6)):
        alone = model(**row(inputs, i, length), keys=[5 + i]).actions[0]
        torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=1e-4)


@over_variants
def test_every_variant_trains_all_its_weights(name, inputs):
    model = build(VARIANTS[name]).train()
    targets = torch.rand(2, 8, 7, generator=torch.Generator().manual_seed(3)) * 2 - 1
    output = model(**inputs, keys=[5, 6], targets=targets)
    assert output.loss.shape == ()
    assert output.actions.shape == (2, 8, 7)
    output.loss.backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert {n for n in without if not n.startswith("vision.prior.")} == set()


@over_variants
@torch.no_grad()
def test_nothing_is_computed_twice_or_for_nothing(name, inputs):
    """One pass of the towers over all cameras, one of the language model, no words, no cache."""
    model = build(VARIANTS[name])
    batches, caches = [], []
    for tower in model.vision.semantic.towers:
        tower.embeddings.register_forward_hook(lambda _m, _a, tokens: batches.append(len(tokens)))
    model.language.register_forward_hook(lambda _m, _a, out: caches.append(out.past_key_values))
    model(**inputs, keys=[5, 6])
    assert batches == [4, 4]
    assert caches == [None] * (3 if name == "diffusion" else 1)
    assert (model.lm_head is not None) == (name == "discrete")


@over_variants
@torch.no_grad()
def test_every_variant_answers_in_bfloat16(name, inputs):
    model = build(VARIANTS[name])
    exact = model(**inputs, keys=[5, 6]).actions
    model.cast(torch.bfloat16)
    rounded = model(**inputs, keys=[5, 6]).actions
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.1


@pytest.mark.parametrize("film", [False, True])
def test_gradient_checkpointing_changes_no_gradient(film, inputs):
    model = build(variant(film=film)).train()
    targets = torch.zeros(2, 8, 7)

    def gradients():
        model.zero_grad(set_to_none=True)
        model(**inputs, targets=targets).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    runs = []
    layers = [
        model.language.layers[0].mlp,
        model.vision.semantic.dino.encoder.layer[0].mlp,
        model.vision.semantic.siglip.encoder.layers[0].mlp,
    ]
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, _a: runs.append(module))
    plain = gradients()
    assert len(runs) == len(layers)
    runs.clear()
    model.gradient_checkpointing_enable()
    again = gradients()
    assert len(runs) == 2 * len(layers)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[n], again[n]) for n in plain)
    runs.clear()
    model.gradient_checkpointing_disable()
    gradients()
    assert len(runs) == len(layers)


@pytest.mark.parametrize("cameras", [("wrist",), ("agentview", "wrist", "left")])
def test_other_numbers_of_cameras(cameras, inputs):
    model = build(variant(cameras=cameras))
    pixels = inputs["pixels"][:, :1].repeat(1, len(cameras), 1, 1, 1)
    output = model(**{**inputs, "pixels": pixels})
    assert output.gate.shape == (2, 4 * len(cameras))
    with pytest.raises(
        ValueError, match=f"2 images per observation, the policy sees {len(cameras)}"
    ):
        model(**inputs)


def test_missing_proprioception_is_refused(model, inputs):
    with pytest.raises(ValueError, match="8 numbers of proprioception and got none"):
        model(**{**inputs, "proprio": None})


def test_without_proprioception_nothing_depends_on_it(inputs):
    model = build(variant(proprio_size=0))
    assert model.proprio is None
    nothing = model(**{**inputs, "proprio": None}).actions
    assert torch.equal(model(**inputs).actions, nothing)


@torch.no_grad()
def test_no_mask_is_a_mask_of_ones(model, inputs):
    one = row(inputs, 0, 9)
    without = model(**{**one, "attention_mask": None}).actions
    assert torch.equal(model(**one).actions, without)
    one["mask"] = one.pop("attention_mask").bool()
    torch.testing.assert_close(model.core(**one).actions, without, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_the_end_of_the_sequence_changes_the_actions(padded, inputs):
    """Nothing that is read stands behind EOS, so causal attention could not know of it."""
    model = build(tiny_config())
    one = row(inputs, 1, 9 if padded else 6)
    before = model(**one).actions
    model.language.embed_tokens.weight[EOS] += 1.0
    assert (model(**one).actions - before).abs().max() > 1e-3


@pytest.mark.parametrize("film", [False, True])
@torch.no_grad()
def test_the_core_is_one_graph(film, inputs):
    """With and without padding; a branch on values or a wait for the device would break it."""
    model = build(variant(film=film))
    features = model.prior_features(inputs["pixels"])
    compiled = torch.compile(model.core, fullgraph=True, backend="eager")
    mask = inputs.pop("attention_mask").bool() if film else None
    inputs.pop("attention_mask", None)
    given = {**inputs, "mask": mask, "prior_features": features}
    assert torch.equal(compiled(**given).actions, model.core(**given).actions)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_a_late_token_changes_an_early_output(model, padded):
    """Causal attention would pass every other test and lose half the success rate."""
    g = torch.Generator().manual_seed(1)
    sequence = torch.randn(1, 12, 32, generator=g)
    prompt = torch.tensor([[True, True, True, False, False]]) if padded else None
    before = model._attend(sequence, prompt, n_front=4, n_back=4)
    sequence[:, -1] += torch.randn(32, generator=g)
    after = model._attend(sequence, prompt, n_front=4, n_back=4)
    assert (before[:, 0] - after[:, 0]).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_masked_tokens_reach_nobody(model, dtype):
    g = torch.Generator().manual_seed(1)
    sequence = torch.randn(1, 12, 32, generator=g)
    prompt = torch.tensor([[True, True, True, False, False]])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        before = model._attend(sequence, prompt, n_front=4, n_back=4)
        sequence[:, 6:8] = 9.0
        after = model._attend(sequence, prompt, n_front=4, n_back=4)
    keep = [i for i in range(12) if i not in (6, 7)]
    assert torch.equal(before[:, keep], after[:, keep])


def test_the_head_reads_from_the_last_prompt_token_to_the_last_but_one_slot(model, inputs):
    seen = {}

    def note(_module, _args, output):
        seen["hidden"] = output.last_hidden_state

    hooks = [
        model.language.register_forward_hook(note),
        model.head.register_forward_hook(lambda _m, args, _o: seen.update(read=args[0])),
    ]
    one = row(inputs, 1, 6)
    model(**one)
    for hook in hooks:
        hook.remove()
    # BOS, 8 vision tokens, proprio, 5 more prompt tokens, 56 slots, EOS.
    assert seen["hidden"].shape[1] == 1 + 8 + 1 + 5 + 56 + 1
    assert torch.equal(seen["read"], seen["hidden"][:, 14 : 14 + 56])


@torch.no_grad()
def test_cached_prior_features_equal_live_ones(model, inputs):
    live = model(**inputs)
    features = model.prior_features(inputs["pixels"])
    cached = model(**inputs, prior_features=features)
    assert torch.equal(live.actions, cached.actions)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.prior_features(inputs["pixels"]), features)


def test_gradients_reach_every_weight_but_the_priors(model, inputs):
    model.train()
    model(**inputs).actions.square().mean().backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None}
    expected = {n for n, _ in model.named_parameters() if not n.startswith("vision.prior.")}
    model.zero_grad(set_to_none=True)
    model.eval()
    assert reached == expected
    assert set(model.trainable_state_dict()) == expected


def test_published_slots_are_zero_vectors_without_a_weight(inputs):
    config = tiny_config()
    language = dataclasses.replace(config.language, slots="zeros")
    zeros = VegaModel(dataclasses.replace(config, language=language))
    assert "slots" not in zeros.trainable_state_dict()
    seen = []
    zeros.language.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    assert zeros(**inputs).actions.shape == (2, 8, 7)
    assert torch.equal(seen[0][:, -57:-1], torch.zeros(2, 56, 32))
    assert VegaModel(config).trainable_state_dict()["slots"].shape == (56, 32)


def test_keyed_noise_without_keys_is_refused(inputs):
    config = tiny_config()
    keyed = dataclasses.replace(config, prior=dataclasses.replace(config.prior, noise="keyed"))
    with pytest.raises(ValueError, match="pass one per observation"):
        VegaModel(keyed)(**inputs)
    with pytest.raises(ValueError, match="pass one per observation"):
        VegaModel(keyed).prior_features(inputs["pixels"])


def test_features_of_another_prior_are_refused(model, inputs):
    with pytest.raises(ValueError, match="make the cache anew"):
        model(**inputs, prior_features=torch.zeros(2, 2, 4, 16))


def test_casting_keeps_rotary_frequencies_and_the_prior_in_float32():
    model = VegaModel(tiny_config())
    before = model.language.rotary_emb.inv_freq.clone()
    model.cast(torch.bfloat16)
    assert torch.equal(model.language.rotary_emb.inv_freq, before)
    assert {p.dtype for p in model.prior.parameters()} == {torch.float32}
    assert {v.dtype for v in model.trainable_state_dict().values()} == {torch.bfloat16}
    model.to(torch.bfloat16)
    assert torch.equal(model.language.rotary_emb.inv_freq, before)


def test_seven_b_has_the_published_sizes():
    config = PolicyConfig.preset("7b")
    with torch.device("meta"):
        model = VegaModel(config, prior=ZeroPrior(config.prior))

    def count(*modules):
        return sum(p.numel() for m in modules for p in m.parameters())

    towers = 303_230_976 + 427_680_704 - 43_080_480  # without the parts that are never run
    # transformers gives DINO a position for the class token, which the published tower lacks.
    assert count(model.vision.semantic) == towers + 1024
    assert count(model.vision.semantic_projector) == 71_385_600
    assert count(model.language) == 6_738_939_904 - 131_334_144  # without the word head
    assert count(model.head) == 151_117_831
    assert count(model.proprio) == 16_818_176
    assert model.config.n_vision_tokens == 512


def test_seven_b_variants_have_the_published_sizes():
    base = PolicyConfig.preset("7b")
    heads = {k: dataclasses.replace(base.head, kind=k) for k in ("diffusion", "discrete")}

    def parameters(**changes):
        with torch.device("meta"):
            model = VegaModel(dataclasses.replace(base, **changes), prior=ZeroPrior(base.prior))
        return {n: p.numel() for n, p in model.named_parameters()}

    def count(found, prefix):
        return sum(n for name, n in found.items() if name.startswith(prefix))

    diffusion = parameters(head=heads["diffusion"])
    assert count(diffusion, "head.noise_predictor.") == 151_117_831
    assert count(diffusion, "head.noisy_action.") == 2 * 4096 + 4096 * 4097
    discrete = parameters(head=heads["discrete"], proprio_size=0)
    assert count(discrete, "lm_head.") == 131_334_144
    assert count(discrete, "head.") == count(discrete, "proprio.") == 0
    film = parameters(semantic=dataclasses.replace(base.semantic, film=True))
    assert count(film, "vision.semantic.dino_film.") == 23 * 2 * 1024 * 4097
    assert count(film, "vision.semantic.siglip_film.") == 26 * 2 * 1152 * 4097


def test_nano_is_small_enough_for_the_repository():
    with torch.device("meta"):
        model = VegaModel(PolicyConfig(), prior=ZeroPrior(PolicyConfig().prior))
    assert sum(p.numel() for p in model.parameters()) < 4_000_000
