"""From camera frames to the published chunk: image path, processor, model and statistics together."""

import io as files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vega_policy.policy import image_path
from vega_policy.policy.policy import VegaPolicy
from vega_policy.policy.processor import Processor
from vega_policy.policy.published import load_published_model
from vega_policy.policy.statistics import load_statistics
from vega_policy.policy.tokenizer import train_tokenizer
from vega_policy.spec import Observation

DATA = Path(__file__).parents[2] / "data"
TOLERANCE = 5e-4
SUITE = "libero_spatial_no_noops"


@pytest.fixture(scope="module")
def policy():
    """The tokenizer is a stand-in: the ids are taken from the arrays."""
    return VegaPolicy(
        model=load_published_model(DATA / "oft_tiny", dtype=torch.float32),
        tokenizer=train_tokenizer(["a"], vocab_size=320),
        statistics=load_statistics(DATA / "oft_tiny" / "dataset_statistics.json"),
        unnorm_key=SUITE,
    )


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(DATA / "oft_tiny_io.npz"))


@pytest.fixture
def errors(policy, expected, monkeypatch):
    """Return the largest errors of the normalised chunk and of the environment's commands."""
    n = int(expected["prompt_len"][0])
    ids = torch.from_numpy(expected["input_ids"][:1, :n])
    monkeypatch.setattr(Processor, "tokenise", lambda _s, _i: (ids, torch.ones_like(ids)))
    frames = np.load(DATA / "image_path.npz")["input"]
    seen = Observation(
        images={"agentview": frames[0], "wrist": frames[1]},
        proprio=expected["state"][0],
        instruction=str(expected["instruction"][0]),
    )
    normalised: list[np.ndarray] = []
    commands = VegaPolicy.commands

    def keep(self, actions):
        normalised.append(actions)
        return commands(self, actions)

    monkeypatch.setattr(VegaPolicy, "commands", keep)

    def measure():
        found = policy.act([seen], keys=[0])[0].actions
        clipped = expected["env_actions"][0].clip(-1, 1)
        off = np.abs(normalised[-1][0] - expected["normalized_actions"][0]).max()
        return float(off), float(np.abs(found - clipped).max())

    return measure


def test_frames_to_commands(errors, policy):
    assert policy.processor.image_transform == "exact"
    normalised, commands = errors()
    assert normalised < TOLERANCE
    assert commands < TOLERANCE


def accurately_decoded(data):
    return np.asarray(Image.open(files.BytesIO(data)))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("decode_jpeg", accurately_decoded),
        ("through_jpeg", lambda image: image),
        ("centre_crop", lambda images: images),
    ],
)
def test_a_shortcut_in_the_image_path_is_seen_in_the_chunk(errors, monkeypatch, name, wrong):
    monkeypatch.setattr(image_path, name, wrong)
    assert errors()[0] > 20 * TOLERANCE


def test_the_fast_path_is_no_substitute_where_numbers_are_compared(errors, monkeypatch, policy):
    assert policy.config.centre_crop  # or the fast path would show the model another view
    monkeypatch.setattr(policy.processor, "image_transform", "fast")
    assert errors()[0] > 20 * TOLERANCE
