"""Directories in the published layout: variants, adapters, hub ids, and what is wrong with bad ones."""

import dataclasses
import hashlib
import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from vega_policy.policy import from_pretrained
from vega_policy.policy.pretrained import load_config, resolve, statistics_key
from vega_policy.policy.published import PublishedFolder, load_published_model
from vega_policy.policy.statistics import Bounds, save_statistics
from vega_policy.policy.tokenizer import load_llama_tokenizer, prompt_of
from vega_policy.spec import CheckpointError, ContractError
from vega_policy.testing.published import published_checkpoint, published_config
from vega_policy.testing.tiny_policy import tiny_observation, tiny_statistics

DATA = Path(__file__).parents[2] / "data"
HEAD = "action_head--150000_checkpoint.pt"
PROPRIO = "proprio_projector--150000_checkpoint.pt"


@pytest.fixture
def folder(tmp_path):
    return published_checkpoint(tmp_path / "oft")


def change(path, edit):
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def bounds_of(n):
    given = tiny_statistics().action.to_dict()
    return Bounds.from_dict({key: values[:1] * n for key, values in given.items()})


def digest(folder):
    return {
        p: (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).digest())
        for p in folder.rglob("*")
        if p.is_file()
    }


def act(policy, seed=0):
    return policy.act([tiny_observation(seed, image_px=28)], keys=[0])[0].actions


def refuse(folder, words, **options):
    with pytest.raises(CheckpointError, match=words) as error:
        from_pretrained(folder, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["l1", "diffusion", "discrete"])
def test_every_head_is_recognised_and_loading_writes_nothing(tmp_path, kind):
    config = published_config(kind=kind)
    folder = published_checkpoint(tmp_path / "oft", config=config)
    before = digest(folder)
    folder.chmod(0o555)
    policy = from_pretrained(folder)
    assert act(policy).shape == (8, 7)
    assert policy.config.head.kind == kind
    assert policy.config.semantic == config.semantic
    assert policy.config.proprio_size == config.proprio_size
    assert policy.config.fusion.name == "none"
    assert policy.model.prior is None
    assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}
    assert digest(folder) == before
    folder.chmod(0o755)


def test_weights_are_views_of_the_files_and_a_write_stays_private(folder):
    before = digest(folder)
    model = load_published_model(folder)
    layer = model.vision.semantic.dino.encoder.layer[0].attention
    thirds = [p.weight.untyped_storage().data_ptr() for p in (layer.q_proj, layer.k_proj)]
    assert thirds[0] == thirds[1]
    with torch.no_grad():
        layer.q_proj.weight.add_(1)
    assert digest(folder) == before


def test_our_own_copy_of_a_published_policy_answers_the_same(folder, tmp_path):
    policy = from_pretrained(folder, dtype=torch.float32)
    policy.save_pretrained(tmp_path / "ours")
    assert np.array_equal(act(policy), act(from_pretrained(tmp_path / "ours")))


def test_statistics_of_several_suites_are_chosen_by_name(tmp_path):
    names = ("libero_spatial_no_noops", "libero_goal_no_noops")
    folder = published_checkpoint(tmp_path / "joint", datasets=names)
    refuse(folder, "set unnorm_key to one of libero_goal_no_noops, libero_spatial_no_noops")
    refuse(folder, "unknown unnorm_key 'libero_object'", unnorm_key="libero_object")
    assert statistics_key(folder, suite="libero_spatial") == names[0]
    policy = from_pretrained(folder, unnorm_key="libero_goal")
    assert policy.unnorm_key == names[1]


def test_the_configuration_s_old_statistics_are_never_used(folder):
    assert "bridge_orig" not in from_pretrained(folder).statistics
    (folder / "dataset_statistics.json").unlink()
    refuse(folder, "has a head and no dataset_statistics.json")


def test_settings_say_what_the_files_leave_out(folder):
    config = load_config(folder, settings={"cameras": ["wrist"], "normalisation": "bounds"})
    assert config.cameras == ("wrist",)
    policy = from_pretrained(folder, settings={"normalisation": "bounds"})
    assert policy.statistics[policy.unnorm_key].action.rule == "bounds"
    refuse(folder, "unknown key 'camera'", settings={"camera": ["wrist"]})


def test_a_chunk_that_is_not_libero_s_must_be_described(tmp_path):
    config = published_config().changed({"action": {"size": 14, "horizon": 25}})
    folder = published_checkpoint(tmp_path / "aloha", config=config)
    with pytest.raises(CheckpointError, match="gives 14 numbers per action"):
        load_published_model(folder)
    model = load_published_model(folder, settings={"action": {"horizon": 25}})
    assert model.n_slots == 350
    # Nor are its actions those of an arm in LIBERO, whatever the statistics say.
    entry = dataclasses.replace(tiny_statistics(), action=bounds_of(14))
    save_statistics(folder / "dataset_statistics.json", {"aloha": entry})
    policy = from_pretrained(folder, settings={"action": {"horizon": 25}})
    with pytest.raises(ContractError, match="actions have 14 numbers, and only those of one arm"):
        act(policy)


def test_a_base_model_gets_a_fresh_head_and_says_so(folder, caplog):
    (folder / HEAD).unlink()
    (folder / PROPRIO).unlink()
    (folder / "dataset_statistics.json").unlink()
    with caplog.at_level(logging.WARNING):
        model = load_published_model(folder, settings={"head": {"width": 32}})
    assert "has no head, proprio: random weights for now" in caplog.text
    again = load_published_model(folder, settings={"head": {"width": 32}})
    assert torch.equal(model.head.fc_in.weight, again.head.fc_in.weight)
    assert not any(p.is_meta for p in model.parameters())
    film = load_published_model(folder, settings={"semantic": {"film": True}})
    assert not any(p.is_meta for p in film.parameters())
    assert not film.vision.semantic.dino_film[0].scale.weight.any()


# The variants of the reference.


def joined(tmp_path, *names):
    target = tmp_path / "joined"
    for name in names:
        shutil.copytree(DATA / name, target, dirs_exist_ok=True)
    return target


def film_actions(model, row):
    io = np.load(DATA / "oft_tiny_io.npz")
    ids = torch.from_numpy(io["input_ids"][row : row + 1, : io["prompt_len"][row]])
    pixels = torch.from_numpy(io["images"][row : row + 1]).permute(0, 1, 4, 2, 3)
    proprio = torch.from_numpy(io["proprio_normalized"][row : row + 1]).float()
    with torch.no_grad():
        found = model(pixels, proprio, ids).actions[0].numpy()
    return np.abs(found - io["film.normalized_actions"][row]).max()


def test_film_towers_are_merged_as_the_reference_runs_them(tmp_path, monkeypatch):
    folder = joined(tmp_path, "oft_tiny", "oft_tiny_film")
    model = load_published_model(folder, dtype=torch.float32)
    assert max(film_actions(model, row) for row in range(2)) <= 1e-4
    # Controls: scale 1 instead of 1/2, and convolutions without their adapter.
    from vega_policy.policy.published import adapter

    right = adapter._sum
    monkeypatch.setattr(adapter, "_sum", lambda base, a, b, scale: right(base, a, b, 2 * scale))
    assert film_actions(load_published_model(folder, dtype=torch.float32), 0) > 0.1
    monkeypatch.setattr(
        adapter,
        "_sum",
        lambda base, a, b, s: base if len(base.shape) == 4 else right(base, a, b, s),
    )
    assert film_actions(load_published_model(folder, dtype=torch.float32), 0) > 0.1


def test_diffusion_files_are_recognised(tmp_path):
    folder = joined(tmp_path, "oft_tiny", "oft_tiny_diffusion")
    model = load_published_model(folder, settings={"head": {"inference_steps": 10}})
    assert (model.config.head.kind, model.config.head.inference_steps) == ("diffusion", 10)


# Adapters.


def add_adapter(folder, base, *, rank=4, alpha=2):
    """Give ``folder`` an adapter on a linear layer, a fused one and a convolution of ``base``."""
    torch.manual_seed(0)
    stored = PublishedFolder.open(base).tensors()
    names = (
        "language_model.model.layers.0.self_attn.q_proj",
        "vision_backbone.featurizer.blocks.0.attn.qkv",
        "vision_backbone.featurizer.patch_embed.proj",
    )
    weights = {}
    for name in names:
        out, *rest = stored[f"{name}.weight"].shape
        ones = [1] * (len(rest) - 1)
        weights[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, *rest)
        weights[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, rank, *ones)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha}
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(base)})
    )
    return names


def test_an_adapter_is_added_to_its_base(folder, tmp_path):
    tuned = tmp_path / "tuned"
    names = add_adapter(tuned / "lora_adapter", folder)
    for file in ("dataset_statistics.json", HEAD, PROPRIO):
        shutil.copy(folder / file, tuned)
    parts = load_file(tuned / "lora_adapter" / "adapter_model.safetensors")
    before, after = PublishedFolder.open(folder).tensors(), PublishedFolder.open(tuned).tensors()
    for name in names:
        a, b = (parts[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
        expected = before[f"{name}.weight"].read().float()
        expected += 0.5 * torch.einsum("or,r...->o...", b.flatten(1), a)
        torch.testing.assert_close(after[f"{name}.weight"].read(), expected)
    assert not np.array_equal(act(from_pretrained(tuned)), act(from_pretrained(folder)))
    inside = from_pretrained(tuned / "lora_adapter", base=folder)
    assert np.array_equal(act(inside), act(from_pretrained(tuned)))


def test_an_adapter_that_is_already_merged_is_not_added_again(folder):
    before = act(from_pretrained(folder))
    add_adapter(folder / "lora_adapter", folder)
    assert np.array_equal(act(from_pretrained(folder)), before)


def test_bad_adapters_are_named(folder, tmp_path):
    tuned = tmp_path / "tuned"
    add_adapter(tuned, folder)
    config = tuned / "adapter_config.json"
    change(config, lambda c: c.update(base_model_name_or_path="/nowhere"))
    refuse(tuned, "pass the directory or hub id of that checkpoint as base")
    change(config, lambda c: c.update(use_dora=True))
    refuse(tuned, "only plain LoRA", base=folder)
    rank = json.loads(config.read_text())["r"]
    change(config, lambda c: c.update(use_dora=False, r=None))
    refuse(tuned, "r is None and lora_alpha", base=folder)
    change(config, lambda c: c.update(r=rank))
    weights = load_file(tuned / "adapter_model.safetensors")
    weights["base_model.model.nose.lora_A.weight"] = torch.zeros(4, 4)
    save_file(weights, tuned / "adapter_model.safetensors")
    refuse(tuned, r"nose\.lora_B\.weight is missing; the base has no nose\.weight", base=folder)


# Hub.


def test_a_hub_id_uses_the_cache_first_and_downloads_only_what_is_needed(folder, monkeypatch):
    calls = []

    def download(repo, *, revision, allow_patterns, local_files_only=False):
        calls.append((repo, revision, local_files_only))
        assert "*.py" not in allow_patterns
        if local_files_only and len(calls) == 1:
            raise LocalEntryNotFoundError("not here")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("owner/model@v1") == folder
    assert calls == [("owner/model", "v1", True), ("owner/model", "v1", False)]
    assert resolve("owner/model") == folder
    assert calls[2:] == [("owner/model", None, True)]


def test_a_hub_id_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuse("moojink/openvla-7b-oft-finetuned-libero-10", "run `hf download moojink/openvla-7b")


# Bad input.


def test_a_missing_or_cut_shard_is_named_before_anything_is_loaded(folder):
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-7])
    refuse(folder, rf"{shard.name} has {len(content) - 7:,} bytes, its header describes")
    shard.write_bytes(content[:4])
    refuse(folder, rf"{shard.name} is not a safetensors file")
    shard.unlink()
    refuse(folder, rf"lacks {shard.name} of the 3 files")


def test_an_index_of_another_checkpoint_is_named(folder):
    index = folder / "model.safetensors.index.json"
    first = "model-00001-of-00003.safetensors"
    change(index, lambda i: i["weight_map"].update({"projector.fc9.weight": first}))
    refuse(folder, r"projector\.fc9\.weight \(not in model-00001-of-00003\.safetensors\)")


def test_a_head_of_another_size_is_named(folder):
    head = torch.load(folder / HEAD, weights_only=True)
    head["module.model.fc1.weight"] = torch.zeros(32, 10)
    torch.save(head, folder / HEAD)
    refuse(
        folder, r"action_head\.model\.fc1\.weight is \[32, 10\], which gives head\.fc_in\.weight"
    )
    torch.save({"module.value.weight": torch.zeros(1)}, folder / HEAD)
    refuse(folder, "it is no head of OpenVLA-OFT")
    shutil.copy(folder / HEAD, folder / "action_head--50000_checkpoint.pt")
    refuse(folder, "expected one training step")


def test_a_component_that_was_not_downloaded_is_named(folder, caplog):
    (folder / PROPRIO).rename(folder / "elsewhere")
    refuse(folder, r"no proprio_projector--\*_checkpoint\.pt; download it too, or pass settings")
    assert from_pretrained(folder, settings={"proprio_size": 0}).model.proprio is None
    (folder / "elsewhere").rename(folder / PROPRIO)
    (folder / HEAD).unlink()
    refuse(folder, r"has a proprio_projector and no action_head--\*_checkpoint\.pt")
    (folder / PROPRIO).unlink()
    assert from_pretrained(folder).config.head.kind == "discrete"
    assert "has no head, so it is read as OpenVLA-OFT's variant with action tokens" in caplog.text


def test_a_device_or_a_type_that_cannot_be_is_one_sentence(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ContractError, match="this torch sees no GPU"):
        from_pretrained(folder, device="cuda:1")
    with pytest.raises(ContractError, match=r"dtype is torch\.int8, expected a floating-point one"):
        from_pretrained(folder, dtype=torch.int8)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_pickle_with_code_is_refused_and_not_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"module.model.fc2.weight": Evil()}, folder / HEAD)
    refuse(folder, "files that run code when read are refused")
    (folder / HEAD).write_bytes(pickle.dumps(Evil()))
    refuse(folder, f"{HEAD} cannot be read")
    assert not (tmp_path / "owned").exists()


def test_other_directories_are_named(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "is not a checkpoint")
    config = folder / "config.json"
    change(config, lambda c: c.update(timm_model_ids=["vit_large_patch14_clip_336"]))
    refuse(folder, "is of another architecture: timm_model_ids is")
    change(config, lambda c: c.update(model_type="llava"))
    refuse(folder, "is of model_type 'llava', expected 'openvla'")
    for shard in folder.glob("model*"):
        shard.unlink()
    refuse(folder, "has no weights")


def test_a_missing_tokenizer_is_named_and_can_be_given(folder):
    expected = act(from_pretrained(folder))
    tokenizer = load_llama_tokenizer(folder / "tokenizer.json")
    (folder / "tokenizer.json").rename(folder.parent / "tokenizer.json")
    refuse(folder, "has no tokenizer.json; download it too, or pass a tokenizer")
    assert np.array_equal(act(from_pretrained(folder, tokenizer=tokenizer)), expected)


@pytest.mark.skipif(
    "VEGA_LLAMA_TOKENIZER" not in os.environ, reason="set VEGA_LLAMA_TOKENIZER to a tokenizer.json"
)
def test_prompts_are_tokenised_as_published():
    tokenizer = load_llama_tokenizer(Path(os.environ["VEGA_LLAMA_TOKENIZER"]))
    io = np.load(DATA / "oft_tiny_io.npz")
    found = tokenizer([prompt_of(str(i)) for i in io["instruction"]], padding=True)
    ids = np.where(np.array(found["attention_mask"]) == 1, found["input_ids"], -1)
    assert np.array_equal(ids, io["input_ids"])
    assert tokenizer.pad_token_id == 32000
