"""What server and client say to each other: openpi's protocol, with more for those who ask.

One connection, first the server's metadata (a binary frame), then strictly one request and one
reply. A request is the map that openpi's LIBERO example sends:

    observation/image        (h, w, 3) uint8   third-person camera, upright
    observation/wrist_image  (h, w, 3) uint8   camera on the hand, upright
    observation/state        (8,) float        see `vega_policy.spec.Observation.proprio`
    prompt                   text              the instruction

and, from a client that knows more, the entries of `RequestExtras` under the key ``vega``. The reply has
``actions`` (horizon, size) float32 in the units and signs of the metadata's action specification,
``policy_timing`` and ``server_timing``; ``vega`` with ``request_id`` only where the request had one,
``gate`` only where it was wanted (openpi's chunk broker slices every array of a reply by step).

A request that is not answered ends in one of two ways. To a client that sent a ``request_id``: a reply
without ``actions`` whose ``vega`` has ``request_id``, ``refused`` (a sentence) and ``kind`` (`RefusalKind`); the
connection stays open. To any other: as openpi does, a text frame with the sentence, then the
connection is closed with `CLOSE_CODES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vega_policy.deploy.codec import WireError
from vega_policy.spec import AGENTVIEW, WRIST, ActionChunk, Observation, VegaError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROTOCOL = 1
"""Of the entries under ``vega``; another number is refused."""
DEFAULT_PORT = 8000
IMAGE_KEYS: Mapping[str, str] = {
    AGENTVIEW: "observation/image",
    WRIST: "observation/wrist_image",
}
STATE_KEY = "observation/state"
PROMPT_KEY = "prompt"
EXTRAS_KEY = "vega"
PROPRIO_SIZE = 8


RefusalKind = Literal["request", "policy", "busy", "stopped", "draining"]
"""``request``: it cannot be used as it is; ``policy``: the policy failed on it; ``busy``: too many are
waiting; ``stopped``: the emergency stop is pressed; ``draining``: the server is about to end."""
CLOSE_CODES: Mapping[RefusalKind, int] = {
    "request": 1011,
    "policy": 1011,
    "busy": 1013,
    "stopped": 1013,
    "draining": 1012,
}
"""1011 is what openpi's client knows; 1013 asks to try again later, 1012 that the server restarts."""

HEALTH_PATH = "/healthz"
METRICS_PATH = "/metrics"
ESTOP_PATH = "/estop"
"""POST presses the emergency stop: ``?by=NAME&reason=TEXT``, header ``X-Vega: 1``, no body."""
RELEASE_PATH = "/estop/release"
"""POST releases it: ``?by=NAME``, header ``X-Vega: 1``."""


class Refusal(VegaError):
    """A request that is not answered, and why."""

    def __init__(self, sentence: str, kind: RefusalKind) -> None:
        super().__init__(sentence)
        self.kind: RefusalKind = kind


@dataclass(frozen=True, kw_only=True)
class RequestExtras:
    """What our own client adds to a request, each entry optional."""

    request_id: str | None = None
    """Comes back with the answer, so that a late one is not taken for the next."""
    key: int | None = None
    """Of the policy's random draws; None leaves it to the server (0)."""
    episode: int | None = None
    """See `vega_policy.spec.Observation.episode`."""
    inference: int = 0
    want_gate: bool = False
    robot: str = ""
    """Name of the robot, for the server's page."""
    report: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What happened at the robot since the last request: ``interventions`` by name, ``holds``,
    ``state``, ``latency_ms``; shown on the server's page, otherwise without effect."""


def to_request(observation: Observation, extras: RequestExtras | None = None) -> dict[str, Any]:
    """Return the request for an observation."""
    request: dict[str, Any] = {
        IMAGE_KEYS[name]: image for name, image in observation.images.items() if name in IMAGE_KEYS
    }
    request[STATE_KEY] = np.asarray(observation.proprio)
    request[PROMPT_KEY] = observation.instruction
    if extras is not None:
        request[EXTRAS_KEY] = {"protocol": PROTOCOL, **asdict(extras)}
    return request


def read_request(
    message: Any,  # noqa: ANN401 - whatever was sent
    *,
    cameras: tuple[str, ...],
    max_prompt: int = 2048,
) -> tuple[Observation, RequestExtras]:
    """Check a decoded request and return what it says.

    Args:
        message: What `vega_policy.deploy.codec.unpack` returned.
        cameras: Cameras the policy looks at.
        max_prompt: Characters of an instruction.

    Raises:
        WireError: It is none; the message lists everything that is wrong with it.
    """
    if not isinstance(message, dict):
        raise WireError(f"a request is a map, got {type(message).__name__}")
    problems: list[str] = []
    images: dict[str, NDArray[np.uint8]] = {}
    for name in cameras:
        key = IMAGE_KEYS[name]
        problem = _image_problem(message.get(key), key)
        if problem:
            problems.append(problem)
        else:
            images[name] = message[key]
    state = message.get(STATE_KEY)
    problem = _state_problem(state)
    if problem:
        problems.append(problem)
    prompt = message.get(PROMPT_KEY)
    if not isinstance(prompt, str) or not prompt.strip():
        problems.append(f"{PROMPT_KEY} is {_what(prompt)}, expected the instruction as text")
    elif len(prompt) > max_prompt:
        problems.append(f"{PROMPT_KEY} has {len(prompt)} characters, {max_prompt} are allowed")
    extras = RequestExtras()
    try:
        extras = _read_extras(message.get(EXTRAS_KEY))
    except WireError as error:
        problems.append(str(error))
    if problems or not isinstance(prompt, str):
        raise WireError("the request cannot be used: " + "; ".join(problems))
    observation = Observation(
        images=images,
        proprio=np.asarray(state, dtype=np.float32),
        instruction=prompt,
        episode=extras.episode,
        inference=extras.inference,
    )
    return observation, extras


def to_refusal(refusal: Refusal, request_id: str) -> dict[str, Any]:
    """Return the reply that refuses a request of our own client."""
    return {
        EXTRAS_KEY: {
            "protocol": PROTOCOL,
            "request_id": request_id,
            "refused": str(refusal),
            "kind": refusal.kind,
        }
    }


def require_answer(message: Any) -> None:  # noqa: ANN401 - whatever was sent
    """Raise what a decoded reply refuses.

    Raises:
        Refusal: The request was refused.
    """
    ours = message.get(EXTRAS_KEY) if isinstance(message, dict) else None
    if not isinstance(ours, dict) or ours.get("refused") is None:
        return
    named = ours.get("kind")
    kinds: list[RefusalKind] = [kind for kind in CLOSE_CODES if kind == named]
    raise Refusal(str(ours["refused"])[:1000], kinds[0] if kinds else "request")


def read_chunk(message: Any, *, horizon: int, size: int) -> ActionChunk:  # noqa: ANN401
    """Check a decoded reply and return its chunk.

    Raises:
        WireError: It holds no actions of this shape, or a number that is not finite.
    """
    actions = message.get("actions") if isinstance(message, dict) else None
    if not isinstance(actions, np.ndarray) or actions.shape != (horizon, size):
        raise WireError(
            f"a reply with actions {_what(actions)}, expected ({horizon}, {size}) floats"
        )
    if actions.dtype.kind != "f" or not np.isfinite(actions).all():
        raise WireError("a reply with actions that are not finite floats; nothing of it is used")
    timing = message.get("policy_timing")
    gate = (message.get(EXTRAS_KEY) or {}).get("gate")
    return ActionChunk(
        actions=actions.astype(np.float32, copy=False),
        gate=gate if isinstance(gate, dict) else None,
        timing_ms={
            str(name).removesuffix("_ms"): float(ms)
            for name, ms in (timing if isinstance(timing, dict) else {}).items()
            if isinstance(ms, int | float)
        },
    )


def _image_problem(image: Any, key: str) -> str:  # noqa: ANN401
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        return f"{key} is {_what(image)}, expected a (height, width, 3) uint8 image"
    if image.ndim != 3 or image.shape[-1] != 3 or min(image.shape) < 1:
        return f"{key} has shape {image.shape}, expected (height, width, 3)"
    return ""


def _state_problem(state: Any) -> str:  # noqa: ANN401
    if not isinstance(state, np.ndarray) or state.shape != (PROPRIO_SIZE,):
        return f"{STATE_KEY} is {_what(state)}, expected {PROPRIO_SIZE} floats"
    # The largest of single precision: what the policy gets is cast to it.
    if state.dtype.kind != "f" or not (np.abs(state) <= np.finfo(np.float32).max).all():
        return f"{STATE_KEY} has dtype {state.dtype} or values that are not finite"
    return ""


def _read_extras(values: Any) -> RequestExtras:  # noqa: ANN401
    if values is None:
        return RequestExtras()
    if not isinstance(values, dict):
        raise WireError(f"{EXTRAS_KEY} is {_what(values)}, expected a map")
    given = dict(values)
    protocol = given.pop("protocol", PROTOCOL)
    if type(protocol) is not int or protocol != PROTOCOL:
        raise WireError(
            f"{EXTRAS_KEY} has protocol {str(protocol)[:40]}, this side speaks {PROTOCOL}"
        )
    kinds: dict[str, tuple[type, ...]] = {
        "request_id": (str, type(None)),
        "key": (int, type(None)),
        "episode": (int, type(None)),
        "inference": (int,),
        "want_gate": (bool,),
        "robot": (str,),
        "report": (dict,),
    }
    unknown = sorted(set(given) - set(kinds))
    if unknown:
        raise WireError(f"{EXTRAS_KEY} has unknown entries: {', '.join(unknown)[:200]}")
    for name, value in given.items():
        is_number = int in kinds[name]
        if not isinstance(value, kinds[name]) or (is_number and isinstance(value, bool)):
            raise WireError(f"{EXTRAS_KEY}.{name} is {_what(value)}")
        if is_number and value is not None and not 0 <= value < 2**63:
            raise WireError(f"{EXTRAS_KEY}.{name} is {value}, expected 0 to 2^63 - 1")
        if isinstance(value, str) and len(value) > 256:
            raise WireError(f"{EXTRAS_KEY}.{name} has {len(value)} characters, 256 are allowed")
    return RequestExtras(**given)


def _what(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return "missing"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return f"a {type(value).__name__}"
