"""Checkpoints in the layout OpenVLA-OFT publishes, read without its code."""

from vega_policy.policy.published.layout import PublishedFolder, is_published
from vega_policy.policy.published.settings import read_settings
from vega_policy.policy.published.weights import load_published_model, prepare

__all__ = [
    "PublishedFolder",
    "is_published",
    "load_published_model",
    "prepare",
    "read_settings",
]
