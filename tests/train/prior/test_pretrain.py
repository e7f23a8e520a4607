"""The whole run on tiny videos: what it writes, and that a kill changes nothing."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vega_policy.spec import CheckpointError, ContractError
from vega_policy.train.checkpoint import saved
from vega_policy.train.metrics import read_records
from vega_policy.train.prior import PretrainConfig, pretrain, stage
from vega_policy.vision.prior import PriorConfig, WanDims, WanPrior

RUN = """
import json, sys, time
from vega_policy.train.prior import PretrainConfig, pretrain, stage
plain = stage.save
def slow(folder, state):  # leaves the test time to kill
    plain(folder, state)
    time.sleep(0.5 if folder.name == "flow" else 0)
stage.save = slow
pretrain(PretrainConfig.from_dict(json.loads(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_settings):
    """Settings and result of an uninterrupted run; tests must not change its folder."""
    settings = make_settings(tmp_path_factory.mktemp("finished"))
    torch.set_num_threads(1)
    return settings, pretrain(PretrainConfig.from_dict(settings))


def test_run_writes_a_directory_that_diffusers_and_a_policy_read(finished):
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanTransformer3DModel,
    )

    settings, result = finished
    assert {"vae_l1", "vae_psnr_db", "flow_loss", "prior_dir", "pictures"} <= result.keys()
    assert all(Path(picture).read_bytes()[:4] == b"\x89PNG" for picture in result["pictures"])
    assert len(result["pictures"]) == 4

    folder = Path(result["prior_dir"])
    vae = AutoencoderKLWan.from_pretrained(folder / "vae")
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer")
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler").config.shift == 1
    assert len(vae.config.latents_mean) == 4
    noisy = torch.randn(1, 4, 2, 4, 4)
    velocity = transformer(noisy, torch.tensor([300.0]), torch.zeros(1, 1, 8)).sample
    assert velocity.shape == noisy.shape
    assert json.loads((folder / "metrics.json").read_text())["vae_l1"] == result["vae_l1"]

    dims = WanDims(**settings["dims"])
    prior = WanPrior.load(
        folder, PriorConfig(width=24, image_px=32, grid=2, block_index=0, dims=dims)
    )
    features = prior.features(torch.zeros(2, 2, 3, 32, 32), keys=[0, 1])
    assert features.shape == (2, 2, 4, 24)
    assert features.isfinite().all()


def test_a_run_stopped_in_one_stage_and_killed_in_the_other_ends_with_the_same_weights(
    finished, settings, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(stage, "save", _stop_after(3, stage.save))
        with pytest.raises(KeyboardInterrupt):
            pretrain(PretrainConfig.from_dict(settings))
    _kill_in("flow", settings)
    result = pretrain(PretrainConfig.from_dict(settings))

    uninterrupted, expected_result = finished
    differ = {"prior_dir", "pictures"}
    assert {k: v for k, v in result.items() if k not in differ} == {
        k: v for k, v in expected_result.items() if k not in differ
    }
    for part in ("vae", "transformer"):
        name = f"prior/{part}/diffusion_pytorch_model.safetensors"
        expected, found = (load_file(Path(s["out"]) / name) for s in (uninterrupted, settings))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[k], found[k]) for k in expected)
    for name in ("vae", "flow"):
        rows, again = (
            [(r["step"], r["loss"]) for r in read_records(Path(s["out"]) / f"{name}_metrics.jsonl")]
            for s in (uninterrupted, settings)
        )
        assert rows == again
        assert len(rows) == 8


def test_a_finished_run_is_not_trained_again(finished):
    settings, first = finished
    settings = copy.deepcopy(settings)
    checkpoints = Path(settings["out"]) / "checkpoints"
    times = {path: path.stat().st_mtime_ns for path in checkpoints.rglob("*.safetensors")}
    settings["vae"]["stage"]["max_minutes"] = 99.0
    assert pretrain(PretrainConfig.from_dict(settings)) == first
    assert {p: p.stat().st_mtime_ns for p in checkpoints.rglob("*.safetensors")} == times


def test_other_settings_in_the_same_folder_are_refused_before_anything_is_written(finished):
    settings = copy.deepcopy(finished[0])
    written = (Path(settings["out"]) / "config.json").read_text()
    settings["flow"]["shift"] = 3.0
    with pytest.raises(
        CheckpointError, match=r"flow\.shift 1\.0 then, 3\.0 now.*another out folder"
    ):
        pretrain(PretrainConfig.from_dict(settings))
    assert (Path(settings["out"]) / "config.json").read_text() == written


def test_a_limit_of_time_ends_a_stage_early_and_leaves_a_whole_prior(settings):
    for group in ("vae", "flow"):
        settings[group]["stage"] |= {"steps": 10**6, "max_minutes": 0.5 / 60}
    result = pretrain(PretrainConfig.from_dict(settings))
    rows = read_records(Path(settings["out"]) / "flow_metrics.jsonl")
    assert rows[-1]["step"] < 10**6
    assert rows[-1]["lr"] < 0.2 * max(row["lr"] for row in rows)
    assert (Path(result["prior_dir"]) / "metrics.json").is_file()


def test_missing_videos_say_what_to_run(settings):
    settings["suite"] = "nowhere"
    with pytest.raises(ContractError, match=r"run scripts/collect\.py"):
        pretrain(PretrainConfig.from_dict(settings))
    assert not Path(settings["out"]).exists()


def test_all_bad_settings_are_named_at_once(settings):
    settings["vae"]["crop_px"] = 20
    settings["data"]["clip_frames"] = 4
    with pytest.raises(ContractError, match=r"crop_px is 20.*clip_frames is 4"):
        PretrainConfig.from_dict(settings)


def _stop_after(n_saves, plain):
    """Return a `save` that ends the process' work after some checkpoints."""
    left = iter(range(n_saves - 1))

    def save(folder, state):
        path = plain(folder, state)
        if next(left, None) is None:
            raise KeyboardInterrupt
        return path

    return save


def _kill_in(name, settings):
    """Kill a run when a stage has two checkpoints and is not done."""
    folder = Path(settings["out"]) / "checkpoints" / name
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, json.dumps(settings)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while len(saved(folder)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    state = json.loads((saved(folder)[-1] / "state.json").read_text())
    assert not state["is_done"]
