"""Which weights are trained, and low-rank adapters on those that are not.

OpenVLA-OFT's recipe: rank 32, alpha 16, on every linear layer of towers, projector and language
model, the two patch embeddings included; head, proprio projector and FiLM are trained in full.
Differences from it: adapters and everything trained in full are float32 (upstream: bfloat16 adapters
and head, without master weights), and parts that never get a gradient have no adapter (upstream:
the output layer of the language model and SigLIP's pooling).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vega_policy.policy import VegaModel
    from vega_policy.policy.policy import VegaPolicy

Tune = Literal["full", "lora", "grafted"]
"""``full``: every weight. ``lora``: adapters, and `WHOLE` in full. ``grafted``: `GRAFTED` alone."""

GRAFTED = ("vision.prior_projector.", "vision.fusion.")
WHOLE = (
    *GRAFTED,
    "head.",
    "proprio.",
    "slots",
    "vision.semantic.dino_film.",
    "vision.semantic.siglip_film.",
)
"""What is trained in full beside adapters: what a published base model does not have."""
ADAPTED = ("vision.semantic.", "vision.semantic_projector.", "language.", "lm_head")
PRIOR = "vision.prior."
SEMANTIC = ("vision.semantic.", "vision.semantic_projector.")
_ADAPTER = re.compile(r"\.lora_[AB]\.default\.")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: ``W + alpha / rank * B A``."""

    rank: int = 32
    alpha: int = 16
    dropout: float = 0.0


def prepare_weights(
    model: VegaModel,
    *,
    tune: Tune,
    lora: LoraConfig,
    base_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> None:
    """Attach adapters, freeze what is not trained and give every weight its precision, in place.

    Args:
        model: Without adapters.
        tune: Which weights are trained; the prior's never are, nor those that no gradient reaches.
        lora: Of the adapters.
        base_dtype: Of frozen weights; trained ones are float32.
        seed: Of the adapters' first factor; the second starts at zero.

    Raises:
        ContractError: Nothing would be trained.
    """
    idle = _idle(model)
    if tune == "lora":
        _attach(model, lora, seed=seed)
    for name, parameter in model.named_parameters():
        if name.startswith(PRIOR):
            parameter.requires_grad_(False)  # noqa: FBT003 - torch's signature
            continue
        is_trained = _is_trained(name, tune) and not name.startswith(idle)
        parameter.requires_grad_(is_trained)
        dtype = torch.float32 if is_trained else base_dtype
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    if not any(p.requires_grad for p in model.parameters()):
        raise ContractError(
            f"tune is {tune!r} and the policy's fusion is {model.config.fusion.name!r}, so nothing would "
            "be trained; set graft=true to put a prior and a fusion on it, or tune=lora"
        )


def adapted_modules(model: VegaModel) -> list[str]:
    """Return the names of the layers that adapters go on."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and name.startswith(ADAPTED)
        and not name.startswith((*WHOLE, *_idle(model)))
    ]


def merged_state(
    model: nn.Module, *, whole: Callable[[Tensor], Tensor] = lambda t: t, keep: bool = True
) -> dict[str, Tensor]:
    """Return the weights as those of a model without adapters; of the prior nothing.

    Sums are made in float32 and then take the base weight's precision, layer by layer, so no second
    model is held on the device.

    Args:
        model: With or without adapters.
        whole: Joins the shares of a tensor.
        keep: Whether to return anything; other processes only take part in joining.
    """
    state: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    for name, value in model.state_dict().items():
        if name.startswith(PRIOR) or _ADAPTER.search(name):
            continue
        tensor = whole(value)
        owner = name.rpartition(".base_layer.")[0]
        if owner and name.endswith(".weight"):
            tensor = _merged(tensor, modules[owner], whole)
        if keep:
            state[name.replace(".base_layer.", ".")] = tensor.detach().cpu()
    return state


def merge_lora(
    policy: VegaPolicy, *, whole: Callable[[Tensor], Tensor] = lambda t: t, keep: bool = True
) -> VegaPolicy | None:
    """Return a policy that needs no adapters and no other process; None where not ``keep``.

    It lies on the CPU, shares the frozen prior, and is what ``save_pretrained`` is called on. Every
    process must call this; see `merged_state` for the other arguments.
    """
    from vega_policy.policy import VegaModel, VegaPolicy

    state = merged_state(policy.model, whole=whole, keep=keep)
    if not keep:
        return None
    with torch.device("meta"):
        model = VegaModel(policy.config, prior=policy.model.prior)
    model.load_state_dict(state, strict=False, assign=True)
    for name, buffer in policy.model.named_buffers():
        # Rotary frequencies and the like are in no state dictionary.
        if not name.startswith(PRIOR):
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner).register_buffer(leaf, buffer.cpu(), persistent=False)
    return VegaPolicy(
        model=model.eval(),
        tokenizer=policy.tokenizer,
        statistics=policy.statistics,
        unnorm_key=policy.unnorm_key,
    )


def _idle(model: VegaModel) -> tuple[str, ...]:
    """Return the prefixes of weights that no gradient reaches."""
    return SEMANTIC if model.config.fusion.name == "prior_only" else ()


def _is_trained(name: str, tune: Tune) -> bool:
    if tune == "full":
        return True
    if tune == "grafted":
        return name.startswith(GRAFTED)
    return name.startswith(WHOLE) or _ADAPTER.search(name) is not None


def _attach(model: VegaModel, config: LoraConfig, *, seed: int) -> None:
    import peft

    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=adapted_modules(model),
            init_lora_weights="gaussian",
        ),
        model,
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name and not parameter.is_meta:
            # Drawn again: peft's own draw is rounded to the base weights' precision and depends on
            # the global random state.
            values = torch.randn(parameter.shape, generator=generator) / config.rank
            parameter.data = values.to(parameter.device)


def _merged(weight: Tensor, layer: nn.Module, whole: Callable[[Tensor], Tensor]) -> Tensor:
    parts = {
        k.partition(".")[0]: whole(v).float() for k, v in layer.named_parameters() if "lora_" in k
    }
    scaling: dict[str, float] = layer.scaling  # pyright: ignore[reportAssignmentType]
    # Also right for a convolution: its second factor is one by one.
    delta = parts["lora_B"].flatten(1) @ parts["lora_A"].flatten(1)
    return (weight.float() + scaling["default"] * delta.view_as(weight)).to(weight.dtype)
