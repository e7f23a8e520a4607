"""The L1 variant, stage by stage, against numbers that OpenVLA-OFT's own code computed.

Every array has controls: one thing wrong, and the error that this is known to make. A parity that no
mistake disturbs would prove nothing.
"""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from vega_policy.policy.published import PublishedFolder, load_published_model
from vega_policy.policy.statistics import load_statistics
from vega_policy.spec.gripper import target_to_command

DATA = Path(__file__).parents[2] / "data"
FOLDER = DATA / "oft_tiny"
TOLERANCE = {
    "pixel_values": 1e-6,
    "vision_features": 1e-4,
    "projected": 1e-5,
    "proprio_token": 2e-6,
    "hidden_slice": 1e-4,
    "normalized_actions": 5e-5,
}


@pytest.fixture(scope="module")
def io():
    return dict(np.load(DATA / "oft_tiny_io.npz"))


@pytest.fixture
def model():
    return load_published_model(FOLDER, dtype=torch.float32)


def statistics():
    return load_statistics(FOLDER / "dataset_statistics.json")["libero_spatial_no_noops"]


def inputs(io, row, *, without_last=False):
    length = int(io["prompt_len"][row]) - without_last
    return SimpleNamespace(
        pixels=torch.from_numpy(io["images"][row : row + 1]).permute(0, 1, 4, 2, 3),
        proprio=torch.from_numpy(io["proprio_normalized"][row : row + 1]).float(),
        input_ids=torch.from_numpy(io["input_ids"][row : row + 1, :length]),
    )


def padded(io):
    """All four observations as one batch."""
    ids = torch.from_numpy(io["input_ids"])
    return SimpleNamespace(
        pixels=torch.from_numpy(io["images"]).permute(0, 1, 4, 2, 3),
        proprio=torch.from_numpy(io["proprio_normalized"]).float(),
        input_ids=ids.clamp(min=0),
        attention_mask=(ids >= 0).long(),
    )


@torch.no_grad()
def run(model, given):
    """Return what every stage gives, by the names of the arrays."""
    found = {}

    def keep(name, value):
        found[name] = value.detach().float()

    vision = model.vision
    hooks = [
        vision.semantic.register_forward_hook(
            lambda _m, _i, out: keep("vision_features", out.flatten(1, 2))
        ),
        vision.semantic_projector.register_forward_hook(
            lambda _m, _i, out: keep("projected", out.flatten(1, 2))
        ),
        model.proprio.register_forward_hook(lambda _m, _i, out: keep("proprio_token", out)),
        model.head.register_forward_pre_hook(lambda _m, args: keep("hidden_slice", args[0])),
    ]
    try:
        keep("normalized_actions", model(**vars(given)).actions)
    finally:
        for hook in hooks:
            hook.remove()
    by_image = torch.cat(vision.semantic.normalise(given.pixels), dim=2)
    return {"pixel_values": by_image.flatten(1, 2), **found}


def errors(model, io, prefix="", rows=range(4), **options):
    """Return the largest difference of each stage from the arrays, over the observations."""
    result = dict.fromkeys(TOLERANCE, 0.0)
    for row in rows:
        found = run(model, inputs(io, row, **options))
        for name in result:
            expected = io.get(prefix + name)
            if expected is not None and row < len(expected):
                gap = np.abs(found[name].numpy()[0] - expected[row]).max()
                result[name] = max(result[name], float(gap))
    return result


def test_every_stage_is_that_of_the_reference(model, io):
    found = errors(model, io)
    assert {k: v for k, v in found.items() if v > TOLERANCE[k]} == {}


def test_all_grey_levels_are_normalised_alike(model, io):
    grey = torch.arange(256, dtype=torch.uint8).expand(1, 1, 3, 1, 256)
    found = torch.cat(model.vision.semantic.normalise(grey), dim=2)[0, 0, :, 0]
    assert np.abs(found.numpy() - io["pixel_lut"]).max() <= TOLERANCE["pixel_values"]


def test_a_padded_batch_equals_the_reference_and_the_single_calls(model, io):
    found = run(model, padded(io))
    for name in ("hidden_slice", "normalized_actions"):
        assert np.abs(found[name].numpy() - io[f"batch.{name}"]).max() <= TOLERANCE[name]
        assert np.abs(found[name].numpy() - io[name]).max() <= TOLERANCE[name]


def test_bfloat16_is_within_its_own_noise(io):
    half = load_published_model(FOLDER)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.language.rotary_emb.inv_freq.dtype == torch.float32
    found = errors(half, io, prefix="bf16.")
    assert found["vision_features"] <= 0.3
    assert found["hidden_slice"] <= 0.5
    assert found["normalized_actions"] <= 0.25
    for mistake in (causal, shifted(1)):
        wrong = load_published_model(FOLDER)
        mistake(wrong)
        assert errors(wrong, io, prefix="bf16.")["normalized_actions"] > 0.7


def test_actions_get_their_unit_back(io):
    bounds = statistics()
    normalised = bounds.proprio.normalise(io["state"])
    assert np.abs(normalised - io["proprio_normalized"]).max() <= 1e-12
    actions = bounds.action.unnormalise(io["normalized_actions"])
    assert np.abs(actions - io["actions"]).max() <= 5e-5
    actions[..., -1] = target_to_command(actions[..., -1])
    assert np.abs(actions - io["env_actions"]).max() <= 5e-5
    # Controls: the other bounds, and a gripper that is not left alone.
    other = bounds.by("bounds")
    assert np.abs(other.proprio.normalise(io["state"]) - io["proprio_normalized"]).max() > 0.3
    assert np.abs(other.action.unnormalise(io["normalized_actions"]) - io["actions"]).max() > 0.3
    everything = dataclasses.replace(bounds.action, mask=np.ones(7, dtype=bool))
    assert np.abs(everything.unnormalise(io["normalized_actions"]) - io["actions"]).max() > 0.7


# Mistakes. Each takes a loaded model and spoils it.


def attend(model, change):
    """Put ``change(sequence, mask, n_slots, run)`` where the language model is called."""
    language, n_slots = model.language, model.n_slots

    def called(sequence, prompt, *, n_front, n_back):
        b, s, _ = sequence.shape
        real = torch.ones(b, s, dtype=torch.bool)
        if prompt is not None:
            real[:, n_front:-n_back] = prompt[:, 1:]
        positions = real.long().cumsum(1) - 1

        def run(sequence, mask):
            n = sequence.shape[1]
            return language(
                inputs_embeds=sequence,
                attention_mask=mask if mask is None or mask.ndim == 2 else mask.expand(b, 1, n, n),
                position_ids=positions[:, :n],
                use_cache=False,
            ).last_hidden_state

        return change(sequence, real[:, None, None, :].expand(b, 1, s, s), n_slots, run)

    model._attend = called


def causal(model):
    attend(model, lambda x, mask, _n, run: run(x, mask.tril()))


def causal_actions(model):
    def change(x, mask, n, run):
        allowed = mask.clone()
        start = x.shape[1] - n - 1
        allowed[..., start:] &= torch.ones(x.shape[1], x.shape[1]).tril().bool()[:, start:]
        return run(x, allowed)

    attend(model, change)


def only_the_layers_are_told(model):
    """The configuration says causal, so the mask is made causal, whatever the layers say."""
    model.language.config.is_causal = True
    for layer in model.language.layers:
        layer.self_attn.is_causal = False
    # With two dimensions transformers makes the mask.
    attend(model, lambda x, mask, _n, run: run(x, mask[:, 0, 0]))


def padding_seen(model):
    attend(model, lambda x, _mask, _n, run: run(x, None))


def shifted(places):
    return lambda model: attend(model, lambda x, mask, _n, run: run(x, mask).roll(-places, dims=1))


def slots_not_zeroed(model):
    def change(x, mask, n, run):
        x = x.clone()
        x[:, -n - 1 : -1] = model.language.embed_tokens.weight[1]
        return run(x, mask)

    attend(model, change)


def no_stop(model):
    def change(x, mask, _n, run):
        hidden = run(x[:, :-1], mask[..., :-1, :-1])
        return torch.cat([hidden, hidden[:, :1]], dim=1)

    attend(model, change)


def proprio_first(model):
    def change(x, mask, _n, run):
        images = model.config.n_vision_tokens
        order = [0, images + 1, *range(1, images + 1), *range(images + 2, x.shape[1])]
        return run(x[:, order], mask)

    attend(model, change)


def tanh_in_siglip(model):
    for layer in model.vision.semantic.siglip.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU(approximate="tanh")


def tanh_in_projector(model):
    part = model.vision.semantic_projector

    def forward(x):
        for fc in (part.fc1, part.fc2):
            x = functional.gelu(fc(x), approximate="tanh")
        return part.fc3(x)

    part.forward = forward


def final_norm(model):
    stored = PublishedFolder.open(FOLDER).tensors()
    for tower, name in (("dino", "featurizer"), ("siglip", "fused_featurizer")):
        weight, bias = (
            stored[f"vision_backbone.{name}.norm.{part}"].read().float()
            for part in ("weight", "bias")
        )

        def normed(_m, _i, out, weight=weight, bias=bias):
            out.last_hidden_state = functional.layer_norm(
                out.last_hidden_state, weight.shape, weight, bias, 1e-6
            )
            return out

        getattr(model.vision.semantic, tower).encoder.register_forward_hook(normed)


def towers_swapped(model):
    towers = model.vision.semantic
    right = towers.normalise
    towers.normalise = lambda pixels: right(pixels)[::-1]


def rope_in_bfloat16(model):
    rotary = model.language.rotary_emb
    rotary.inv_freq = rotary.inv_freq.bfloat16().float()


def relu_outside(model):
    for block in model.head.blocks:
        block.forward = lambda x, b=block: functional.relu(x + b.fc(b.norm(x)))


@pytest.mark.parametrize(
    ("mistake", "known"),
    [
        (causal, {"hidden_slice": 3.3, "normalized_actions": 0.97}),
        (causal_actions, {"hidden_slice": 0.27, "normalized_actions": 0.2}),
        (shifted(1), {"hidden_slice": 3.2, "normalized_actions": 0.89}),
        (shifted(-1), {"hidden_slice": 3.2, "normalized_actions": 0.85}),
        (slots_not_zeroed, {"hidden_slice": 4.2, "normalized_actions": 2.3}),
        (no_stop, {"hidden_slice": 0.18, "normalized_actions": 0.17}),
        (proprio_first, {"hidden_slice": 2.1, "normalized_actions": 0.65}),
        (tanh_in_siglip, {"vision_features": 2.8e-3, "projected": 2.2e-4, "hidden_slice": 7.7e-4}),
        (tanh_in_projector, {"projected": 1.6e-4, "hidden_slice": 8.1e-4}),
        (final_norm, {"vision_features": 13.0, "projected": 1.6, "normalized_actions": 1.4}),
        (towers_swapped, {"vision_features": 9.6, "projected": 1.2, "normalized_actions": 1.1}),
        (rope_in_bfloat16, {"hidden_slice": 0.13, "normalized_actions": 7.1e-2}),
        (relu_outside, {"normalized_actions": 0.9}),
    ],
)
def test_a_mistake_makes_the_error_it_is_known_for(model, io, mistake, known):
    mistake(model)
    assert_known(errors(model, io), known)


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        (
            {"semantic": {"dino": {"depth": 4}, "siglip": {"depth": 4}}},
            {"vision_features": 8.4, "projected": 1.0, "normalized_actions": 1.6},
        ),
        (
            {
                "semantic": {
                    "dino": {
                        "pixel_mean": (0.485, 0.456, 0.406),
                        "pixel_std": (0.229, 0.224, 0.225),
                    }
                }
            },
            {"pixel_values": 8.1e-3, "vision_features": 7.1e-2, "normalized_actions": 8.9e-3},
        ),
        (
            {"language": {"rms_norm_eps": 1e-5}},
            {"hidden_slice": 0.37, "normalized_actions": 0.13},
        ),
    ],
    ids=["last block", "pixel constants", "rms eps"],
)
def test_a_wrong_setting_makes_the_error_it_is_known_for(io, settings, known):
    model = load_published_model(FOLDER, dtype=torch.float32, settings=settings)
    assert_known(errors(model, io), known)


def test_wrong_inputs_make_the_errors_they_are_known_for(model, io):
    assert_known(
        errors(model, io, without_last=True), {"hidden_slice": 3.1, "normalized_actions": 0.76}
    )
    swapped = {**io, "images": io["images"][:, ::-1].copy()}
    assert_known(errors(model, swapped), {"vision_features": 20.0, "normalized_actions": 1.4})
    bounds = statistics().proprio
    free = 2 * (io["state"] - bounds.q01) / (bounds.q99 - bounds.q01 + 1e-8) - 1
    assert_known(
        errors(model, {**io, "proprio_normalized": free}),
        {"hidden_slice": 0.74, "normalized_actions": 0.46},
    )


@pytest.mark.parametrize(
    ("mistake", "known"), [(causal, 3.3), (only_the_layers_are_told, 3.3), (padding_seen, 2.1)]
)
def test_a_mistake_with_padding_makes_the_error_it_is_known_for(model, io, mistake, known):
    mistake(model)
    found = run(model, padded(io))["hidden_slice"].numpy()
    assert_known({"x": float(np.abs(found - io["batch.hidden_slice"]).max())}, {"x": known})


def assert_known(found, known):
    """Each error is as large as documented, but for what tells two correct programs apart."""
    assert {k: v for k, v in known.items() if not v / 3 < found[k] < v * 3} == {}, found
    assert all(v > 3 * TOLERANCE.get(k, 0) for k, v in known.items())
