"""The rules: reference numbers, a start that can be chosen, and one contract for all."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vega_policy.spec import ContractError
from vega_policy.vision.fusion import (
    FUSIONS,
    CrossAttentionFusion,
    FusionConfig,
    NoFusion,
    ResidualZeroFusion,
    SequenceConcatFusion,
    TokenGateFusion,
    TokenGateNormedFusion,
    TokenGateResidualFusion,
    build_fusion,
    dropped_priors,
)
from vega_policy.vision.fusion.cross_attention import grid_code

GOLDEN = Path(__file__).parents[1] / "data" / "fusion" / "gates.npz"
RULES = {
    "paper": TokenGateFusion,
    "token_gated": TokenGateNormedFusion,
    "token_gated_residual": TokenGateResidualFusion,
}
GATED = {"token_gate", "token_gate_normed", "token_gate_residual", "residual_zero", "channel_gate"}
TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def golden():
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN).items()}


@pytest.fixture
def streams():
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 8, 8, generator=g), torch.randn(2, 8, 8, generator=g)


def build(name, **settings):
    """Two views of 2 x 2 tokens fit the streams."""
    torch.manual_seed(0)
    return build_fusion(FusionConfig(name=name, **settings), width=8, grid=2)


def loaded(rule, golden, dtype=torch.float32):
    fusion = rule(width=48)
    weights = {
        "norm_prior.weight": golden["norm_gen_weight"],
        "norm_prior.bias": golden["norm_gen_bias"],
        "norm_semantic.weight": golden["norm_sem_weight"],
        "norm_semantic.bias": golden["norm_sem_bias"],
        # The order of Eq. 7: the prior first.
        "score.weight": torch.cat([golden["gate_weight_gen"], golden["gate_weight_sem"]], dim=1),
        "score.bias": golden["gate_bias"],
    }
    if rule is TokenGateResidualFusion:
        weights["scale"] = golden["residual_scale"].reshape(1)
    fusion.load_state_dict(weights)
    return fusion.to(dtype).requires_grad_(requires_grad=False)


def error(fusion, golden, name):
    dtype = fusion.score.weight.dtype
    fused = fusion(golden["semantic"].to(dtype), golden["generative"].to(dtype))
    return float((fused.tokens - golden[f"{name}.output"]).abs().max())


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gate_gives_the_reference_numbers(name, dtype, golden):
    fusion = loaded(RULES[name], golden, dtype)
    exact = name == "paper" and dtype == torch.float64
    tolerance = 1e-12 if exact else TOLERANCE
    assert error(fusion, golden, name) < tolerance
    gate = fusion(golden["semantic"].to(dtype), golden["generative"].to(dtype)).gate
    assert (gate - golden["paper.gate" if exact else "gate"]).abs().max() < tolerance


def complemented(fusion, _):
    fusion.score.weight.neg_()
    fusion.score.bias.neg_()


def on_the_wrong_stream(fusion, _):
    fusion.score.weight.copy_(fusion.score.weight.roll(48, dims=1))


def from_raw_streams(fusion, golden):
    raw = torch.cat([golden["generative"], golden["semantic"]], dim=-1)
    fusion.gate = lambda *_: torch.sigmoid(fusion.score(raw))


def without_bias(fusion, _):
    fusion.score.bias.zero_()


def fixed_at_half(fusion, _):
    fusion.score.weight.zero_()
    fusion.score.bias.zero_()


def with_exchanged_norms(fusion, _):
    fusion.norm_prior, fusion.norm_semantic = fusion.norm_semantic, fusion.norm_prior


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "mistake",
    [
        complemented,
        on_the_wrong_stream,
        from_raw_streams,
        without_bias,
        fixed_at_half,
        with_exchanged_norms,
    ],
)
def test_a_wrong_gate_misses_the_reference_by_far(name, mistake, golden):
    fusion = loaded(RULES[name], golden)
    mistake(fusion, golden)
    assert error(fusion, golden, name) > 1e4 * TOLERANCE


def test_a_wrong_mix_misses_the_reference_by_far(golden):
    assert error(loaded(TokenGateFusion, golden), golden, "token_gated") > 1
    assert error(loaded(TokenGateNormedFusion, golden), golden, "paper") > 1
    unscaled = loaded(TokenGateResidualFusion, golden)
    unscaled.scale.fill_(1.0)
    assert error(unscaled, golden, "token_gated_residual") > 1


def test_the_residual_gate_starts_at_the_published_scale():
    assert TokenGateResidualFusion(width=8).scale.tolist() == pytest.approx([0.2])
    assert build("token_gate_residual", residual_scale=0.5).scale.tolist() == [0.5]


def test_a_residual_gate_of_scale_one_is_the_paper_rule_and_of_scale_zero_the_identity(streams):
    residual, paper = build("token_gate_residual"), build("token_gate")
    residual.load_state_dict({**paper.state_dict(), "scale": torch.ones(1)})
    torch.testing.assert_close(residual(*streams).tokens, paper(*streams).tokens)
    torch.nn.init.zeros_(residual.scale)
    assert torch.equal(residual(*streams).tokens, streams[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_residual_fusion_returns_the_semantic_tokens_bit_for_bit(streams, dtype):
    semantic, prior = (stream.to(dtype) for stream in streams)
    tokens = build("residual_zero").to(dtype)(semantic, 1e3 * prior).tokens
    assert tokens.dtype == dtype
    assert torch.equal(tokens, semantic)


def test_residual_score_gets_its_gradient_one_step_after_out(streams):
    fusion = build("residual_zero")
    sgd = torch.optim.SGD(fusion.parameters(), lr=0.1)
    moving = []
    for _ in range(2):
        sgd.zero_grad()
        fusion(*streams).tokens.square().sum().backward()
        moving.append({n for n, p in fusion.named_parameters() if p.grad.abs().sum() > 0})
        sgd.step()
    assert moving == [{"out.weight"}, {"out.weight", "score.weight", "score.bias"}]


@pytest.mark.parametrize("name", sorted(GATED))
@pytest.mark.parametrize("start", [0.02, 0.5, 0.98])
def test_a_gate_starts_where_it_is_told_for_every_token_and_can_still_move(name, start, streams):
    fusion = build(name, gate_start=start)
    fused = fusion(*streams)
    torch.testing.assert_close(fused.gate, torch.full((2, 8, 1), start))
    fused.gate.square().sum().backward()
    assert fusion.score.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("start", [0.0, 1.0, -1.0])
def test_a_gate_cannot_start_where_no_sigmoid_ends(start):
    with pytest.raises(ContractError, match=r"gate_start is .* strictly between 0 and 1"):
        build("token_gate", gate_start=start)


def test_a_channel_gate_with_equal_channels_is_the_token_gate(streams):
    channel, token = build("channel_gate"), build("token_gate")
    weights = token.state_dict()
    channel.load_state_dict(
        {
            **weights,
            "score.weight": weights["score.weight"].expand(8, 16),
            "score.bias": weights["score.bias"].expand(8),
        }
    )
    for a, b in zip(vars(channel(*streams)).values(), vars(token(*streams)).values(), strict=True):
        torch.testing.assert_close(a, b)


def test_rules_without_weights_say_what_they_are(streams):
    semantic, prior = streams
    assert torch.equal(build("add")(semantic, prior).tokens, semantic + prior)
    assert torch.equal(build("prior_only")(semantic, prior).tokens, prior)
    assert torch.equal(NoFusion()(semantic, prior * torch.nan).tokens, semantic)
    both = SequenceConcatFusion()(semantic, prior).tokens
    assert torch.equal(both, torch.cat([semantic, prior], dim=1))
    for name in ("add", "prior_only", "none", "sequence_concat"):
        assert not list(build(name).parameters())


@pytest.mark.parametrize("name", FUSIONS)
def test_every_rule_keeps_its_contract(name, streams):
    fusion = build(name)
    fused = fusion(*streams)
    assert fused.tokens.shape == (2, 16 if name == "sequence_concat" else 8, 8)
    assert fusion.has_gate is (name in GATED) is (fused.gate is not None)
    if fused.gate is not None:
        assert fused.gate.shape == (2, 8, 1)
        assert ((fused.gate >= 0) & (fused.gate <= 1)).all()


@pytest.mark.parametrize("name", sorted(set(FUSIONS) - {"none"}))
def test_token_count_mismatch_names_the_fix(name, streams):
    semantic, prior = streams
    with pytest.raises(ValueError, match="resample it to the semantic grid"):
        build(name)(semantic, prior[:, :3])


@pytest.mark.parametrize("n_layers", [1, 3])
def test_cross_attention_looks_everywhere_in_its_own_view_and_nowhere_else(n_layers, streams):
    fusion = build("cross_attention", layers=n_layers)
    semantic, prior = streams
    before = fusion(semantic, prior).tokens
    moved = prior.clone()
    moved[:, 3] += torch.randn(8, generator=torch.Generator().manual_seed(1))
    change = (fusion(semantic, moved).tokens - before).abs().amax(dim=(0, 2))
    assert (change[:4] > 1e-6).all()
    assert (change[4:] == 0).all()


def test_cross_attention_tells_places_apart(streams):
    """Without a code of the place the order of the prior's tokens would not matter."""
    fusion = build("cross_attention")
    semantic, prior = streams
    shuffled = prior[:, [1, 0, 2, 3, 4, 5, 6, 7]]
    assert (fusion(semantic, shuffled).tokens - fusion(semantic, prior).tokens).abs().max() > 1e-4
    code = grid_code(3, 8)
    assert code.shape == (9, 8)
    assert torch.equal(code[1, :4], code[0, :4])  # same row
    assert torch.equal(code[1, 4:], code[4, 4:])  # same column
    assert code[5, 4:].tolist() == pytest.approx(
        [np.sin(2), np.sin(2 / 100), np.cos(2), np.cos(2 / 100)], abs=1e-6
    )


@pytest.mark.parametrize(("width", "n_layers"), [(12, 1), (8, 0)])
def test_cross_attention_that_cannot_be_built_says_why(width, n_layers):
    with pytest.raises(ContractError, match="width divisible by 8 and at least one layer"):
        CrossAttentionFusion(width=width, grid=2, n_layers=n_layers)


def test_unknown_rule_is_answered_with_the_nearest():
    with pytest.raises(ContractError, match="did you mean 'token_gate'"):
        build("tokengate")


def test_dropped_priors_are_a_function_of_their_seed():
    assert dropped_priors(8, probability=0.0, seed=(0, 1)) is None
    draw = dropped_priors(4000, probability=0.3, seed=(0, 1))
    assert torch.equal(draw, dropped_priors(4000, probability=0.3, seed=(0, 1)))
    assert not torch.equal(draw, dropped_priors(4000, probability=0.3, seed=(0, 2)))
    assert draw.float().mean() == pytest.approx(0.3, abs=0.03)
    with pytest.raises(ContractError, match=r"fusion\.name=none"):
        dropped_priors(8, probability=1.0, seed=(0,))


def test_a_new_residual_rule_ignores_a_closed_or_open_gate(streams):
    for start in (None, 0.01, 0.99):
        fusion = ResidualZeroFusion(width=8, start=start)
        assert torch.equal(fusion(*streams).tokens, streams[0])
