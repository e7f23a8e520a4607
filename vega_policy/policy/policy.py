"""The policy a rollout or a robot talks to: observations in, environment-ready chunks out.

Shape legend: ``b`` batch, ``v`` views (cameras), ``n`` tokens of one view, ``h``/``w`` token grid,
``t`` steps of a chunk, ``a`` numbers of an action.
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from vega_policy.policy.model import ModelOutput, VegaModel
from vega_policy.policy.prior_reader import PriorReader
from vega_policy.policy.processor import Inputs, Processor
from vega_policy.policy.statistics import DatasetStatistics, choose_key
from vega_policy.policy.stopwatch import Stopwatch
from vega_policy.policy.tokenizer import train_tokenizer
from vega_policy.spec import (
    CAMERAS,
    FULL_ARM,
    ActionChunk,
    ActionSpec,
    ContractError,
    EnvFault,
    PolicyFault,
)
from vega_policy.spec.gripper import target_to_command
from vega_policy.spec.names import require_name
from vega_policy.vision.prior import build_prior

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Self

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from vega_policy.policy.config import ImageTransform, PolicyConfig
    from vega_policy.spec import Check, Observation


ARMS = (FULL_ARM, "gate_clamped")
"""Variants of one set of weights. ``gate_clamped``: the gate is 1, the prior is shut out; what
the trained policy then loses is what it took from the prior."""


ARM_NUMBERS = 7
"""Translation (3), rotation (3), gripper (1)."""


class VegaPolicy(nn.Module):
    """A model with its tokenizer, image path and statistics; fulfils `spec.Policy`.

    Not safe for threads: one thread calls `act`.
    """

    def __init__(
        self,
        *,
        model: VegaModel,
        tokenizer: PreTrainedTokenizerBase,
        statistics: Mapping[str, DatasetStatistics],
        unnorm_key: str | None = None,
        image_transform: ImageTransform | None = None,
        max_batch: int | None = None,
    ) -> None:
        """Join the parts.

        Args:
            model: The trainable core with its prior.
            tokenizer: Adds BOS, pads to the right.
            statistics: By data set.
            unnorm_key: Whose statistics `act` uses; None is allowed where there is only one.
            image_transform: Overrides the configuration's.
            max_batch: Observations per pass. None is 1 on a CPU, where larger passes gain
                little and change the last bits of an answer with what else is asked, and 32 elsewhere.

        Raises:
            CheckpointError: ``unnorm_key`` names no statistics.
        """
        super().__init__()
        self.model = model
        self.processor = Processor(model.config, tokenizer, image_transform=image_transform)
        rule = model.config.normalisation
        self.statistics = {name: entry.by(rule) for name, entry in statistics.items()}
        self.unnorm_key = choose_key(self.statistics, unnorm_key)
        self.max_batch = max_batch
        self.prior_reader = PriorReader(model)
        self._shuts_out_prior = False

    def arm(self, name: str) -> Self:
        """Return a variant that shares every weight with this policy.

        Args:
            name: One of `ARMS`.

        Raises:
            ContractError: There is no such variant.
        """
        require_name(name, ARMS, what="arm")
        variant = copy.copy(self)
        variant._shuts_out_prior = name == "gate_clamped"  # noqa: SLF001 - of the same class
        return variant

    @classmethod
    def create(
        cls,
        config: PolicyConfig,
        *,
        statistics: Mapping[str, DatasetStatistics],
        instructions: Iterable[str],
        prior_path: Path | str | None = None,
        unnorm_key: str | None = None,
        seed: int = 0,
    ) -> Self:
        """Make an untrained policy.

        Args:
            config: Sizes and rules.
            statistics: By data set.
            instructions: Sentences the tokenizer is trained on.
            prior_path: Diffusers directory of the frozen prior; None gives it random weights.
            unnorm_key: See the constructor.
            seed: Of the initial weights; global random state is left as it was.
        """
        tokenizer = train_tokenizer(instructions, vocab_size=config.language.vocab_size)
        prior = None
        if config.fusion.uses_prior:
            prior = build_prior(config.prior, path=prior_path, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = VegaModel(config, prior=prior)
        return cls(
            model=model.eval(), tokenizer=tokenizer, statistics=statistics, unnorm_key=unnorm_key
        )

    @property
    def config(self) -> PolicyConfig:
        """Sizes and rules."""
        return self.model.config

    @property
    def action_spec(self) -> ActionSpec:
        """What the returned numbers mean."""
        return self.config.action

    @property
    def ignores(self) -> tuple[str, ...]:
        """Cameras it is made without, so that a preflight does not miss them."""
        return tuple(name for name in CAMERAS if name not in self.config.cameras)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The prompt's tokenizer."""
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.model.parameters()).device

    def act(self, batch: Sequence[Observation], *, keys: Sequence[int]) -> list[ActionChunk]:
        """Answer each observation with a chunk, clipped to the bounds of the action specification.

        Args:
            batch: Observations.
            keys: One integer each, the only source of randomness (of a prior with keyed noise).

        Raises:
            ContractError: An observation is not what the policy was trained with.
            PolicyFault: The model returned something that is not finite.
            EnvFault: The device failed or ran out of memory, which is no answer of the policy.
            ValueError: There is not one key per observation.
        """
        if len(keys) != len(batch):
            raise ValueError(f"{len(keys)} keys for {len(batch)} observations; pass one for each")
        self.processor.check(batch)
        size = self.max_batch or (1 if self.device.type == "cpu" else 32)
        started = time.perf_counter()
        chunks: list[tuple[NDArray[np.float32], dict[str, NDArray[np.float32]] | None]] = []
        timing = {"processor": 0.0, "prior": 0.0, "model": 0.0}
        for start in range(0, len(batch), size):
            part = slice(start, start + size)
            try:
                chunks += self._pass(batch[part], keys[part], timing)
            except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
                raise EnvFault(
                    f"{self.device} failed while the policy computed: {error}; free its memory, or "
                    "ask for smaller batches"
                ) from error
        timing["total"] = (time.perf_counter() - started) * 1e3
        return [ActionChunk(actions=a, gate=g, timing_ms=dict(timing)) for a, g in chunks]

    @torch.no_grad()
    def _pass(
        self, batch: Sequence[Observation], keys: Sequence[int], timing: dict[str, float]
    ) -> list[tuple[NDArray[np.float32], dict[str, NDArray[np.float32]] | None]]:
        """Answer observations in one pass of the model; add to the milliseconds per stage."""
        self.model.eval()
        watch = Stopwatch(self.device)
        inputs = self.processor(batch)
        watch.mark()
        pixels = self._sent(inputs.pixels)
        features = None if self._shuts_out_prior else self.prior_reader(pixels, batch, keys=keys)
        watch.mark()
        output = self._forward(inputs, pixels, features, keys)
        normalised = output.actions.cpu().numpy()
        watch.mark()
        for stage, lap in zip(timing, watch.laps_ms(), strict=False):
            timing[stage] += lap
        actions = self.commands(normalised)
        gates = [None] * len(batch) if output.gate is None else self._gate_maps(output.gate)
        return list(zip(actions, gates, strict=True))

    def _forward(
        self, inputs: Inputs, pixels: Tensor, features: Tensor | None, keys: Sequence[int]
    ) -> ModelOutput:
        return self.model(
            pixels,
            self._normalised_proprio(inputs.proprio),
            self._sent(inputs.input_ids),
            inputs.attention_mask,  # stays here, where its padding is known without waiting
            prior_features=features,
            keys=keys,
            shut_out_prior=self._shuts_out_prior,
        )

    def _normalised_proprio(self, proprio: Tensor) -> Tensor | None:
        if not self.config.proprio_size:
            return None
        values = self.statistics[self.unnorm_key].proprio.normalise(proprio.numpy())
        return self._sent(torch.from_numpy(values.astype(np.float32)))

    def _sent(self, tensor: Tensor) -> Tensor:
        """Hand a tensor to the device without waiting until it is there."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def commands(self, normalised: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn the model's output (..., t, a) into environment commands of the same shape.

        Raises:
            ContractError: The actions are not those of one arm with a gripper.
            PolicyFault: A number is not finite.
        """
        spec = self.action_spec
        if spec.size != ARM_NUMBERS:
            raise ContractError(
                f"the policy's actions have {spec.size} numbers, and only those of one arm with a "
                f"gripper ({ARM_NUMBERS}: {spec.control}) can be made commands; take the model's own "
                "output and give it its unit with `Bounds.unnormalise`"
            )
        if not np.isfinite(normalised).all():
            raise PolicyFault(
                "the model returned actions that are not finite; the weights or the observation are "
                "damaged, check them before the next episode"
            )
        actions = self.statistics[self.unnorm_key].action.unnormalise(normalised)
        actions[..., -1] = target_to_command(actions[..., -1])
        return np.clip(actions, spec.low, spec.high).astype(np.float32)

    def _gate_maps(self, gate: Tensor) -> list[dict[str, NDArray[np.float32]]]:
        side = self.config.semantic.grid
        cameras = self.config.cameras
        maps = gate.float().cpu().numpy().reshape(len(gate), len(cameras), side, side)
        return [dict(zip(cameras, row, strict=True)) for row in maps]

    def checks(self, observations: Sequence[Observation], *, suite: str) -> Iterator[Check]:
        """Examine this policy, lazily; see `vega_policy.policy.probes.checks`."""
        from vega_policy.policy.probes import checks

        return checks(self, observations, suite=suite)

    def save_pretrained(self, path: Path | str, *, card: str | None = None) -> None:
        """Write a checkpoint directory that `from_pretrained` reads.

        An existing checkpoint at ``path`` is replaced as a whole, at the very end.

        Args:
            path: The directory.
            card: Text of its README; None writes a short one.

        Raises:
            ContractError: ``path`` exists and is not a checkpoint, or the weights are quantised.
        """
        from vega_policy.policy.acceleration import is_quantised
        from vega_policy.policy.pretrained import save_pretrained

        if is_quantised(self.model):
            raise ContractError(
                "the language model is stored in 4 bits, and no checkpoint is read with such "
                "weights; save the policy it was made of"
            )
        save_pretrained(self, path, card=card)
