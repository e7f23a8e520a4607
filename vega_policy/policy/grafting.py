"""A prior and a fusion rule for a policy that was trained without, or with others."""

from __future__ import annotations

import copy
import dataclasses
from itertools import chain
from typing import TYPE_CHECKING

import torch

from vega_policy.policy.policy import VegaPolicy
from vega_policy.spec import ContractError
from vega_policy.vision.fusion import FusionConfig
from vega_policy.vision.prior import build_prior

if TYPE_CHECKING:
    from pathlib import Path

    from vega_policy.policy.config import PolicyConfig
    from vega_policy.policy.model import VegaModel
    from vega_policy.vision.prior import AnyPrior, PriorConfig
    from vega_policy.vision.stream import ProjectorConfig


def graft(
    policy: VegaPolicy,
    *,
    prior: PriorConfig,
    prior_path: Path | str | None = None,
    fusion: FusionConfig,
    projector: ProjectorConfig | None = None,
    widen: int = 0,
    seed: int = 0,
) -> VegaPolicy:
    """Return a policy with a new prior, prior projector and fusion rule.

    Every other weight is shared with ``policy``, not copied: train one of the two. What it had of a
    prior is left behind. With fusion ``residual_zero`` the new policy acts as one without a prior,
    bit for bit, until it is trained; other rules disturb a pretrained policy from the first step.
    Graft before compiling, and before giving the policy a store of features.

    Args:
        policy: Ours or a published one, on any device, of any precision.
        prior: Settings of the prior; its grid is that of the policy's towers.
        prior_path: Its weights; None makes random ones.
        fusion: The rule; ``none`` removes the prior.
        projector: Sizes of the prior's projector; None keeps the policy's settings. What it says of
            the semantic projector is not looked at: that one is there.
        widen: Hidden units added to the semantic projector. They answer nothing until they are
            trained, so the policy acts as before up to the order of its sums; with fusion ``none`` they give an
            arm without a prior as many weights as one with it.
        seed: Of the new weights; global random state is left as it was.

    Raises:
        ContractError: The prior does not fit the towers, or ``widen`` is negative.
        CheckpointError: ``prior_path`` does not hold the weights the settings describe.
    """
    config = grafted_config(
        policy.config, prior=prior, fusion=fusion, projector=projector, widen=widen
    )
    built = build_prior(prior, path=prior_path, seed=seed) if fusion.uses_prior else None
    model = _branched(policy.model, config, built, seed=seed)
    if widen:
        model.vision.widen_projector(widen, seed=seed)
    return _with_model(policy, model)


def grafted_config(
    old: PolicyConfig,
    *,
    prior: PriorConfig,
    fusion: FusionConfig,
    projector: ProjectorConfig | None = None,
    widen: int = 0,
) -> PolicyConfig:
    """Return the configuration that `graft` gives a policy of the configuration ``old``.

    Raises:
        ContractError: ``widen`` is negative.
    """
    if widen < 0:
        raise ContractError(f"widen is {widen}, expected 0 or more hidden units")
    semantic = old.projector.semantic_hidden + widen
    projector = dataclasses.replace(projector or old.projector, semantic_hidden=semantic)
    return dataclasses.replace(old, prior=prior, fusion=fusion, projector=projector)


def remove_prior(policy: VegaPolicy) -> VegaPolicy:
    """Return the policy without prior, prior projector and fusion rule: its semantic tokens alone.

    Every remaining weight is shared with ``policy``. It answers as the arm ``gate_clamped`` does.
    """
    config = dataclasses.replace(policy.config, fusion=FusionConfig(name="none"))
    return _with_model(policy, _branched(policy.model, config, None, seed=0))


def _branched(
    model: VegaModel, config: PolicyConfig, prior: AnyPrior | None, *, seed: int
) -> VegaModel:
    """Return a model of its own modules over the same tensors, with another branch."""
    # What the memo names is not copied but shared.
    memo: dict[int, object] = {id(t): t for t in chain(model.parameters(), model.buffers())}
    if model.prior is not None:
        memo[id(model.prior)] = model.prior
    branched = copy.deepcopy(model, memo)
    branched.config = config
    vision = branched.vision
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision.set_branch(config.vision, prior=prior)
    # An embedding is never quantised, so its type is the one the policy computes in.
    weight = model.language.embed_tokens.weight
    vision.fusion.to(weight.device, weight.dtype)
    if vision.prior_projector is not None and vision.prior is not None:
        vision.prior_projector.to(weight.device, weight.dtype)
        vision.prior.to(weight.device)
    return branched.train(model.training)


def _with_model(policy: VegaPolicy, model: VegaModel) -> VegaPolicy:
    return VegaPolicy(
        model=model,
        tokenizer=policy.tokenizer,
        statistics=policy.statistics,
        unnorm_key=policy.unnorm_key,
        image_transform=policy.processor.image_transform,
        max_batch=policy.max_batch,
    )
