"""A few tiny rollout videos, and settings of a prior small enough to train in a test."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from pathlib import Path

TINY = {
    "suite": "toy",
    "image_px": 32,
    "threads": 1,
    "device": "cpu",
    "checkpoint_every_s": 0.0,
    "log_every_s": 0.0,
    "data": {
        "n_frames": 24,
        "n_clips": 4,
        "frame_stride": 1,
        "n_held_out_frames": 8,
        "held_out": 0.25,
    },
    "dims": {
        "heads": 2,
        "head_dim": 12,
        "n_blocks": 1,
        "ffn_width": 16,
        "text_width": 8,
        "frequencies": 16,
        "vae_width": 2,
        "latent_channels": 4,
    },
    "vae": {
        "crop_px": 16,
        "whole_every": 3,
        "stage": {
            "steps": 8,
            "batch_size": 4,
            "warmup_steps": 2,
            "clip_every": 4,
            "clip_batch_size": 1,
        },
    },
    "flow": {
        "sample_steps": 2,
        "stage": {
            "steps": 8,
            "batch_size": 4,
            "warmup_steps": 2,
            "clip_every": 4,
            "clip_batch_size": 2,
        },
    },
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def make_settings():
    """Return a function from a folder to settings of a run in it, on toy videos also in it."""
    return _settings


@pytest.fixture
def settings(tmp_path: Path) -> dict:
    return _settings(tmp_path)


def _settings(folder: Path) -> dict:
    """Four demonstrations of two tasks: a bright square that wanders, seen by two cameras."""
    rng = np.random.default_rng(0)
    for task in ("red", "blue"):
        path = folder / "data" / "toy" / f"{task}_demo.hdf5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            data = file.create_group("data")
            data.attrs["problem_info"] = json.dumps({"language_instruction": task})
            for demo in range(2):
                group = data.create_group(f"demo_{demo}")
                for camera in ("agentview_rgb", "eye_in_hand_rgb"):
                    frames = np.full((7, 32, 32, 3), rng.integers(30, 90), dtype=np.uint8)
                    for t, frame in enumerate(frames):
                        frame[4 + 2 * t : 10 + 2 * t, 6:12] = rng.integers(120, 255, 3)
                    group.create_dataset(f"obs/{camera}", data=frames[:, ::-1, ::-1])
                group.create_dataset("actions", data=np.zeros((7, 7)))
    values = json.loads(json.dumps(TINY))
    values["data"]["dir"] = str(folder / "data")
    values["out"] = str(folder / "run")
    return values
