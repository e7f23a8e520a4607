"""The benchmark compares ways of answering that answer alike."""

import dataclasses

import pytest
import torch

from vega_policy.policy import benchmark
from vega_policy.policy.benchmark import (
    STAGES,
    InferenceSettings,
    OneByOne,
    headline,
    measure_inference,
    observations,
    random_policy,
    require_memory,
    text,
)
from vega_policy.policy.config import PolicyConfig
from vega_policy.policy.heads import HeadConfig
from vega_policy.spec import ContractError
from vega_policy.testing.tiny_policy import tiny_config

CPU = torch.device("cpu")
SETTINGS = InferenceSettings(
    batches=(1, 2),
    fusions=("none", "token_gate"),
    seconds=0.0,
    dtype=torch.float32,
    prompt_tokens=12,
)


@pytest.fixture(scope="module")
def measured():
    return measure_inference(tiny_config(), SETTINGS, device=CPU)


def test_all_ways_answer_alike_and_a_row_says_how_much_was_timed(measured):
    device, rows = measured
    assert [(r.fusion, r.engine, r.batch) for r in rows] == [
        (fusion, engine, batch)
        for fusion in SETTINGS.fusions
        for engine, batch in (("one by one", 1), ("eager", 1), ("eager", 2))
    ]
    assert all(r.n >= 3 * r.batch for r in rows)
    found = headline(rows, tolerance=1e-4)
    assert found["agrees"]
    assert not headline(rows, tolerance=-1.0)["agrees"]
    assert found["ratio"] == pytest.approx(found["ours"] / found["baseline"], abs=0.02)
    assert found["baseline"] == round(rows[3].per_s, 2)
    assert all(words in text(device, rows) for words in ("token_gate", *STAGES))


def test_the_stages_of_a_pass_are_all_there(measured):
    for row in measured[1]:
        assert set(row.stages_ms) == (set(STAGES) if row.engine == "eager" else set())
        assert all(ms >= 0 for ms in row.stages_ms.values())


@torch.no_grad()
def test_the_original_runs_a_block_nobody_reads_and_answers_the_same():
    policy = random_policy(tiny_config(), SETTINGS, device=CPU)
    seen = observations(2, policy.config, camera_px=32)
    before = benchmark._normalised(policy, seen)
    original = OneByOne(policy)
    calls = []
    block = policy.model.vision.semantic.siglip.encoder.layers[-1]
    block.mlp.register_forward_hook(lambda *_: calls.append(1))
    answers = torch.cat([original.act(o, key=0) for o in seen])
    torch.testing.assert_close(answers, before, atol=1e-5, rtol=0)
    assert len(calls) == 2 * 2 * 2  # observations, cameras, and once more each
    benchmark._normalised(policy, seen[:1])
    assert len(calls) == 8 + 1


def test_weights_that_do_not_fit_are_one_sentence(monkeypatch):
    monkeypatch.setattr(
        benchmark.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, 1000)
    )
    with pytest.raises(
        ContractError, match=r"need about .* GiB, cpu has 0 GiB free; run it on a GPU"
    ):
        require_memory(PolicyConfig.preset("nano"), torch.float32, CPU)


def test_variants_the_original_loop_does_not_know_are_refused():
    diffusion = dataclasses.replace(tiny_config(), head=HeadConfig(kind="diffusion", width=32))
    with pytest.raises(ContractError, match="choose policy=nano or oft_7b"):
        measure_inference(diffusion, SETTINGS, device=CPU)
