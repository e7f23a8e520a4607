"""The ScanNet model: its tokens, its equality with the policy and with stock classes, its training."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionForConditionalGeneration

from vega_policy.policy.pretrained import from_pretrained
from vega_policy.scene.heads import prompts
from vega_policy.scene.heads.inputs import SceneInputs
from vega_policy.scene.heads.presets import nano_scannet, scannet_backbone, scannet_config
from vega_policy.scene.heads.scannet_model import ScanNetModel
from vega_policy.scene.heads.tokens import train_scene_tokenizer
from vega_policy.spec import CheckpointError, ContractError
from vega_policy.vision.fusion import FusionConfig
from vega_policy.vision.prior import ZeroPrior
from vega_policy.vision.prior.store import FeatureStore, PriorIdentity
from vega_policy.vision.stream import VisionStream

TEXTS = (prompts.scanrefer("the red chair"), prompts.multi3drefer("a table"), "left", "right")
BOXES = [
    np.array([[1.0, 1, 1, 2, 2, 2], [0.5, 0.5, 0.5, 1, 1, 1], [40.0, 0, 0, 1, 1, 1]]),
    np.array([[1.0, 1, 1, 3, 3, 3]]),
]


def scene(v, *, px=128, seed=0):
    g = torch.Generator().manual_seed(seed)
    return SceneInputs(
        pixels=torch.randint(0, 256, (v, 3, px, px), dtype=torch.uint8, generator=g),
        points=torch.rand(v, px, px, 3, generator=g) * 3,
        measured=torch.rand(v, px, px, generator=g) > 0.1,
    )


@pytest.fixture(scope="module")
def policy():
    return from_pretrained("nano-libero-object")


@pytest.fixture(scope="module")
def model():
    return nano_scannet(TEXTS)


def test_a_new_model_hears_the_text_among_the_visual_tokens(model):
    texts = [prompts.scanrefer(f"the {word} chair") for word in ("red", "left", "big", "far")]
    tokens = model.encode([scene(4)]).take([0] * len(texts))
    asked = model.ask(tokens, texts, answers=[prompts.GROUND] * len(texts))
    with torch.no_grad():
        states = model.read(asked)[asked.labels == model.token_id(prompts.GROUND)]
    states = torch.nn.functional.normalize(states, dim=-1)
    others = ~torch.eye(len(texts), dtype=torch.bool)
    # With usual first weights this is 1e-4; training reads words alone first (`words_first`).
    assert float((1 - states @ states.T)[others].mean()) > 0.001


def with_fusion(name, **settings):
    config = scannet_config()
    vision = dataclasses.replace(config.vision, fusion=FusionConfig(name=name, **settings))
    return dataclasses.replace(config, vision=vision)


def tiny_siglip(fusion, *, image_px=384, patch_px=14):
    """Return a model of the published geometry, tiny otherwise, that uses its own SigLIP."""
    sizes = scannet_backbone(towers="backbone")
    sizes.vision_config.update(
        {
            "image_size": image_px,
            "patch_size": patch_px,
            "num_hidden_layers": 1,
            "hidden_size": 24,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
    )
    sizes.text_config.num_hidden_layers = 1
    config = scannet_config("7b")
    prior = dataclasses.replace(config.vision.prior, name="zero", width=16)
    projector = dataclasses.replace(config.vision.projector, prior_hidden=16)
    vision = dataclasses.replace(
        config.vision, prior=prior, projector=projector, fusion=FusionConfig(name=fusion)
    )
    torch.manual_seed(0)
    return ScanNetModel(
        dataclasses.replace(config, vision=vision, chat="plain"),
        backbone=LlavaOnevisionForConditionalGeneration(sizes),
        tokenizer=train_scene_tokenizer(TEXTS),
        prior=ZeroPrior(prior),
    ).eval()


def test_a_published_frame_is_210_tokens():
    tiny = tiny_siglip("token_gate_normed")
    tokens = tiny.encode([scene(2, px=384)])
    assert tiny.n_tokens == 210
    assert tokens.tokens[0].shape == (2 * 210, 128)
    assert tokens.semantic[0].shape == (2, 729, 128)
    assert tokens.points[0].shape == (2, 729, 196, 3)


def test_without_prior_and_depth_the_rows_are_the_stock_tokens():
    tiny = tiny_siglip("none")
    seen = scene(2, px=384)
    rows = tiny.encode([SceneInputs(pixels=seen.pixels)]).tokens[0].view(2, 14, 15, -1)
    pixels = (seen.pixels.float() / 127.5 - 1).unsqueeze(0)
    stock = tiny.backbone.get_video_features(pixels, return_dict=True).pooler_output[0]
    assert torch.equal(rows[:, :, :14].reshape(-1, 128), stock[:-1])
    newline = tiny.backbone.model.image_newline
    assert torch.equal(rows[:, :, 14], newline.expand(2, 14, -1))
    assert torch.equal(stock[-1], newline)


def test_code_is_added_after_fusion():
    tiny = tiny_siglip("token_gate_normed")
    seen = scene(1, px=384)
    bare, placed = (
        tiny.encode([s]).tokens[0].view(14, 15, -1)[:, :14].reshape(196, -1)
        for s in (SceneInputs(pixels=seen.pixels), seen)
    )
    means = seen.points[0, :378, :378].reshape(14, 27, 14, 27, 3).mean((1, 3)).reshape(196, 3)
    assert torch.allclose(placed - bare, tiny.code(means), atol=1e-4)


def test_the_code_can_be_kept_off_visual_tokens():
    config = dataclasses.replace(scannet_config(), code_on="objects")
    model, seen = nano_scannet(TEXTS, config=config), scene(1)
    bare, placed = model.encode([SceneInputs(seen.pixels)]), model.encode([seen])
    assert torch.equal(bare.tokens[0], placed.tokens[0])
    far = model.object_features(placed, 0, BOXES[0])[2]
    assert torch.equal(far, model.code(torch.tensor(BOXES[0][2, :3], dtype=torch.float32)))


def test_features_of_equal_frames_are_those_of_the_policy_bit_for_bit(model, policy):
    frames = scene(2)
    ours = model.prior_features(frames)
    assert torch.equal(ours, policy.model.prior_features(frames.pixels.unsqueeze(0))[0])


def test_the_policys_store_serves_the_scene_model(model, policy, tmp_path):
    frames = scene(2)
    theirs = FeatureStore(tmp_path, PriorIdentity.of(policy.model.prior))
    pixels = frames.pixels.unsqueeze(0)
    stored = theirs.read(
        pixels, keys=[0], compute=lambda p, k: policy.model.prior_features(p, keys=k)
    )
    store = FeatureStore(tmp_path, PriorIdentity.of(model.branch.prior))
    assert len(store) == 2

    def refuse(*_):
        raise AssertionError("the features are in the store")

    assert torch.equal(store.read(pixels, keys=[0], compute=refuse), stored)
    assert torch.equal(model.prior_features(frames, store=store), model.prior_features(frames))
    live, cached = model.encode([frames]), model.encode([frames], store=store)
    assert torch.equal(live.tokens[0], cached.tokens[0])


def test_a_new_nano_model_sees_what_the_policy_sees_bit_for_bit(model, policy):
    frames = scene(2)
    assert isinstance(model.branch, VisionStream)
    bare = model.encode([SceneInputs(pixels=frames.pixels)])
    rows = bare.tokens[0].view(2, 8, 9, -1)[:, :, :8].reshape(128, -1)
    fused = policy.model.vision(frames.pixels.unsqueeze(0))
    assert torch.equal(rows, fused.tokens[0])
    assert torch.equal(bare.gates[0], fused.gate[0])


def test_the_gate_is_a_share_and_at_one_only_the_semantic_tokens_are_left(model):
    frames = SceneInputs(pixels=scene(2).pixels)
    gates = model.encode([frames]).gates[0]
    assert ((gates > 0) & (gates < 1)).all()
    clamped = nano_scannet(TEXTS)
    clamped.branch.fusion.score.bias.data.fill_(1e4)
    clamped.branch.fusion.score.weight.data.zero_()
    plain = clamped.semantic_tokens(frames.pixels)[1].reshape(2, 8, 8, -1)
    rows = clamped.encode([frames]).tokens[0].view(2, 8, 9, -1)[:, :, :8]
    assert torch.equal(rows, plain)


def test_residual_scale_zero_gives_the_logits_without_prior():
    texts = ["where is it", "what is it"]
    scenes = [scene(2), scene(3, seed=1)]
    losses = []
    for name, settings in (("none", {}), ("token_gate_residual", {"residual_scale": 0.0})):
        one = nano_scannet(TEXTS, config=with_fusion(name, **settings))
        losses.append(one.loss_text(one.encode(scenes), texts, ["left", "right"]))
    assert torch.equal(*losses)


def test_batched_is_single(model):
    scenes = [scene(2), scene(3, seed=1)]
    texts = [TEXTS[0], TEXTS[1]]
    both = model.ground(model.encode(scenes), BOXES, texts)
    assert [len(s) for s in both] == [4, 2]
    for i in range(2):
        (single,) = model.ground(model.encode([scenes[i]]), [BOXES[i]], [texts[i]])
        assert torch.allclose(both[i], single, atol=1e-5)
    tokens = model.encode(scenes)
    answers = model.answer(tokens, texts, max_new_tokens=6)
    assert all(answers)
    assert answers == [
        model.answer(tokens.take([i]), [texts[i]], max_new_tokens=6)[0] for i in range(2)
    ]


def test_generated_tokens_are_those_of_one_forward_pass_after_the_other(model):
    tokens = model.encode([scene(2)])
    prompt = model.ask(tokens, ["what is it"], answers=None)
    ids = prompt.ids
    for _ in range(4):
        asked = dataclasses.replace(
            prompt,
            ids=ids,
            mask=torch.ones_like(ids),
            handed={**prompt.handed, "position_ids": torch.arange(ids.shape[1])[None]},
        )
        best = model.backbone.lm_head(model.read(asked)[:, -1]).argmax(-1, keepdim=True)
        ids = torch.cat([ids, best], dim=1)
    wanted = model.tokenizer.decode(
        ids[0, prompt.ids.shape[1] :].tolist(), skip_special_tokens=True
    ).strip()
    assert wanted
    assert model.answer(tokens, ["what is it"], max_new_tokens=4) == [wanted]


def test_handed_in_tokens_are_the_hand_built_embeddings(model):
    tokens = model.encode([scene(2)])
    place = torch.tensor([1.0, 2.0, 0.5])
    asked = model.ask(tokens, [prompts.scan2cap()], answers=["left"], coords=[place])
    table = model.backbone.get_input_embeddings()
    built = table(asked.ids).clone()
    built[0, asked.ids[0] == model.token_id(prompts.IMAGE)] = tokens.tokens[0]
    at = asked.ids[0] == model.token_id(prompts.COORD)
    assert at.sum() == 1
    built[0, at] += model.code(place)
    stock = model.backbone.model.language_model(inputs_embeds=built).last_hidden_state
    assert torch.equal(model.read(asked), stock)


def test_coordinates_change_the_answer_and_are_counted(model):
    tokens = model.encode([scene(2)])
    here, there = (
        model.loss_text(tokens, [prompts.scan2cap()], ["left"], coords=[torch.tensor(c)])
        for c in ([0.0, 0, 0], [5.0, 5, 2])
    )
    assert here != there
    with pytest.raises(ContractError, match="0 coordinates for 1 <coord>"):
        model.loss_text(tokens, [prompts.scan2cap()], ["left"])
    with pytest.raises(ContractError, match="2 texts for 1 scenes"):
        model.ground(tokens, BOXES, TEXTS[:2])


def test_everything_but_the_prior_learns():
    model = nano_scannet(TEXTS).train()
    tokens = model.encode([scene(2), scene(2, seed=1)])
    loss = model.loss_ground(tokens, BOXES, TEXTS[:2], [[0], []])
    loss = loss + model.loss_text(
        tokens, [prompts.scan2cap(), "where"], ["left", "right"], coords=[torch.ones(3)]
    )
    loss.backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    stub = ("backbone.model.vision_tower.", "backbone.model.multi_modal_projector.")
    assert {n for n in still if not n.startswith(("branch.prior.", *stub))} == set()
    assert all(n in still for n, _ in model.named_parameters() if n.startswith("branch.prior."))


def test_siglip_its_projector_and_the_fusion_learn():
    tiny = tiny_siglip("token_gate_normed").train()
    tokens = tiny.encode([scene(1, px=384)])
    tiny.loss_text(tokens, ["what"], ["left"]).backward()
    for part in (
        "backbone.model.vision_tower.encoder",
        "backbone.model.multi_modal_projector",
        "branch.fusion",
        "branch.prior_projector",
        "backbone.model.image_newline",
    ):
        got = [p.grad for n, p in tiny.named_parameters() if n.startswith(part)]
        assert any(g is not None and g.abs().sum() > 0 for g in got), part


def test_loss_falls_when_trained_on_one_example():
    model = nano_scannet(TEXTS).train()
    seen, features = scene(2), None
    features = model.prior_features(seen)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(8):
        tokens = model.encode([seen], prior_features=[features])
        loss = model.loss_ground(tokens, BOXES[:1], TEXTS[:1], [[1]])
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_object_features_never_hear_the_prior(model):
    frames = scene(2)
    other = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    plain, moved = (model.encode([frames], prior_features=[f]) for f in (None, other))
    assert not torch.equal(plain.tokens[0], moved.tokens[0])
    assert torch.equal(
        *(model.object_features(t, 0, torch.tensor(BOXES[0])) for t in (plain, moved))
    )


def test_an_object_that_nobody_sees_is_the_code_of_its_centre(model):
    found = model.object_features(model.encode([scene(2)]), 0, BOXES[0])
    assert torch.equal(found[2], model.code(torch.tensor(BOXES[0][2, :3], dtype=torch.float32)))


def test_saved_and_loaded_is_equal(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    loaded = ScanNetModel.from_pretrained(tmp_path / "m")
    for tokens, one in ((model.encode([scene(2)]), model), (loaded.encode([scene(2)]), loaded)):
        scores = one.ground(tokens, BOXES[:1], TEXTS[:1])[0]
        if one is model:
            first = scores
    assert torch.equal(first, scores)
    model.save_pretrained(tmp_path / "m")  # over itself
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_what_is_no_scene_model_is_neither_read_nor_written_over(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json, heads\.safetensors, backbone"):
        ScanNetModel.from_pretrained(tmp_path)
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(ContractError, match="choose another directory"):
        model.save_pretrained(tmp_path)


def test_frames_of_another_size_and_scenes_without_depth_are_refused(model):
    with pytest.raises(ContractError, match="px=128"):
        model.encode([scene(1, px=64)])
    bare = model.encode([SceneInputs(pixels=scene(1).pixels)])
    with pytest.raises(ContractError, match="has no depth"):
        model.ground(bare, BOXES[:1], TEXTS[:1])


def test_a_rule_without_rows_is_refused():
    with pytest.raises(ContractError, match="sequence_concat gives a frame twice"):
        nano_scannet(TEXTS, config=with_fusion("sequence_concat"))
