"""OpenVLA-OFT with fused vision tokens: configuration, processor, model, checkpoints."""

from vega_policy.policy.config import PolicyConfig
from vega_policy.policy.device import choose_device
from vega_policy.policy.model import ModelOutput, VegaModel
from vega_policy.policy.policy import ARMS, VegaPolicy
from vega_policy.policy.pretrained import from_pretrained
from vega_policy.policy.statistics import DatasetStatistics, load_statistics, parse_statistics
from vega_policy.policy.tokenizer import train_tokenizer

__all__ = [
    "ARMS",
    "DatasetStatistics",
    "ModelOutput",
    "PolicyConfig",
    "VegaModel",
    "VegaPolicy",
    "choose_device",
    "from_pretrained",
    "load_statistics",
    "parse_statistics",
    "train_tokenizer",
]
