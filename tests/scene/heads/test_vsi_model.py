"""The VSI model: its tokens, its equality with stock Qwen2.5-VL, its prior on the prior's own grid."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vega_policy.scene.heads import prompts
from vega_policy.scene.heads.inputs import SceneInputs, video_inputs
from vega_policy.scene.heads.presets import nano_vsi, vsi_config
from vega_policy.scene.heads.vsi_model import PatchMerger, VsiModel, patches
from vega_policy.spec import CheckpointError, ContractError
from vega_policy.vision.fusion import FusionConfig

TEXTS = (prompts.vsi_bench("How many chairs?"), "4", prompts.vsi_bench("Where?", ["A. x", "B. y"]))


def video(v, *, seed=0, size=(84, 112)):
    g = torch.Generator().manual_seed(seed)
    return SceneInputs(torch.randint(0, 256, (v, 3, *size), dtype=torch.uint8, generator=g))


@pytest.fixture(scope="module")
def model():
    return nano_vsi(TEXTS)


def with_fusion(name, **settings):
    config = vsi_config()
    vision = dataclasses.replace(config.vision, fusion=FusionConfig(name=name, **settings))
    return dataclasses.replace(config, vision=vision)


def test_a_frame_of_a_4_to_3_video_is_252_tokens(model):
    frames = [np.zeros((480, 640, 3), dtype=np.uint8)] * 2
    seen = video_inputs(frames, width_px=518, unit_px=model.unit_px)
    tokens = model.encode([seen])
    assert tokens.tokens[0].shape == (2, 252, 128)
    assert len(model.scene_ids(tokens, 0)) == 2 * 254


def test_patches_are_those_of_the_published_processor():
    frame = video(1).pixels
    ours = patches(frame, patch_px=14)
    stock = Qwen2VLImageProcessorPil(min_pixels=1, max_pixels=10**9)(
        images=[frame[0].permute(1, 2, 0).numpy()], return_tensors="pt"
    )
    assert stock["image_grid_thw"].tolist() == [[1, 6, 8]]
    assert torch.allclose(ours, torch.as_tensor(stock["pixel_values"]), atol=1e-5)


def test_residual_scale_zero_gives_the_stock_logits_exactly():
    model = nano_vsi(TEXTS, config=with_fusion("token_gate_residual", residual_scale=0.0))
    frames = video(2)
    asked = model.ask(model.encode([frames]), ["where"], answers=["4"])
    with torch.no_grad():
        stock = model.backbone(
            input_ids=asked.ids,
            attention_mask=asked.mask,
            pixel_values=patches(frames.pixels, patch_px=14),
            image_grid_thw=asked.handed["image_grid_thw"],
            mm_token_type_ids=asked.handed["mm_token_type_ids"],
        ).logits
        ours = model.backbone(input_ids=asked.ids, attention_mask=asked.mask, **asked.handed).logits
    assert torch.equal(ours, stock)


def test_the_prior_reaches_the_logits_and_the_gate_is_a_share(model):
    tokens = model.encode([video(2)])
    bare = nano_vsi(TEXTS, config=with_fusion("none")).encode([video(2)])
    assert not torch.equal(tokens.tokens[0], bare.tokens[0])
    assert tokens.gates[0].shape == (24, 1)
    assert ((tokens.gates[0] > 0) & (tokens.gates[0] < 1)).all()


def test_features_lie_on_the_priors_own_grid_and_pool_to_the_policys(model):
    found = model.prior_features(video(2, size=(128, 128)))
    assert found.shape == (2, 8, 8, 128)
    pooled = model.branch.prior.features(
        video(2, size=(128, 128)).pixels[None].float() / 127.5 - 1, keys=[0]
    )
    assert torch.equal(found.flatten(1, 2), pooled[0])
    assert model.prior_features(video(1)).shape == (1, 8, 11, 128)  # 128 x 176 pixels


def test_merger_joins_two_by_two_in_the_order_of_the_tokens():
    merger = PatchMerger(source=2, hidden=8, width=3)
    features = torch.randn(1, 4, 6, 2)
    normed = merger.norm(features)
    block = torch.cat([normed[0, r, k] for r, k in ((2, 4), (2, 5), (3, 4), (3, 5))])
    slow = merger.fc2(torch.nn.functional.gelu(merger.fc1(block)))
    assert torch.allclose(merger(features, grid=(4, 6))[0, 1 * 3 + 2], slow, atol=1e-6)


def test_the_store_serves_what_the_prior_computes(model, tmp_path):
    frames = video(2)
    store = model.open_store(tmp_path, frames)
    live = model.prior_features(frames)
    assert torch.equal(model.prior_features(frames, store=store), live)
    assert len(store) == 2
    assert torch.equal(model.prior_features(frames, store=model.open_store(tmp_path, frames)), live)
    assert torch.equal(
        model.encode([frames]).tokens[0], model.encode([frames], store=store).tokens[0]
    )


def test_batched_is_single_also_for_videos_of_different_size(model):
    videos = [video(2), video(3, seed=1, size=(56, 84))]
    texts = ["how many chairs are there", "where"]
    tokens = model.encode(videos)
    both = model.answer(tokens, texts, max_new_tokens=6)
    assert all(both)
    assert both == [
        model.answer(tokens.take([i]), [texts[i]], max_new_tokens=6)[0] for i in range(2)
    ]
    asked = model.ask(tokens, texts, answers=None)
    last = model.read(asked)[:, -1]
    for i in range(2):
        single = model.read(model.ask(tokens.take([i]), [texts[i]], answers=None))[0, -1]
        assert torch.allclose(last[i], single, atol=1e-4)


def test_everything_but_the_prior_learns():
    model = nano_vsi(TEXTS).train()
    model.loss_text(model.encode([video(2)]), ["where"], ["4"]).backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    prior = {n for n, _ in model.named_parameters() if n.startswith("branch.prior.")}
    assert still == prior


def test_saved_and_loaded_is_equal(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    loaded = VsiModel.from_pretrained(tmp_path / "m")
    losses = [m.loss_text(m.encode([video(2)]), ["where"], ["4"]) for m in (model, loaded)]
    assert torch.equal(*losses)


def test_a_vsi_model_is_no_scannet_model(model, tmp_path):
    from vega_policy.scene.heads.scannet_model import ScanNetModel

    model.save_pretrained(tmp_path / "m")
    with pytest.raises(CheckpointError, match="kind 'vsi', expected 1 and 'scannet'"):
        ScanNetModel.from_pretrained(tmp_path / "m")


def test_frames_that_are_not_cut_to_tokens_and_rules_of_square_grids_are_refused(model):
    with pytest.raises(ContractError, match="multiples of 28"):
        model.encode([video(1, size=(84, 100))])
    with pytest.raises(ContractError, match="fusion cross_attention"):
        nano_vsi(TEXTS, config=with_fusion("cross_attention"))
