"""The rules: the paper's numbers, invisible until trained, and the baseline that ignores the prior."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vega_policy.spec import ContractError
from vega_policy.vision.fusion import (
    FUSIONS,
    NoFusion,
    ResidualZeroFusion,
    TokenGateFusion,
    build_fusion,
)

GOLDEN = Path(__file__).parents[1] / "data" / "fusion" / "token_gate.npz"


@pytest.fixture
def streams():
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 8, generator=g), torch.randn(2, 5, 8, generator=g)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_token_gate_gives_the_reference_numbers_of_equations_7_and_8(dtype, tolerance):
    golden = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN).items()}
    fusion = TokenGateFusion(width=48)
    fusion.load_state_dict(
        {
            "norm_prior.weight": golden["norm_gen_weight"],
            "norm_prior.bias": golden["norm_gen_bias"],
            "norm_semantic.weight": golden["norm_sem_weight"],
            "norm_semantic.bias": golden["norm_sem_bias"],
            # The order of Eq. 7: the prior first.
            "score.weight": torch.cat(
                [golden["gate_weight_gen"], golden["gate_weight_sem"]], dim=1
            ),
            "score.bias": golden["gate_bias"],
        }
    )
    fused = fusion.to(dtype)(golden["semantic"].to(dtype), golden["generative"].to(dtype))
    assert (fused.gate - golden["paper.gate"]).abs().max() < tolerance
    assert (fused.tokens - golden["paper.output"]).abs().max() < tolerance


def test_new_residual_fusion_returns_the_semantic_tokens_bit_for_bit(streams):
    semantic, prior = streams
    assert torch.equal(ResidualZeroFusion(width=8)(semantic, prior).tokens, semantic)


def test_residual_score_gets_its_gradient_one_step_after_out(streams):
    torch.manual_seed(0)
    fusion = ResidualZeroFusion(width=8)
    sgd = torch.optim.SGD(fusion.parameters(), lr=0.1)
    moving = []
    for _ in range(2):
        sgd.zero_grad()
        fusion(*streams).tokens.square().sum().backward()
        moving.append({n for n, p in fusion.named_parameters() if p.grad.abs().sum() > 0})
        sgd.step()
    assert moving == [{"out.weight"}, {"out.weight", "score.weight", "score.bias"}]


def test_baseline_ignores_the_prior_and_learns_nothing(streams):
    semantic, prior = streams
    fusion = NoFusion(width=8)
    fused = fusion(semantic, prior * torch.nan)
    assert torch.equal(fused.tokens, semantic)
    assert torch.equal(fused.gate, torch.ones(2, 5, 1))
    assert not list(fusion.parameters())


@pytest.mark.parametrize("name", FUSIONS)
def test_every_rule_keeps_the_shape_and_bounds_its_gate(name, streams):
    fused = build_fusion(name, width=8)(*streams)
    assert fused.tokens.shape == (2, 5, 8)
    assert fused.gate.shape == (2, 5, 1)
    assert ((fused.gate >= 0) & (fused.gate <= 1)).all()


@pytest.mark.parametrize("rule", [TokenGateFusion, ResidualZeroFusion])
def test_token_count_mismatch_names_the_fix(rule, streams):
    semantic, prior = streams
    with pytest.raises(ValueError, match="resample it to the semantic grid"):
        rule(width=8)(semantic, prior[:, :3])


def test_unknown_rule_is_answered_with_the_nearest():
    with pytest.raises(ContractError, match="did you mean 'token_gate'"):
        build_fusion("tokengate", width=8)
