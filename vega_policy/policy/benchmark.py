"""How fast a policy answers, and how far that is from what the hardware allows.

Weights are random and made on the device: speed depends on shapes alone, and a file of 15 GB would
only be in the way. What is compared with is a loop in the manner of the original evaluation, built
of the same weights, so that both give the same answers.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vega_policy.policy.acceleration import CompileMode, compile_policy
from vega_policy.policy.empty import empty_model
from vega_policy.policy.model import EOS, VegaModel
from vega_policy.policy.policy import VegaPolicy
from vega_policy.policy.processor import Processor
from vega_policy.policy.statistics import Bounds, DatasetStatistics
from vega_policy.policy.stopwatch import Stopwatch
from vega_policy.spec import ContractError, Observation
from vega_policy.spec.names import require_name
from vega_policy.vision.fusion import FusionConfig
from vega_policy.vision.prior import build_prior

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from vega_policy.policy.config import PolicyConfig

log = logging.getLogger(__name__)
STAGES = ("images and prompt", "prior", "vision", "language", "head")
_INSTRUCTION = "pick up the bowl and place it on the plate"


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """What is measured."""

    batches: tuple[int, ...] = (1, 4, 16, 64)
    """Observations per pass."""
    fusions: tuple[str, ...] = ("none", "residual_zero", "token_gate")
    """Without a prior, and with; the first is the one without."""
    seconds: float = 4.0
    """Of every row; a row has at least three passes."""
    dtype: torch.dtype = torch.bfloat16
    """Of policy and prior."""
    compile_mode: CompileMode | None = None
    """Also measure compiled; see `compile_policy`."""
    camera_px: int = 256
    """Side of the cameras' frames; a policy that does not resize gets its own size."""
    prompt_tokens: int = 35
    """A usual prompt of LIBERO has 35."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of answering, at one batch size."""

    fusion: str
    engine: str
    """``one by one`` (as the original), ``eager`` or ``compiled``."""
    batch: int
    n: int
    """Observations that were timed."""
    p50_ms: float
    """Of a pass."""
    p90_ms: float
    per_s: float
    """Observations, that is chunks, per second."""
    stages_ms: dict[str, float]
    """Of a pass, by `STAGES`; empty where the stages cannot be told apart."""
    peak_gib: float | None
    """Memory of the GPU."""
    of_matmul: float
    """Time the matrix products alone would take, as a share of the time taken."""
    of_reading: float
    """Time it would take to read every weight once, as a share of the time taken."""
    deviation: float
    """Largest difference of a normalised action from answering one by one, eagerly."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What the hardware gives."""

    name: str
    flops_per_s: float
    bytes_per_s: float


@torch.no_grad()
def measure_inference(
    config: PolicyConfig, settings: InferenceSettings, *, device: torch.device
) -> tuple[Device, list[Row]]:
    """Measure every fusion, engine and batch size.

    Raises:
        ContractError: The weights do not fit, or the policy is of a variant the loop of comparison
            does not know.
    """
    if config.head.kind != "l1" or config.semantic.film:
        raise ContractError(
            f"the benchmark compares with the original's L1 policy, and this one has head "
            f"{config.head.kind!r} and film={config.semantic.film}; choose policy=nano or oft_7b"
        )
    require_memory(config, settings.dtype, device)
    hardware = measure_device(device, settings.dtype)
    rows: list[Row] = []
    for name in settings.fusions:
        variant = dataclasses.replace(config, fusion=FusionConfig(name=name))
        policy = random_policy(variant, settings, device=device)
        rows += _measure(policy, settings, hardware)
        del policy
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return hardware, rows


def require_memory(config: PolicyConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse weights that the device has no room for.

    Raises:
        ContractError: They do not fit; the message says how much they need.
    """
    n = sum(p.numel() for p in empty_model(config).parameters())
    needed = 1.25 * n * dtype.itemsize / 2**30
    if device.type == "cuda":
        there = torch.cuda.mem_get_info(device)[0] / 2**30
    else:
        there = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if needed > there:
        raise ContractError(
            f"{n / 1e9:.1f} billion weights in {str(dtype).removeprefix('torch.')} and their "
            f"activations need about {needed:.0f} GiB, {device} has {there:.0f} GiB free; run it on a "
            f"GPU with {math.ceil(1.25 * n * 2 / 2**30 + 4)} GiB (bfloat16, prior included), or choose "
            "policy=nano"
        )


def require_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Return the type of this name; None is bfloat16 on a GPU and float32 on a CPU.

    Raises:
        ContractError: It is neither.
    """
    if name is None:
        name = "bfloat16" if device.type == "cuda" else "float32"
    require_name(name, ("bfloat16", "float32"), what="dtype")
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def random_policy(
    config: PolicyConfig, settings: InferenceSettings, *, device: torch.device
) -> VegaPolicy:
    """Make a policy with random weights, on the device and in its type from the start."""
    with torch.random.fork_rng(), torch.device(device), _default_dtype(settings.dtype):
        torch.manual_seed(0)
        prior = None
        if config.fusion.uses_prior:
            prior = build_prior(config.prior).to(device, settings.dtype)
        model = VegaModel(config, prior=prior)
    tokenizer = cast("Any", _FixedPrompt(settings.prompt_tokens))
    statistics = {
        "benchmark": DatasetStatistics(
            action=_unit_bounds(config.action.size),
            proprio=_unit_bounds(config.proprio_size),
            num_transitions=1,
            num_trajectories=1,
        )
    }
    return VegaPolicy(model=model.eval(), tokenizer=tokenizer, statistics=statistics)


def observations(n: int, config: PolicyConfig, *, camera_px: int) -> list[Observation]:
    """Return random observations whose images are about as smooth as a camera's."""
    px = config.image_px if config.image_transform == "none" else camera_px
    rng = np.random.default_rng(0)

    def image() -> NDArray[np.uint8]:
        coarse = rng.integers(20, 230, (px // 16, px // 16, 3))
        smooth = np.kron(coarse, np.ones((16, 16, 1))) + rng.normal(0, 4, (px, px, 3))
        return smooth.clip(0, 255).astype(np.uint8)

    return [
        Observation(
            images={name: image() for name in config.cameras},
            proprio=rng.uniform(-1, 1, config.proprio_size).astype(np.float32),
            instruction=_INSTRUCTION,
        )
        for _ in range(n)
    ]


def measure_device(device: torch.device, dtype: torch.dtype) -> Device:
    """Measure what matrix products and reads of memory reach here."""
    is_cuda = device.type == "cuda"
    side, n_bytes = (8192, 2**32) if is_cuda else (1024, 2**28)
    a = torch.randn(side, side, device=device, dtype=dtype)
    block = torch.empty(n_bytes // 4, device=device, dtype=torch.int32).zero_()
    name = (
        torch.cuda.get_device_name(device) if is_cuda else f"cpu, {torch.get_num_threads()} threads"
    )
    return Device(
        name=name,
        flops_per_s=2 * side**3 / _fastest_s(lambda: a @ a, device),
        # An addition in place reads every byte and writes it.
        bytes_per_s=2 * n_bytes / _fastest_s(lambda: block.add_(1), device),
    )


class OneByOne:
    """The original's way to answer: what it computes and throws away is computed and thrown away.

    One observation per call. Every image is prepared and encoded on its own; both towers run a last
    block nobody reads; the language model fills a cache of keys and values, keeps the hidden states
    of all layers and gives the logits of all words at all places in float32.
    """

    def __init__(self, policy: VegaPolicy) -> None:
        self._policy = policy
        config, device = policy.config, policy.device
        self._words = nn.Linear(
            config.language.width,
            config.language.vocab_size,
            bias=False,
            device=device,
            dtype=policy.model.language.embed_tokens.weight.dtype,
        )
        for tower in policy.model.vision.semantic.towers:
            blocks: Any = getattr(tower.encoder, "layer", None) or tower.encoder.layers
            blocks[-1].register_forward_hook(self._run_once_more)
        self._is_on = False

    def _run_once_more(self, block: nn.Module, given: tuple[Any, ...], output: object) -> None:
        if self._is_on:
            self._is_on = False  # or the block would run itself for ever
            block(output, *given[1:])
            self._is_on = True

    def act(self, seen: Observation, *, key: int) -> Tensor:
        """Return the normalised chunk (1, t, a)."""
        policy, model = self._policy, self._policy.model
        device, config = policy.device, policy.config
        self._is_on = True
        processor = Processor(config, policy.tokenizer)
        ids = processor.tokenise([seen.instruction])[0].to(device)
        vision = model.vision
        read, features = [], []
        for name in config.cameras:
            alone = dataclasses.replace(config, cameras=(name,))
            image = Processor(alone, policy.tokenizer).images(seen.images).to(device)
            read.append(vision.semantic(image.unsqueeze(0)))
            features.append(vision.prior_features(image.unsqueeze(0), keys=[key]))
        self._is_on = False
        tokens = vision.semantic_projector(torch.cat(read, dim=1)).flatten(1, 2)
        if vision.prior_projector is not None:
            weight = next(vision.prior_projector.parameters())
            prior = vision.prior_projector(torch.cat(features, dim=1).to(weight.dtype))
            tokens = vision.fusion(tokens, prior.flatten(1, 2)).tokens
        language = model.language
        front = [language.embed_tokens(ids[:, :1]), tokens]
        if model.proprio is not None:
            proprio = torch.from_numpy(np.asarray(seen.proprio)[None]).to(device, tokens.dtype)
            bounds = policy.statistics[policy.unnorm_key].proprio
            known = bounds.normalise(proprio.float().cpu().numpy()).astype(np.float32)
            front.append(model.proprio(torch.from_numpy(known).to(device)).unsqueeze(1))
        slots = tokens.new_zeros(model.n_slots, tokens.shape[-1])
        back = [
            slots if model.slots is None else model.slots,
            language.embed_tokens(ids.new_tensor([EOS])),
        ]
        sequence = torch.cat(
            [x.to(tokens.dtype) for x in (*front, language.embed_tokens(ids[:, 1:]))]
            + [x.unsqueeze(0).to(tokens.dtype) for x in back],
            dim=1,
        )
        answer = language(inputs_embeds=sequence, use_cache=True, output_hidden_states=True)
        hidden = answer.last_hidden_state
        self._words(hidden).float()
        start = hidden.shape[1] - model.n_slots - 2
        return model.head.answer(lambda **_: hidden[:, start : start + model.n_slots])[0]


def _measure(policy: VegaPolicy, settings: InferenceSettings, device: Device) -> list[Row]:
    most = max(settings.batches)
    seen = observations(most, policy.config, camera_px=settings.camera_px)
    flops = _flops(policy, seen[0])
    floor = _Floor(
        matmul_s=flops / device.flops_per_s, reading_s=_bytes_read(policy) / device.bytes_per_s
    )
    original = OneByOne(policy)
    reference = torch.cat([_normalised(policy, [o]) for o in seen])
    rows = [
        _row(
            policy,
            settings,
            floor,
            engine="one by one",
            seen=seen[:1],
            answer=lambda batch: original.act(batch[0], key=0),
            reference=reference,
        )
    ]
    engines = ["eager"] if settings.compile_mode is None else ["eager", "compiled"]
    for engine in engines:
        if engine == "compiled":
            compile_policy(
                policy,
                mode=cast("CompileMode", settings.compile_mode),
                prompt_lengths=(-(-settings.prompt_tokens // 8) * 8,),
                batch_sizes=settings.batches,
            )
        rows += [
            _row(
                policy,
                settings,
                floor,
                engine=engine,
                seen=seen[:batch],
                answer=lambda batch: _normalised(policy, batch),
                reference=reference,
            )
            for batch in settings.batches
        ]
    return rows


@dataclass(frozen=True)
class _Floor:
    matmul_s: float
    """Of one observation."""
    reading_s: float
    """Of one pass."""


def _row(
    policy: VegaPolicy,
    settings: InferenceSettings,
    floor: _Floor,
    *,
    engine: str,
    seen: Sequence[Observation],
    answer: Callable[[Sequence[Observation]], Tensor],
    reference: Tensor,
) -> Row:
    policy.max_batch = len(seen)
    is_cuda = policy.device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(policy.device)
    found = answer(seen)
    for _ in range(2 if is_cuda else 0):  # a CUDA graph is recorded in the second pass
        found = answer(seen)
    n, times = len(seen), list[float]()
    started = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - started < settings.seconds:
        begin = time.perf_counter()
        answer(seen)  # ends with a copy to the CPU, so with everything done
        times.append(time.perf_counter() - begin)
    p50, p90 = np.quantile(times, [0.5, 0.9])
    row = Row(
        fusion=policy.config.fusion.name,
        engine=engine,
        batch=n,
        n=n * len(times),
        p50_ms=1e3 * float(p50),
        p90_ms=1e3 * float(p90),
        per_s=n / float(p50),
        stages_ms=_stages(policy, seen) if engine == "eager" else {},
        peak_gib=torch.cuda.max_memory_allocated(policy.device) / 2**30 if is_cuda else None,
        of_matmul=n * floor.matmul_s / float(p50),
        of_reading=floor.reading_s / float(p50),
        deviation=float((found.float().cpu() - reference[:n]).abs().max()),
    )
    log.info("%s, %s, batch %d: %.1f ms", row.fusion, engine, n, row.p50_ms)
    return row


def _normalised(policy: VegaPolicy, seen: Sequence[Observation]) -> Tensor:
    """Answer as `VegaPolicy.act` does and return the chunks (b, t, a) before the statistics."""
    found: list[Tensor] = []
    hook = policy.model.register_forward_hook(lambda _m, _i, out: found.append(out.actions))
    try:
        policy.act(seen, keys=[0] * len(seen))
    finally:
        hook.remove()
    return torch.cat(found).float().cpu()


def _stages(policy: VegaPolicy, seen: Sequence[Observation]) -> dict[str, float]:
    """Time the stages of one pass with marks between them."""
    watch: list[Stopwatch] = []
    model = policy.model
    hooks = [
        model.register_forward_pre_hook(lambda *_: watch.append(Stopwatch(policy.device))),
        model.language.register_forward_pre_hook(lambda *_: watch[0].mark()),
        model.language.register_forward_hook(lambda *_: watch[0].mark()),
        model.register_forward_hook(lambda *_: watch[0].mark()),
    ]
    try:
        timing = policy.act(seen, keys=[0] * len(seen))[0].timing_ms
    finally:
        for hook in hooks:
            hook.remove()
    laps = [timing["processor"], timing["prior"], *watch[0].laps_ms()]
    return dict(zip(STAGES, laps, strict=True))


def _flops(policy: VegaPolicy, seen: Observation) -> float:
    with FlopCounterMode(display=False) as counter:
        policy.act([seen], keys=[0])
    return float(counter.get_total_flops())


def _bytes_read(policy: VegaPolicy) -> int:
    """Return the bytes of the weights a pass reads.

    Not of the table of words, of which it takes a few rows, nor of the prior's decoder.
    """
    model = policy.model
    return sum(
        p.numel() * p.element_size()
        for name, p in model.named_parameters()
        if not (name.endswith("embed_tokens.weight") or ".vae.decoder." in name)
    )


def _fastest_s(work: Callable[[], object], device: torch.device) -> float:
    found = math.inf
    for _ in range(8):
        watch = Stopwatch(device)
        work()
        watch.mark()
        found = min(found, watch.laps_ms()[0] / 1e3)
    return found


def _unit_bounds(size: int) -> Bounds:
    one, zero = np.ones(size), np.zeros(size)
    return Bounds(
        mean=zero, std=one, min=-one, max=one, q01=-one, q99=one, mask=np.ones(size, dtype=bool)
    )


class _FixedPrompt:
    """Stands for a tokenizer: any text has so many tokens."""

    pad_token_id = 0

    def __init__(self, n_tokens: int) -> None:
        self._ids = [1, *range(3, 2 + n_tokens)]

    def __call__(self, text: str) -> dict[str, list[int]]:  # noqa: ARG002
        return {"input_ids": self._ids}


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def text(device: Device, rows: Sequence[Row]) -> str:
    """Lay out all rows, and the stages of the eager ones."""
    lines = [
        f"{device.name}: {device.flops_per_s / 1e12:.2f} TFLOP/s, {device.bytes_per_s / 1e9:.0f} GB/s",
        "",
        f"{'fusion':15}{'engine':11}{'batch':>6}{'p50 ms':>9}{'p90 ms':>9}{'obs/s':>9}{'n':>7}"
        f"{'matmul':>8}{'reading':>9}{'GiB':>7}{'deviation':>11}",
    ]
    for r in rows:
        memory = "" if r.peak_gib is None else f"{r.peak_gib:.1f}"
        lines.append(
            f"{r.fusion:15}{r.engine:11}{r.batch:>6}{r.p50_ms:>9.1f}{r.p90_ms:>9.1f}{r.per_s:>9.1f}"
            f"{r.n:>7}{r.of_matmul:>8.0%}{r.of_reading:>9.0%}{memory:>7}{r.deviation:>11.1e}"
        )
    lines += ["", f"{'ms of one pass':26}{'batch':>6}" + "".join(f"{s:>19}" for s in STAGES)]
    lines += [
        f"{r.fusion:15}{r.engine:11}{r.batch:>6}"
        + "".join(f"{r.stages_ms[s]:>19.2f}" for s in STAGES)
        for r in rows
        if r.stages_ms
    ]
    return "\n".join(lines)


def headline(rows: Sequence[Row], *, tolerance: float) -> dict[str, Any]:
    """Return baseline, ours, ratio and agreement, of the last fusion at its fastest."""
    last = [r for r in rows if r.fusion == rows[-1].fusion]
    baseline = next(r for r in last if r.engine == "one by one")
    ours = max((r for r in last if r is not baseline), key=lambda r: r.per_s)
    single = min(
        (r for r in last if r is not baseline and r.batch == min(x.batch for x in last)),
        key=lambda r: r.p50_ms,
    )
    return {
        "unit": "observations per second",
        "fusion": ours.fusion,
        "baseline": round(baseline.per_s, 2),
        "ours": round(ours.per_s, 2),
        "batch": ours.batch,
        "engine": ours.engine,
        "ratio": round(ours.per_s / baseline.per_s, 2),
        "ratio_one_at_a_time": round(baseline.p50_ms / single.p50_ms, 2),
        "agrees": all(r.deviation <= tolerance for r in rows),
        "largest_deviation": max(r.deviation for r in rows),
        "rows": [dataclasses.asdict(r) for r in rows],
    }
