"""Diffusion, action tokens and FiLM against numbers of OpenVLA-OFT's own code, all in float32.

Every comparison has its controls: what a plausible mistake computes must be far out of tolerance.
"""

import dataclasses
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from vega_policy.policy import model as model_module
from vega_policy.policy.heads import Draws, diffusion
from vega_policy.policy.published import adapter, load_published_model
from vega_policy.policy.statistics import load_statistics

DATA = Path(__file__).parents[1] / "data"
TINY = DATA / "oft_tiny"
IO = np.load(DATA / "oft_tiny_io.npz")
STATISTICS = load_statistics(TINY / "dataset_statistics.json")["libero_spatial_no_noops"]
DIFFUSION_TOLERANCE = {10: 5e-5, 25: 1e-4, 50: 1e-3}
FILM_TOLERANCE = {"vision_features": 2e-4, "hidden_slice": 2e-4, "normalized_actions": 1e-4}
HEAD, PROPRIO = "action_head--", "proprio_projector--"


def load(folder, *, without=(), plus=None):
    """Load the tiny checkpoint with some of its component files taken away and others added."""
    folder.mkdir(parents=True)
    for file in TINY.iterdir():
        if not file.name.startswith(tuple(without)):
            (folder / file.name).symlink_to(file)
    for file in () if plus is None else (DATA / plus).iterdir():
        shutil.copy(file, folder / file.name)
    return load_published_model(folder, dtype=torch.float32)


def inputs(*observations, proprio=True):
    """Return what `VegaModel.forward` takes, of these observations, padded where need be."""
    rows = list(observations)
    length = int(IO["prompt_len"][rows].max())
    ids = torch.from_numpy(IO["input_ids"][rows, :length])
    given = torch.from_numpy(IO["proprio_normalized"][rows]).float()
    return {
        "pixels": torch.from_numpy(IO["images"][rows]).permute(0, 1, 4, 2, 3),
        "proprio": given if proprio else None,
        "input_ids": ids.clamp(min=0),
        "attention_mask": (ids >= 0).long(),
    }


def off(found, name):
    """Return the largest difference from a golden array."""
    expected = torch.from_numpy(IO[name])
    assert found.shape == expected.shape
    return (found.double() - expected.double()).abs().max().item()


# Diffusion


@pytest.fixture(scope="module")
def diffuser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusion") / "checkpoint"
    return load(folder, without=(HEAD,), plus="oft_tiny_diffusion")


@torch.no_grad()
def chunk(model, n):
    """Return the un-normalised chunk (t, a) of the golden start noise after n steps."""
    noise = torch.from_numpy(IO[f"diffusion{n}.noise"])
    model.head.inference_steps = n
    draws = Draws(noise=noise, levels=torch.zeros(1, dtype=torch.int64))
    output = model(**inputs(int(IO[f"diffusion{n}.observation"])), draws=draws)
    return torch.from_numpy(STATISTICS.action.unnormalise(output.actions[0].numpy()))


@pytest.mark.parametrize("n", [10, 25, 50])
def test_diffusion(diffuser, n):
    assert off(chunk(diffuser, n), f"diffusion{n}.actions") < DIFFUSION_TOLERANCE[n]


@pytest.mark.parametrize("n", [10, 25, 50])
def test_most_diffusion_actions_are_not_clipped(n):
    """A chunk of nothing but -1 and 1 would agree whatever the model computes."""
    golden = IO[f"diffusion{n}.actions"]
    bounds = STATISTICS.action
    scaled = 2 * (golden - bounds.q01) / (bounds.q99 - bounds.q01) - 1
    normalised = np.where(bounds.mask, scaled, golden)
    assert (np.abs(normalised) < 1 - 1e-4).sum() >= 40


@pytest.mark.parametrize("n", [10, 25, 50])
def test_the_chain_visits_the_golden_noise_levels(diffuser, n):
    diffuser.head.inference_steps = n
    assert diffuser.head.scheduler().timesteps.tolist() == IO[f"diffusion{n}.timesteps"].tolist()


def _without_clipping(model, patch):
    right = model.head.scheduler()
    wrong = DDIMScheduler.from_config(right.config, clip_sample=False)
    wrong.set_timesteps(10)
    patch.setattr(model.head, "scheduler", lambda: wrong)


def _noise_recomputed(_model, patch):
    step = DDIMScheduler.step
    patch.setattr(DDIMScheduler, "step", partial_method(step, use_clipped_model_output=True))


def _level_plus_one(_model, patch):
    right = diffusion.time_token
    patch.setattr(diffusion, "time_token", lambda levels, *, width: right(levels + 1, width=width))


def _time_before_proprio(model, patch):
    right = model._read

    def wrong(asked, *, slots, time):
        front = [asked.front[:, :-1], time.unsqueeze(1), asked.front[:, -1:]]
        return right(dataclasses.replace(asked, front=torch.cat(front, 1)), slots=slots)

    patch.setattr(model, "_read", wrong)


def _slots_zeroed(model, patch):
    right = model._read
    patch.setattr(
        model, "_read", lambda asked, *, slots, time: right(asked, slots=slots * 0, time=time)
    )


def partial_method(function, **changed):
    return lambda *args, **kwargs: function(*args, **{**kwargs, **changed})


@pytest.mark.parametrize(
    "mistake",
    [_without_clipping, _noise_recomputed, _level_plus_one, _time_before_proprio, _slots_zeroed],
)
def test_diffusion_mistakes_are_far_off(diffuser, monkeypatch, mistake):
    diffuser.head.inference_steps = 10
    mistake(diffuser, monkeypatch)
    assert off(chunk(diffuser, 10), "diffusion10.actions") > 100 * DIFFUSION_TOLERANCE[10]


# Action tokens


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    return load(tmp_path_factory.mktemp("discrete") / "checkpoint", without=(HEAD, PROPRIO))


@torch.no_grad()
def words_and_actions(model, *observations):
    seen = []
    hook = model.lm_head.register_forward_hook(lambda _m, _a, logits: seen.append(logits))
    output = model(**inputs(*observations, proprio=False))
    hook.remove()
    return seen[0].argmax(-1), output.actions


@pytest.mark.parametrize("observation", range(4))
def test_discrete(talker, observation):
    words, actions = words_and_actions(talker, observation)
    assert torch.equal(words[0], torch.from_numpy(IO["discrete.token_ids"][observation]))
    golden = IO["discrete.actions"][observation]
    values = talker.head.decode(words).view(8, 7).numpy()
    assert np.abs(STATISTICS.action.unnormalise(values) - golden).max() < 1e-9
    assert np.abs(STATISTICS.action.unnormalise(actions[0].numpy()) - golden).max() < 1e-6


def test_discrete_of_a_padded_batch(talker):
    words, _ = words_and_actions(talker, 0, 1, 2, 3)
    assert torch.equal(words, torch.from_numpy(IO["discrete.token_ids"]))


@pytest.mark.parametrize("shift", [-1, 1])
def test_another_bin_is_far_off(talker, shift):
    words = torch.from_numpy(IO["discrete.token_ids"])
    values = talker.head.decode(words + shift).view(4, 8, 7).numpy()
    assert np.abs(STATISTICS.action.unnormalise(values) - IO["discrete.actions"]).max() > 1e-3


def test_the_word_head_reads_56_places_only(talker):
    seen = []
    hook = talker.lm_head.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[1]))
    with torch.no_grad():
        talker(**inputs(0, proprio=False))
    hook.remove()
    assert seen == [56]


# FiLM


def film(folder):
    return load(folder, plus="oft_tiny_film")


@pytest.fixture(scope="module")
def modulated(tmp_path_factory):
    return film(tmp_path_factory.mktemp("film") / "checkpoint")


@torch.no_grad()
def stages(model, *observations):
    seen = {}
    hooks = [
        model.vision.semantic.register_forward_hook(
            lambda _m, _a, tokens: seen.update(vision_features=tokens[:1].flatten(1, 2))
        ),
        model.head.register_forward_pre_hook(lambda _m, args: seen.update(hidden_slice=args[0])),
    ]
    actions = model(**inputs(*observations)).actions
    for hook in hooks:
        hook.remove()
    return {**seen, "normalized_actions": actions}


@pytest.mark.parametrize("together", [False, True])
def test_film(modulated, together):
    """The batch is padded, so padding must not enter the mean of the instruction."""
    if together:
        found = stages(modulated, 0, 1)
    else:
        first, second = stages(modulated, 0), stages(modulated, 1)
        found = {
            k: torch.cat([first[k], second[k]]) for k in ("hidden_slice", "normalized_actions")
        }
        found["vision_features"] = first["vision_features"]
    for name, tolerance in FILM_TOLERANCE.items():
        assert off(found[name], f"film.{name}") < tolerance


def film_hidden_off(model):
    return off(stages(model, 0, 1)["hidden_slice"], "film.hidden_slice")


@pytest.mark.parametrize("mistake", ["no stop", "no BOS", "padding counts"])
def test_another_mean_of_the_instruction_is_far_off(modulated, monkeypatch, mistake):
    right = model_module._mean

    def wrong(embedded, mask):
        if mistake == "padding counts":
            return right(embedded, None)
        keep = torch.cat([mask, mask[:, :1]], dim=1)
        keep[:, -1 if mistake == "no stop" else 0] = False
        return (embedded * keep.unsqueeze(-1)).sum(1) / keep.sum(1, keepdim=True)

    monkeypatch.setattr(model_module, "_mean", wrong)
    assert film_hidden_off(modulated) > 100 * FILM_TOLERANCE["hidden_slice"]


def _scale_one(right, plain, low_rank, *, scale, where):
    assert scale == 0.5
    return right(plain, low_rank, scale=1.0, where=where)


def _no_patch_convolutions(right, plain, low_rank, *, scale, where):
    kept = {key: tensor for key, tensor in low_rank.items() if "patch_embed" not in key}
    assert len(kept) == len(low_rank) - 4
    return right(plain, kept, scale=scale, where=where)


@pytest.mark.parametrize("mistake", [_scale_one, _no_patch_convolutions])
def test_another_merge_of_the_towers_is_far_off(tmp_path, monkeypatch, mistake):
    monkeypatch.setattr(adapter, "merged", partial(mistake, adapter.merged))
    model = film(tmp_path / "checkpoint")
    assert film_hidden_off(model) > 100 * FILM_TOLERANCE["hidden_slice"]
