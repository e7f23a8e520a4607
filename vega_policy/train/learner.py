"""One update of the weights: forward, loss, gradients, clipping, AdamW, average.

Shape legend: ``b`` batch, ``l`` prompt tokens, ``t`` steps of a chunk, ``a`` numbers of an action.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vega_policy.data.augment import AugmentConfig, centre_cropped, coloured, moved
from vega_policy.data.part import Part
from vega_policy.train.checkpoint import load_optimizer_tensors, optimizer_tensors
from vega_policy.train.ema import Average
from vega_policy.train.ranks import Ranks
from vega_policy.train.schedule import learning_rate
from vega_policy.vision.fusion import dropped_priors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vega_policy.data.chunks import Batch
    from vega_policy.policy.model import ModelOutput, VegaModel
    from vega_policy.train.config import OptimConfig


@dataclass(frozen=True, eq=False)
class Prompts:
    """The tokenised instructions of a data set."""

    input_ids: Tensor
    """(tasks, l) padded on the right, on the device."""
    attention_mask: Tensor
    """(tasks, l) 1 for tokens, on the host: whether there is padding is asked there."""


@dataclass(frozen=True, eq=False)
class Update:
    """What one update was like, in the mean over processes.

    Scalars on the device, read only when they are logged.
    """

    loss: Tensor
    gradient_norm: Tensor
    gate: Tensor
    """Mean weight of the semantic stream; NaN where the fusion rule has none."""


class Learner:
    """A model in training: its optimiser, its average, and how a batch becomes an update."""

    def __init__(
        self,
        model: VegaModel,
        *,
        prompts: Prompts,
        config: OptimConfig,
        augment: AugmentConfig,
        total_steps: int,
        precision: torch.dtype,
        seed: int,
        ranks: Ranks | None = None,
    ) -> None:
        """Prepare; the model must already be on its device, what is trained in float32.

        Args:
            model: Trains what asks for gradients.
            prompts: Of the data set's instructions.
            config: Optimiser settings.
            augment: Changes of the images, and how often the prior is left out.
            total_steps: Updates the learning rate is planned for.
            precision: Of the forward pass; bfloat16 runs under autocast.
            seed: Of the augmentation.
            ranks: The processes of the run; None is this one alone.
        """
        self.model = model
        self.device = next(p for p in model.parameters() if p.requires_grad).device
        self.ranks = ranks or Ranks(self.device)
        self._wrapped = self.ranks.wrap(model)
        self.weights = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self.n_trained = sum(p.numel() for p in self.weights.values())
        self.average = Average(self.weights, decay=config.ema_decay)
        self._part = Part(self.ranks.rank, self.ranks.size)
        self._prompts = prompts
        self._config = config
        self._augment = augment
        self._total = total_steps
        self._precision = precision
        self._seed = seed
        self._optimizer = torch.optim.AdamW(
            _groups(self.weights, config),
            lr=config.schedule.peak,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

    def rate(self, step: int) -> float:
        """Return the learning rate of update ``step``."""
        return learning_rate(step, total=self._total, config=self._config.schedule)

    def update(self, passes: Sequence[Batch], *, step: int) -> Update:
        """Make update ``step`` from one or more batches, whose gradients are averaged."""
        self.model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(step)
        losses: list[Tensor] = []
        gates: list[Tensor] = []
        for number, batch in enumerate(passes):
            seed = (self._seed, step * len(passes) + number)
            is_last = number + 1 == len(passes)
            with nullcontext() if is_last else self.ranks.gradients_stay(self._wrapped):
                loss, gate = self._loss(batch, seed=seed)
                (loss / len(passes)).backward()
            losses.append(loss.detach())
            gates.append(gate.detach())
        limit = self._config.clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), limit)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.average.update(step)
        means = torch.stack([torch.stack(losses).mean(), torch.stack(gates).mean()])
        loss, gate = self.ranks.mean(means)
        return Update(loss=loss, gradient_norm=self.ranks.whole(norm), gate=gate)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Return normalised actions (b, t, a), without augmentation, in the precision of training."""
        self.model.eval()
        pixels = self._pixels(batch)
        if self._augment.crop:
            pixels = centre_cropped(pixels, side=self._augment.crop_side)
        return self._forward(batch, pixels).actions

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, averages and moments by name.

        Every process must call this; where weights are divided, only the first gets them, on the host.
        """
        return {**self._joined(), "random": torch.get_rng_state()}

    def _joined(self) -> dict[str, Tensor]:
        held = {
            **{f"model/{k}": v for k, v in self.weights.items()},
            **{f"average/{k}": v for k, v in self.average.state_dict().items()},
            **optimizer_tensors(self._optimizer, self.weights),
        }
        if self.ranks.size == 1:
            return held
        joined: dict[str, Tensor] = {}
        for name, tensor in held.items():
            whole = self.ranks.whole(tensor.detach())
            if self.ranks.is_main:
                joined[name] = whole.cpu()
        return joined

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` returned, in a run of any number of processes."""
        share = self.ranks.share
        for name, weight in self.weights.items():
            weight.copy_(share(tensors[f"model/{name}"], like=weight))
        self.average.load_state_dict(
            {
                name: share(tensors[f"average/{name}"], like=copy)
                for name, copy in self.average.state_dict().items()
            }
        )
        load_optimizer_tensors(self._optimizer, self.weights, tensors, share=share)
        torch.set_rng_state(tensors["random"])

    def _loss(self, batch: Batch, *, seed: tuple[int, int]) -> tuple[Tensor, Tensor]:
        pixels = moved(self._pixels(batch), self._augment, seed=seed, part=self._part)
        if self._augment.is_photometric:
            batch = self._with_features(batch, pixels)
            pixels = coloured(pixels, self._augment, seed=seed, part=self._part)
        targets = batch.targets.to(self.device, non_blocking=True)
        output = self._forward(
            batch, pixels, targets, step=seed[1], shut_out=self._dropped(batch, seed=seed)
        )
        if output.loss is None:
            raise RuntimeError("the model was given targets and returned no loss")
        gate = output.loss.new_tensor(float("nan")) if output.gate is None else output.gate.mean()
        return output.loss, gate

    def _forward(
        self,
        batch: Batch,
        pixels: Tensor,
        targets: Tensor | None = None,
        *,
        step: int = 0,
        shut_out: bool | Tensor = False,
    ) -> ModelOutput:
        features = batch.prior_features
        # Looked at here: a wrapper for many processes takes what it is given to the GPU.
        mask = self._prompts.attention_mask[batch.tasks]
        with torch.autocast(
            self.device.type, self._precision, enabled=self._precision is not torch.float32
        ):
            return self._wrapped(
                pixels,
                batch.proprio.to(self.device, non_blocking=True),
                self._prompts.input_ids[batch.tasks.to(self.device, non_blocking=True)],
                None if bool(mask.all()) else mask,
                prior_features=None
                if features is None
                else features.to(self.device, non_blocking=True),
                keys=batch.rows.tolist(),
                targets=targets,
                step=step,
                shut_out_prior=shut_out,
            )

    def _dropped(self, batch: Batch, *, seed: tuple[int, int]) -> bool | Tensor:
        """Return which observations lose their prior, drawn for the whole batch: (b,) or False."""
        n = len(batch.rows) * self._part.count
        drawn = dropped_priors(n, probability=self._augment.prior_dropout, seed=(*seed, 1))
        return False if drawn is None else self._part.of(drawn)

    def _with_features(self, batch: Batch, pixels: Tensor) -> Batch:
        """Give a batch the prior features of its colours as recorded, where they are not cached."""
        if batch.prior_features is not None:
            return batch
        with torch.no_grad():
            features = self.model.prior_features(pixels, keys=batch.rows.tolist())
        return dataclasses.replace(batch, prior_features=features)

    def _pixels(self, batch: Batch) -> Tensor:
        return batch.pixels.to(self.device, non_blocking=True)


def _groups(weights: Mapping[str, Tensor], config: OptimConfig) -> list[dict[str, object]]:
    """Split the weights: matrices decay; norms, biases and single tokens as the settings say."""
    matrices = [w for w in weights.values() if _n_dimensions(w) >= 2]
    others = [w for w in weights.values() if _n_dimensions(w) < 2]
    rest = config.weight_decay if config.decay == "all" else 0.0
    return [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": rest},
    ]


def _n_dimensions(weight: Tensor) -> int:
    """Count the axes longer than one."""
    return sum(size > 1 for size in weight.shape)
