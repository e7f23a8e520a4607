"""Wan's directories: three layouts, one set of bits; what is wrong is listed before anything runs."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vega_policy.spec import CheckpointError
from vega_policy.vision.prior import wan_layouts
from vega_policy.vision.prior.config import PriorConfig, WanDims
from vega_policy.vision.prior.vace import VacePrior
from vega_policy.vision.prior.wan import WanPrior, load_wan, new_wan, save_wan
from vega_policy.vision.prior.wan_layouts import open_wan
from vega_policy.vision.prior.wan_prompt import (
    ORIGINAL_ENCODER,
    PROMPT_KEY,
    cache_folder,
    empty_prompt,
)

WAN_1_3B = WanDims(
    heads=12, head_dim=128, n_blocks=30, ffn_width=8960, text_width=4096, vae_width=96
)
TINY = Path(__file__).parents[1] / "data" / "wan_tiny"
LAYOUTS = {"diffusers": TINY, "original": TINY / "original"}
CONFIG = PriorConfig(
    width=48,
    image_px=256,
    grid=14,
    block_index=2,
    prompt_tokens=512,
    dims=WanDims(heads=3, head_dim=16, n_blocks=4, ffn_width=112, text_width=24, vae_width=2),
)
PROMPT = torch.arange(24.0).unsqueeze(0)


@pytest.fixture
def prompt(tmp_path):
    file = tmp_path / "prompt.safetensors"
    save_file({PROMPT_KEY: PROMPT}, file)
    return file


@pytest.fixture(params=sorted(LAYOUTS))
def copy(request, tmp_path):
    folder = tmp_path / "wan"
    shutil.copytree(LAYOUTS[request.param], folder)
    if request.param == "diffusers":
        shutil.rmtree(folder / "original")
    return folder


@pytest.fixture
def original(tmp_path):
    return Path(shutil.copytree(LAYOUTS["original"], tmp_path / "original"))


def contents(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def transformer_of(folder):
    part = folder / "transformer"
    return (part if part.is_dir() else folder) / "diffusion_pytorch_model.safetensors"


def shard(file):
    """Split a file of weights in three, with an index, as large models are published."""
    tensors = load_file(file)
    keys = sorted(tensors)
    names = [f"{file.stem}-0000{i + 1}-of-00003.safetensors" for i in range(3)]
    where = {key: names[i % 3] for i, key in enumerate(keys)}
    for name in names:
        save_file({k: tensors[k] for k in keys if where[k] == name}, file.parent / name)
    index = {"metadata": {}, "weight_map": where}
    (file.parent / f"{file.stem}.safetensors.index.json").write_text(json.dumps(index))
    file.unlink()
    return names


def test_loading_leaves_the_directory_as_it_is(copy, prompt):
    before = contents(copy)
    load_wan(copy, prompt_file=prompt)
    assert contents(copy) == before


def test_shards_and_a_pth_hold_the_same_bits(copy, prompt):
    vae, transformer, _ = load_wan(copy, prompt_file=prompt)
    shard(transformer_of(copy))
    file = copy / "Wan2.1_VAE.safetensors"
    if file.is_file():
        torch.save(load_file(file), file.with_suffix(".pth"))
        file.unlink()
    again = load_wan(copy, prompt_file=prompt)
    for a, b in ((vae, again[0]), (transformer, again[1])):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_saved_directory_is_the_diffusers_layout(original, prompt, tmp_path):
    prior = WanPrior.load(original, dataclasses.replace(CONFIG, prompt_file=str(prompt)))
    prior.save(tmp_path / "saved")
    again = WanPrior.load(tmp_path / "saved", CONFIG)
    assert torch.equal(again.prompt, prior.prompt)
    frames = torch.rand(1, 1, 3, 256, 256) * 2 - 1
    assert torch.equal(again.features(frames, keys=[0]), prior.features(frames, keys=[0]))


def test_a_prior_can_be_saved_over_the_files_it_was_read_from(prompt, tmp_path):
    prior = WanPrior.load(LAYOUTS["original"], dataclasses.replace(CONFIG, prompt_file=str(prompt)))
    prior.save(tmp_path / "saved")
    again = WanPrior.load(tmp_path / "saved", CONFIG)
    again.save(tmp_path / "saved")
    last = WanPrior.load(tmp_path / "saved", CONFIG).state_dict()
    assert all(torch.equal(value, last[key]) for key, value in prior.state_dict().items())
    assert not list((tmp_path / "saved").rglob(".*"))


def test_blocks_that_are_not_wanted_are_not_read(copy, prompt, monkeypatch):
    read = []
    plain = wan_layouts.open_weights

    def spy(file):
        manager = plain(file)

        class Spied:
            def __enter__(self):
                keys, get = manager.__enter__()
                return keys, lambda key: (read.append(key), get(key))[1]

            def __exit__(self, *args):
                return manager.__exit__(*args)

        return Spied()

    monkeypatch.setattr(wan_layouts, "open_weights", spy)
    load_wan(copy, n_blocks=2, prompt_file=prompt)
    blocks = {key.split(".")[1] for key in read if key.startswith("blocks.")}
    assert blocks == {"0", "1"}


def test_bfloat16_keeps_what_the_library_keeps_in_float32(copy, prompt):
    config = dataclasses.replace(CONFIG, prompt_file=str(prompt))
    exact = WanPrior.load(copy, config)
    loaded = WanPrior.load(copy, config, dtype=torch.bfloat16)
    cast = WanPrior.load(copy, config).to(torch.bfloat16)
    types = {name: p.dtype for name, p in loaded.named_parameters()}
    assert types == {name: p.dtype for name, p in cast.named_parameters()}
    for name, dtype in types.items():
        kept = any(part in name for part in ("scale_shift_table", "norm2", "time_embedder"))
        kept = kept and name.startswith("transformer")
        assert dtype == (torch.float32 if kept else torch.bfloat16), name
    assert torch.equal(cast.transformer.rope.freqs_cos, exact.transformer.rope.freqs_cos)
    frames = torch.rand(1, 2, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    a, b, c = (p.features(frames, keys=[0]) for p in (exact, loaded, cast))
    assert torch.equal(b, c)
    assert 1e-4 < (a - b).abs().max() < 0.3


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_every_wrong_key_is_listed(copy, prompt, change):
    file = transformer_of(copy)
    tensors = load_file(file)
    keys = [key for key in sorted(tensors) if key.startswith("blocks.1.")][:2]
    for key in keys:
        value = tensors.pop(key)
        if change == "shape":
            tensors[key] = value[..., :-1].contiguous()
        elif change == "unexpected":
            tensors[key] = value
            tensors[f"img_emb.{key}"] = value.clone()
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as error:
        load_wan(copy, prompt_file=prompt)
    assert str(error.value).count(change if change != "shape" else "the configuration builds") == 2


def test_a_missing_or_cut_off_shard_is_named(copy, prompt):
    names = shard(transformer_of(copy))
    folder = transformer_of(copy).parent
    whole = (folder / names[1]).read_bytes()
    (folder / names[1]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=names[1]):
        load_wan(copy, prompt_file=prompt)
    (folder / names[1]).unlink()
    (folder / names[2]).unlink()
    with pytest.raises(CheckpointError, match=f"{names[1]}, {names[2]}"):
        load_wan(copy, prompt_file=prompt)


def test_settings_that_do_not_fit_are_refused_before_weights_are_read(copy, prompt):
    transformer_of(copy).write_bytes(b"not weights")
    config = dataclasses.replace(CONFIG, prompt_file=str(prompt), width=64)
    with pytest.raises(CheckpointError, match="width is 48, settings say 64"):
        WanPrior.load(copy, config)


def test_other_directories_are_refused_in_one_sentence(tmp_path, original):
    with pytest.raises(
        CheckpointError, match=r"vae/config\.json, transformer/config\.json missing"
    ):
        open_wan(tmp_path)
    (original / "Wan2.1_VAE.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no VAE"):
        open_wan(original)
    config = json.loads((original / "config.json").read_text())
    (original / "config.json").write_text(json.dumps({**config, "model_type": "i2v"}))
    shutil.copy(LAYOUTS["original"] / "Wan2.1_VAE.safetensors", original)
    with pytest.raises(CheckpointError, match="WanModel for i2v"):
        open_wan(original)


def test_a_name_that_is_no_folder_is_looked_up_in_the_cache_of_the_hub(monkeypatch, tmp_path):
    with pytest.raises(CheckpointError, match="is not a directory"):
        open_wan(tmp_path / "absent")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="neither a folder here nor to be had from the hub"):
        open_wan("owner/name-that-is-not-cached")
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return str(LAYOUTS["original"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert open_wan("Wan-AI/Wan2.1-T2V-1.3B", needs_prompt=False).is_original
    assert asked == [("Wan-AI/Wan2.1-T2V-1.3B", {"local_files_only": True})]
    open_wan("Wan-AI/Wan2.1-T2V-1.3B")  # the cached copy has no text encoder
    assert "text_encoder/*" in asked[-1][1]["allow_patterns"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def encoder():
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=16,
        d_model=24,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
    )
    return UMT5EncoderModel(config).eval()


def save_tokenizer(folder):
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2}, unk_token="<pad>"))  # noqa: S106
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    special = {"eos_token": "</s>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)


def as_original(encoder, file):
    """Write a text encoder under Wan's own names."""
    held = {}
    for key, value in encoder.state_dict().items():
        name = key.removeprefix("encoder.")
        for new, old in (
            ("shared.weight", "token_embedding.weight"),
            ("final_layer_norm.weight", "norm.weight"),
            ("block.", "blocks."),
            ("layer.0.layer_norm", "norm1"),
            ("layer.1.layer_norm", "norm2"),
            ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
            ("layer.0.SelfAttention", "attn"),
            ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
            ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
            ("layer.1.DenseReluDense.wo", "ffn.fc2"),
        ):
            name = name.replace(new, old)
        held[name] = value.bfloat16().clone()
    held.pop("embed_tokens.weight", None)
    torch.save(held, file)


def test_the_prompt_is_computed_once_from_either_text_encoder(encoder, cache, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    diffusers, original = tmp_path / "diffusers", tmp_path / "original"
    encoder.bfloat16().save_pretrained(diffusers / "text_encoder")
    save_tokenizer(diffusers / "tokenizer")
    original.mkdir()
    as_original(encoder, original / ORIGINAL_ENCODER)
    save_tokenizer(original / "google" / "umt5-xxl")
    before = contents(diffusers)
    found = empty_prompt(diffusers)
    with torch.no_grad():
        expected = encoder(input_ids=torch.tensor([[1]])).last_hidden_state[0].float()
    assert found.shape == (1, 24)
    assert torch.equal(found, expected)
    assert torch.equal(empty_prompt(original), expected)
    assert contents(diffusers) == before
    assert len(list((cache / "empty_prompt").iterdir())) == 2
    said = caplog.text.count("computing the empty prompt")
    assert torch.equal(empty_prompt(diffusers), expected)
    assert caplog.text.count("computing the empty prompt") == said == 2


def test_padding_under_a_mask_does_not_change_the_prompt(encoder):
    """The released code pads to 512 and masks; one token alone gives the same."""
    ids = torch.tensor([[1] + [0] * 15])
    with torch.no_grad():
        padded = encoder(input_ids=ids, attention_mask=(ids > 0).long()).last_hidden_state[:, :1]
        alone = encoder(input_ids=ids[:, :1]).last_hidden_state
    torch.testing.assert_close(padded, alone, atol=1e-6, rtol=1e-6)


def test_the_directorys_own_prompt_comes_first_and_then_the_given_file(tmp_path, prompt):
    torch.save(PROMPT.bfloat16(), tmp_path / "wan_prompt_embedding.pt")
    assert torch.equal(empty_prompt(tmp_path, prompt_file=prompt), PROMPT)
    released = empty_prompt(tmp_path, prompt_file=tmp_path / "wan_prompt_embedding.pt")
    assert torch.equal(released, PROMPT)
    own = tmp_path / "own"
    own.mkdir()
    save_file({PROMPT_KEY: PROMPT + 1}, own / "empty_prompt.safetensors")
    assert torch.equal(empty_prompt(own, prompt_file=prompt), PROMPT + 1)


def test_without_any_prompt_one_sentence_says_what_to_do(cache, tmp_path):
    with pytest.raises(CheckpointError, match=r"set prior\.prompt_file, or download"):
        empty_prompt(tmp_path)
    with pytest.raises(CheckpointError, match="which is no file"):
        empty_prompt(tmp_path, prompt_file=tmp_path / "absent.pt")
    torch.save({"a": PROMPT[0]}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="expected the empty prompt's embedding"):
        empty_prompt(tmp_path, prompt_file=tmp_path / "bad.pt")
    (tmp_path / "pickle.pt").write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(CheckpointError, match="cannot be read"):
        empty_prompt(tmp_path, prompt_file=tmp_path / "pickle.pt")
    assert not cache.exists()


def original_names(names):
    """Return the published names of a transformer's weights, by the table in docs/priors.md."""
    table = (
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        ("to_out.0", "o"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        (".norm2.", ".norm3."),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
        ("proj_out", "head.head"),
    )
    found = set()
    for name in names:
        new = name
        for diffusers, old in table:
            new = new.replace(diffusers, old)
        if new == "scale_shift_table":
            new = "head.modulation"
        found.add(new.replace("scale_shift_table", "modulation"))
    return found


def test_the_published_size_has_the_published_weights(tmp_path):
    published = {
        "_class_name": "WanModel",
        "dim": 1536,
        "eps": 1e-06,
        "ffn_dim": 8960,
        "freq_dim": 256,
        "in_dim": 16,
        "model_type": "t2v",
        "num_heads": 12,
        "num_layers": 30,
        "out_dim": 16,
        "text_len": 512,
    }
    shutil.copytree(LAYOUTS["original"], tmp_path / "wan")
    (tmp_path / "wan" / "config.json").write_text(json.dumps(published))
    directory = open_wan(tmp_path / "wan", needs_prompt=False)
    _, full = directory.models()
    assert sum(p.numel() for p in full.parameters()) == 1_418_996_800
    assert len(full.blocks) == 30
    vae, cut = directory.models(n_blocks=21)
    kept = {
        k for k in full.state_dict() if not k.startswith("blocks.") or int(k.split(".")[1]) < 21
    }
    assert set(cut.state_dict()) == kept
    names = wan_layouts._original_transformer_names(original_names(full.state_dict()))
    assert set(names) == set(full.state_dict())
    assert len(names) == 825
    config = PriorConfig(width=1536, block_index=20, prompt_tokens=512, dims=WAN_1_3B)
    with pytest.raises(CheckpointError, match="vae_width is 2, settings say 96"):
        WanPrior._require_agreement(config, vae, cut, None)


def test_the_published_vae_has_the_published_size():
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan()
    assert vae.config.base_dim == WAN_1_3B.vae_width
    assert sum(p.numel() for p in vae.parameters()) == 126_892_531


def test_the_tiny_nano_prior_survives_a_round_trip(tmp_path):
    dims = WanDims(heads=1, head_dim=16, n_blocks=2, ffn_width=32, text_width=8, vae_width=2)
    vae, transformer, prompt = new_wan(dims)
    save_wan(tmp_path, vae=vae, transformer=transformer, prompt=prompt)
    again = load_wan(tmp_path)
    assert torch.equal(again[2], prompt)
    for a, b in ((vae, again[0]), (transformer, again[1])):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def original_vace_name(name):
    for diffusers, old in ((".proj_in", ".before_proj"), (".proj_out", ".after_proj")):
        if name.startswith("vace_blocks"):
            name = name.replace(diffusers, old)
    return next(iter(original_names([name])))


def test_vace_is_read_from_the_original_layout_too(original, prompt):
    dims = CONFIG.dims
    _, transformer, _ = new_wan(dims, seed=3, is_vace=True)
    held = {original_vace_name(k): v.clone() for k, v in transformer.state_dict().items()}
    save_file(held, original / "diffusion_pytorch_model.safetensors")
    config = json.loads((original / "config.json").read_text())
    vace = {"_class_name": "VaceWanModel", "model_type": "vace", "vace_in_dim": 96}
    (original / "config.json").write_text(json.dumps({**config, **vace, "vace_layers": [0, 2]}))
    with pytest.raises(CheckpointError, match=r"that of prior\.name=vace"):
        WanPrior.load(original, dataclasses.replace(CONFIG, prompt_file=str(prompt)))
    for n_blocks, n_control in ((2, 1), (4, 2)):
        _, found, _ = load_wan(original, n_blocks=n_blocks, prompt_file=prompt)
        assert (len(found.blocks), len(found.vace_blocks)) == (n_blocks, n_control)
        expected = transformer.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in found.state_dict().items())
    prior = VacePrior.load(original, dataclasses.replace(CONFIG, prompt_file=str(prompt)))
    assert prior.features(torch.zeros(1, 1, 3, 256, 256), keys=[0]).shape == (1, 1, 196, 48)
