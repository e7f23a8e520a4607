"""Training a small prior: a Wan VAE, then a Wan transformer by flow matching, on rollout videos."""

from vega_policy.train.prior.pretrain import pretrain
from vega_policy.train.prior.settings import PretrainConfig

__all__ = ["PretrainConfig", "pretrain"]
