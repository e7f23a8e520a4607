"""The published sizes, on the meta device: names, shapes and counts, without a weight."""

import dataclasses
import json
from pathlib import Path

import pytest

from vega_policy.policy import PolicyConfig
from vega_policy.policy.empty import empty_model, shapes_of
from vega_policy.policy.published import PublishedFolder, read_settings
from vega_policy.policy.published.weights import make_plan
from vega_policy.vision.fusion import FusionConfig

DATA = Path(__file__).parents[2] / "data"


def linear(name, out, source):
    return {f"{name}.weight": (out, source), f"{name}.bias": (out,)}


def norm(name, width):
    return {f"{name}.{part}": (width,) for part in ("weight", "bias")}


def tower(prefix, width, depth, hidden, *, scaled):
    keys = {f"{prefix}.pos_embed": (1, 256, width), **norm(f"{prefix}.norm", width)}
    keys |= {f"{prefix}.patch_embed.proj.weight": (width, 3, 14, 14)}
    keys |= {f"{prefix}.patch_embed.proj.bias": (width,)}
    for i in range(depth):
        block = f"{prefix}.blocks.{i}"
        keys |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        keys |= linear(f"{block}.attn.qkv", 3 * width, width)
        keys |= linear(f"{block}.attn.proj", width, width)
        keys |= linear(f"{block}.mlp.fc1", hidden, width)
        keys |= linear(f"{block}.mlp.fc2", width, hidden)
        if scaled:
            keys |= {f"{block}.ls{n}.scale_factor": (width,) for n in (1, 2)}
    return keys


def published_keys():
    """Written down from the published index, independently of the code that maps it."""
    dino, siglip = "vision_backbone.featurizer", "vision_backbone.fused_featurizer"
    pool, language = f"{siglip}.attn_pool", "language_model.model"
    keys = tower(dino, 1024, 24, 4096, scaled=True) | tower(siglip, 1152, 27, 4304, scaled=False)
    keys |= {f"{dino}.cls_token": (1, 1, 1024), f"{dino}.reg_token": (1, 4, 1024)}
    keys |= {f"{pool}.latent": (1, 1, 1152), **norm(f"{pool}.norm", 1152)}
    keys |= linear(f"{pool}.q", 1152, 1152) | linear(f"{pool}.kv", 2304, 1152)
    keys |= linear(f"{pool}.proj", 1152, 1152)
    keys |= linear(f"{pool}.mlp.fc1", 4304, 1152) | linear(f"{pool}.mlp.fc2", 1152, 4304)
    keys |= linear("projector.fc1", 8704, 2176) | linear("projector.fc2", 4096, 8704)
    keys |= linear("projector.fc3", 4096, 4096)
    keys |= {f"{language}.embed_tokens.weight": (32064, 4096), f"{language}.norm.weight": (4096,)}
    keys |= {"language_model.lm_head.weight": (32064, 4096)}
    for i in range(32):
        layer = f"{language}.layers.{i}"
        keys |= {f"{layer}.{n}.weight": (4096,) for n in NORMS}
        keys |= {f"{layer}.self_attn.{n}_proj.weight": (4096, 4096) for n in "qkvo"}
        keys |= {f"{layer}.mlp.{n}_proj.weight": (11008, 4096) for n in ("gate", "up")}
        keys |= {f"{layer}.mlp.down_proj.weight": (4096, 11008)}
    return keys


NORMS = ("input_layernorm", "post_attention_layernorm")


def component_keys():
    keys = norm("action_head.model.layer_norm1", 28672) | norm(
        "action_head.model.layer_norm2", 4096
    )
    keys |= linear("action_head.model.fc1", 4096, 28672) | linear("action_head.model.fc2", 7, 4096)
    for i in range(2):
        block = f"action_head.model.mlp_resnet_blocks.{i}.ffn"
        keys |= norm(f"{block}.0", 4096) | linear(f"{block}.1", 4096, 4096)
    keys |= linear("proprio_projector.fc1", 4096, 8) | linear("proprio_projector.fc2", 4096, 4096)
    return keys


def count(shapes):
    total = 0
    for shape in shapes:
        size = 1
        for n in shape:
            size *= n
        total += size
    return total


@pytest.fixture(scope="module")
def config():
    return dataclasses.replace(PolicyConfig.preset("7b"), fusion=FusionConfig(name="none"))


def test_the_preset_needs_exactly_the_published_weights(config):
    published = published_keys()
    assert len(published) == 982
    assert count(published.values()) == 7_541_237_184
    model = empty_model(config)
    assert all(p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())
    plan = make_plan(config, shapes_of(model), published | component_keys())
    assert plan.problems == ()
    assert plan.fresh == ()
    dropped = [key for keys in plan.unused.values() for key in keys]
    assert dropped.count("language_model.lm_head.weight") == 1
    vision = [key for key in dropped if key.startswith("vision_backbone.")]
    assert len(vision) == len(dropped) - 1 == 43
    assert count(published[key] for key in vision) == 43_080_480


def test_sizes_that_the_published_file_leaves_out_are_the_full_ones(config, tmp_path):
    values = json.loads((DATA / "oft_tiny" / "config.json").read_text())
    del values["timm_model_args"]
    kept = ("model_type", "pad_token_id", "torch_dtype", "vocab_size")
    values["text_config"] = {key: values["text_config"][key] for key in kept}
    (tmp_path / "config.json").write_text(json.dumps(values))
    folder = PublishedFolder(path=tmp_path, model=tmp_path, adapter=None)
    assert read_settings(folder) == config


def test_discrete_keeps_the_word_head(config):
    head = dataclasses.replace(config.head, kind="discrete")
    discrete = dataclasses.replace(config, head=head, proprio_size=0)
    plan = make_plan(discrete, shapes_of(empty_model(discrete)), published_keys())
    assert plan.problems == plan.fresh == ()
    assert plan.sources["lm_head.weight"].key == "language_model.lm_head.weight"


def test_everything_that_does_not_fit_is_named(config):
    found = published_keys() | component_keys()
    del found["projector.fc1.bias"], found["action_head.model.fc2.bias"]
    found["vision_backbone.featurizer.blocks.5.attn.qkv.weight"] = (3072, 1000)
    found["language_model.model.surprise"] = (1,)
    problems = make_plan(config, shapes_of(empty_model(config)), found).problems
    for words in (
        "weight projector.fc1.bias is missing",
        "weight action_head.model.fc2.bias is missing",
        "vision_backbone.featurizer.blocks.5.attn.qkv.weight is [3072, 1000]",
        "weight language_model.model.surprise is unknown",
    ):
        assert any(words in problem for problem in problems), words
