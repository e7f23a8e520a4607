"""Which device a model runs on, chosen by name."""

from __future__ import annotations

import torch

from vega_policy.spec import ContractError
from vega_policy.spec.names import require_name


def choose_device(name: str | None) -> torch.device:
    """Return the device a user named; None and ``auto`` take the GPU where there is one.

    Raises:
        ContractError: No such device, or no GPU here.
    """
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    require_name(str(name), ("auto", "cpu", "cuda"), what="device")
    if name == "cuda" and not torch.cuda.is_available():
        raise ContractError(
            "device is 'cuda', this torch sees no GPU; set device=cpu or device=auto"
        )
    return torch.device(str(name))
