"""Published files drop in: names, shapes of the full size, and the tokens they lack."""

import dataclasses
import json

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from transformers import LlavaOnevisionForConditionalGeneration, Qwen2_5_VLForConditionalGeneration

from vega_policy.scene.heads import prompts
from vega_policy.scene.heads.inputs import SceneInputs
from vega_policy.scene.heads.presets import (
    open_scannet,
    open_vsi,
    scannet_backbone,
    scannet_config,
    vsi_backbone,
    vsi_config,
)
from vega_policy.scene.heads.remap import from_llava, is_llava, to_llava
from vega_policy.scene.heads.scannet_model import ScanNetModel
from vega_policy.scene.heads.tokens import SPECIAL, name_tokens, train_scene_tokenizer
from vega_policy.scene.heads.vsi_model import VsiModel
from vega_policy.spec import CheckpointError, ContractError
from vega_policy.vision.prior import ZeroPrior

TOWER = "model.vision_tower.vision_tower.vision_model."


def qwen_tokenizer():
    """Return a tokenizer with Qwen's delimiters and without the scene models' tokens."""
    base = train_scene_tokenizer(["where is the red chair"])
    base.add_tokens(
        ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"],
        special_tokens=True,
    )
    return base


@pytest.fixture
def original(tmp_path):
    """Return a tiny model in the original layout, and its weights under the names of the class."""
    sizes = scannet_backbone(towers="backbone")
    for name, value in {
        "hidden_size": 144,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "image_size": 56,
        "patch_size": 14,
    }.items():
        setattr(sizes.vision_config, name, value)
    sizes.text_config.num_hidden_layers = 2
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(sizes).eval()
    folder = tmp_path / "LLaVA-Video"
    folder.mkdir()
    weights = {k: v.clone().contiguous() for k, v in to_llava(model.state_dict()).items()}
    half = len(weights) // 2
    save_file(dict(list(weights.items())[:half]), folder / "model-00001-of-00002.safetensors")
    save_file(dict(list(weights.items())[half:]), folder / "model-00002-of-00002.safetensors")
    text = sizes.text_config
    said = {
        "model_type": "llava_qwen",
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "rope_theta": text.rope_parameters["rope_theta"],
        **{
            n: getattr(text, n)
            for n in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "max_position_embeddings",
                "rms_norm_eps",
            )
        },
    }
    (folder / "config.json").write_text(json.dumps(said))
    qwen_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(said))
    return folder, model


def small_config():
    config = scannet_config("7b")
    prior = dataclasses.replace(config.vision.prior, name="zero", width=16, grid=2)
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, prior=prior))


def test_names_survive_the_way_there_and_back():
    with init_empty_weights():
        model = LlavaOnevisionForConditionalGeneration(scannet_backbone("7b"))
    names = dict.fromkeys(model.state_dict())
    original = to_llava(names)
    assert f"{TOWER}encoder.layers.25.mlp.fc2.bias" in original
    assert {"model.image_newline", "model.mm_projector.2.bias", "lm_head.weight"} <= set(original)
    assert {"model.embed_tokens.weight", "model.layers.27.mlp.up_proj.weight"} <= set(original)
    assert from_llava(original) == names


def test_blocks_nobody_runs_are_left_out_and_strangers_are_listed():
    spare = {f"{TOWER}encoder.layers.26.mlp.fc1.bias": 1, f"{TOWER}head.probe": 2}
    assert from_llava({**spare, "lm_head.weight": 3}) == {"lm_head.weight": 3}
    with pytest.raises(CheckpointError, match=r"weights a\.b, c\.d are none of"):
        from_llava({"c.d": 1, "a.b": 2})


def test_an_original_directory_gives_the_model_it_was_made_from(original):
    folder, stock = original
    before = sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir())
    assert is_llava(folder)
    model = open_scannet(folder, prior=None, config=small_config(), dtype=torch.float32)
    loaded = model.backbone.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in stock.state_dict().items())
    pixels = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    theirs = stock.get_video_features(
        (pixels.float() / 127.5 - 1)[None], return_dict=True
    ).pooler_output[0, :-1]
    assert torch.equal(model.semantic_tokens(pixels)[1].flatten(0, 1), theirs)
    answers = model.answer(
        model.encode([SceneInputs(pixels)]), [prompts.scanqa("where?")], max_new_tokens=3
    )
    assert len(answers) == 1
    asked = model.ask(model.encode([SceneInputs(pixels)]), ["Where?"], answers=["left"])
    assert model.tokenizer.decode(asked.ids[0].tolist()) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        + 2 * 6 * "<image>"
        + "\nWhere?<|im_end|>\n<|im_start|>assistant\nleft<|im_end|>"
    )
    assert sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir()) == before


def test_weights_of_the_released_code_are_read_and_its_gate_is_computed(original):
    folder, _ = original
    g = torch.Generator().manual_seed(1)
    d, c = 128, 16
    shapes = {
        "model.generative_projector.0.weight": (3584, c),
        "model.generative_projector.0.bias": (3584,),
        "model.generative_projector.2.weight": (d, 3584),
        "model.generative_projector.2.bias": (d,),
        "model.feature_fusion.norm1.weight": (d,),
        "model.feature_fusion.norm1.bias": (d,),
        "model.feature_fusion.norm2.weight": (d,),
        "model.feature_fusion.norm2.bias": (d,),
        "model.feature_fusion.gate_projection.0.weight": (1, 2 * d),
        "model.feature_fusion.gate_projection.0.bias": (1,),
        "ground_head_zero_target": (d,),
    }
    for side in ("obj", "query"):
        for i, shape in ((0, (d, d)), (2, (d,)), (3, (d, d))):
            shapes |= {
                f"ground_head_{side}.{i}.weight": shape,
                f"ground_head_{side}.{i}.bias": (d,),
            }
    w = {k: torch.randn(*s, generator=g) * 0.1 for k, s in shapes.items()}
    save_file(w, folder / "model-00003-of-00003.safetensors")
    model = open_scannet(folder, prior=None, config=small_config(), dtype=torch.float32)
    x, source = torch.randn(5, d, generator=g), torch.randn(5, c, generator=g)
    f = "model.feature_fusion."
    hidden = torch.nn.functional.gelu(
        source @ w["model.generative_projector.0.weight"].T + w["model.generative_projector.0.bias"]
    )
    y = hidden @ w["model.generative_projector.2.weight"].T + w["model.generative_projector.2.bias"]
    a = torch.nn.functional.layer_norm(x, (d,), w[f + "norm1.weight"], w[f + "norm1.bias"])
    b = torch.nn.functional.layer_norm(y, (d,), w[f + "norm2.weight"], w[f + "norm2.bias"])
    gate = torch.sigmoid(
        torch.cat([a, b], -1) @ w[f + "gate_projection.0.weight"].T
        + w[f + "gate_projection.0.bias"]
    )
    assert torch.allclose(model.branch.prior_projector(source), y, atol=1e-4)
    ours = model.branch.fusion(x, y)
    assert torch.allclose(ours.tokens, gate * a + (1 - gate) * b, atol=1e-5)
    assert torch.equal(model.head.text[3].weight, w["ground_head_query.3.weight"])
    assert torch.equal(model.head.zero_target, w["ground_head_zero_target"])
    save_file(
        {k: v for k, v in w.items() if "obj" not in k}, folder / "model-00003-of-00003.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"lack head\.object\.0\.bias"):
        open_scannet(folder, prior=None, config=small_config())


def test_bfloat16_leaves_nothing_of_the_heads_in_float32(original):
    folder, _ = original
    model = open_scannet(folder, prior=None, config=small_config())
    types = {p.dtype for n, p in model.named_parameters() if not n.startswith("branch.prior.")}
    assert types == {torch.bfloat16}
    pixels = torch.randint(0, 256, (1, 3, 56, 56), dtype=torch.uint8)
    loss = model.loss_text(model.encode([SceneInputs(pixels)]), ["where"], ["left"])
    assert torch.isfinite(loss)


def test_missing_weights_are_listed(original):
    folder, _ = original
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lack "):
        open_scannet(folder, prior=None, config=small_config())


def test_absent_files_say_what_and_where(tmp_path):
    with pytest.raises(CheckpointError, match="download LLaVA-Video-7B-Qwen2 there"):
        open_scannet(tmp_path, prior=None)
    with pytest.raises(CheckpointError, match=r"download Qwen2\.5-VL-7B-Instruct there"):
        open_vsi(tmp_path, prior=None)


def test_a_hugging_face_directory_of_qwen_opens(tmp_path):
    sizes = vsi_backbone(vocab_size=400)
    folder = tmp_path / "Qwen2.5-VL"
    stock = Qwen2_5_VLForConditionalGeneration(sizes)
    qwen_tokenizer().save_pretrained(folder)
    stock.save_pretrained(folder)
    config = vsi_config("7b")
    prior = dataclasses.replace(config.vision.prior, name="zero", width=16, grid=2)
    config = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, prior=prior), merger_hidden=8
    )
    model = open_vsi(folder, prior=None, config=config)
    video = SceneInputs(torch.randint(0, 256, (2, 3, 56, 84), dtype=torch.uint8))
    answers = model.answer(model.encode([video]), [prompts.vsi_bench("how?")], max_new_tokens=3)
    assert len(answers) == 1
    asked = model.ask(model.encode([video]), ["how?"], answers=None)
    said = model.tokenizer.decode(asked.ids[0].tolist())
    assert said.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert said.endswith("<|vision_end|>how?<|im_end|>\n<|im_start|>assistant\n")


def test_a_prior_without_a_directory_is_asked_for(original):
    folder, _ = original
    with pytest.raises(ContractError, match=r"Wan2\.1-T2V-1\.3B-Diffusers"):
        open_scannet(folder, prior=None)


def test_tokens_are_added_where_they_are_missing_and_only_there():
    tokenizer = qwen_tokenizer()
    n = len(tokenizer)
    assert len(name_tokens(tokenizer)) == n  # trained with them
    assert [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in SPECIAL] == [1] * 3


def count(part):
    return sum(p.numel() for p in part.parameters())


class Names:
    """A tokenizer of the full size, as far as a constructor asks."""

    def get_vocab(self):
        tokens = (*SPECIAL, "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
        return {t: 151645 + i for i, t in enumerate(tokens)}


@pytest.mark.parametrize("align", ["aligned", "upstream"])
def test_shapes_of_the_full_scannet_model(align):
    config = scannet_config("7b", align=align)
    with init_empty_weights(include_buffers=False):
        model = ScanNetModel(
            config,
            backbone=LlavaOnevisionForConditionalGeneration(scannet_backbone("7b")),
            tokenizer=Names(),
            prior=ZeroPrior(config.vision.prior),
        )
    assert count(model.backbone) == 8_030_348_832
    assert model.n_tokens == 210
    assert model.branch.grid == 14
    assert count(model.branch.prior_projector) == 1536 * 3584 + 3584 + 3584 * 3584 + 3584
    assert count(model.branch.fusion) == 4 * 3584 + 2 * 3584 + 1
    assert count(model.head) == 3584 + 2 * (2 * (3584 * 3584 + 3584) + 2 * 3584)
    assert config.vision.prior.align == ("camera" if align == "aligned" else "upstream")


def test_shapes_of_the_full_vsi_model():
    config = vsi_config("7b")
    with init_empty_weights(include_buffers=False):
        model = VsiModel(
            config,
            backbone=Qwen2_5_VLForConditionalGeneration(vsi_backbone("7b")),
            tokenizer=Names(),
            prior=ZeroPrior(config.vision.prior),
        )
    assert count(model.backbone) == 8_292_166_656  # as published
    merger = model.branch.projector
    assert tuple(merger.fc1.weight.shape) == (4096, 6144)
    assert tuple(merger.fc2.weight.shape) == (3584, 4096)
    assert model.unit_px == 28


def test_tokens_pass_through_the_full_branch_with_the_published_shapes():
    config = scannet_config("7b")
    with init_empty_weights(include_buffers=False):
        model = ScanNetModel(
            config,
            backbone=LlavaOnevisionForConditionalGeneration(scannet_backbone("7b")),
            tokenizer=Names(),
            prior=ZeroPrior(config.vision.prior),
        ).to("meta")
    meta = torch.device("meta")
    inputs = SceneInputs(
        pixels=torch.empty(32, 3, 384, 384, dtype=torch.uint8, device=meta),
        points=torch.empty(32, 384, 384, 3, device=meta),
        measured=torch.empty(32, 384, 384, dtype=torch.bool, device=meta),
    )
    features = torch.empty(32, 196, 1536, device=meta)
    tokens = model.encode([inputs], prior_features=[features])
    assert tokens.tokens[0].shape == (6720, 3584)
    assert tokens.semantic[0].shape == (32, 729, 3584)
