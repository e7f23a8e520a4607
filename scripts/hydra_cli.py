"""The command line of every script: Hydra YAML and ``key=value`` in, one JSON line out.

A script is a docstring and ``run("name", main)``, where ``main`` takes the composed configuration
as a plain dictionary and returns its result as one. Standard output ends with that result as one
JSON object; logs, warnings and errors go to standard error. Exit codes: 0 done, 1 failed, 2 the
user has to act (nothing has been written by then), 130 interrupted.

A setting on the command line must exist in the YAML and keep the type of its default there: a
whole number may stand for a decimal one, anything may follow ``null``, any number may be meant as
text. So a default says what a setting is; one that may be text or a list starts as ``null``.
"""

from __future__ import annotations

import copy
import difflib
import json
import logging
import math
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vega_policy.spec.errors import ContractError, VegaError
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hydra.core.override_parser.types import Override

CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"

USAGE = """\
usage: python {script}{positional} [key=value ...] [--cfg | --help]

  key=value     a setting below, or a group and one of its options
  --cfg         print the configuration with these settings, and stop
  -h, --help    print this, and stop
"""

logger = logging.getLogger("scripts")
_SETTING = re.compile(r"[\w.@]+=")
"""``key=``; a path such as ``runs/lr=1e-4`` is none."""


def run(
    config_name: str,
    main: Callable[[dict[str, Any]], Mapping[str, Any]],
    *,
    positional: Sequence[str] = (),
    config_dir: Path = CONFIG_DIR,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Compose ``<config_dir>/<config_name>.yaml``, call ``main`` with it, print its result, exit.

    Args:
        config_name: Name of the YAML file without suffix.
        main: The work; gets plain dictionaries, lists and scalars, interpolations resolved.
        positional: Settings that arguments without ``=`` are given to, in this order; a last one
            that ends in ``...`` takes all that are left, as a list.
        config_dir: Where the YAML lives, with one folder per group.
        argv: The overrides; by default those of the command line.
    """
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    render_off_screen()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if "-h" in arguments or "--help" in arguments:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for `--help | head`
            print(help_text(config_name, positional=positional, config_dir=config_dir))
            sys.exit(0)
        overrides = named([a for a in arguments if a != "--cfg"], positional)
        config = load_config(config_name, overrides, config_dir=config_dir)
        if "--cfg" in arguments:
            print(OmegaConf.to_yaml(OmegaConf.create(config)), end="")
            sys.exit(0)
        result = main(config)
    except ContractError as error:
        _stop(error, code=2)
    except VegaError as error:
        _stop(error, code=1)
    except KeyboardInterrupt:
        _stop("interrupted", code=130)
    print(json.dumps(_jsonable(result)), flush=True)
    sys.exit(0)


def render_off_screen() -> None:
    """Have MuJoCo draw without a screen, unless the user's environment says otherwise.

    Must come before the first import of mujoco or OpenGL; worker processes inherit it. OSMesa is
    the default even where there is a GPU: pixels then depend on the CPU renderer alone. Its own
    threads are off (``LP_NUM_THREADS=0``), because there is one simulator process per core.
    """
    renderer = os.environ.setdefault("MUJOCO_GL", "osmesa")
    if renderer in ("egl", "osmesa"):
        os.environ.setdefault("PYOPENGL_PLATFORM", renderer)
    os.environ.setdefault("LP_NUM_THREADS", "0")


def load_config(
    config_name: str, arguments: Sequence[str], *, config_dir: Path = CONFIG_DIR
) -> dict[str, Any]:
    """Compose the configuration with ``arguments`` and return it as plain Python values.

    Raises:
        ContractError: An argument is no ``key=value``, names no setting or option, or its value
            has another type than the default.
    """
    places = _places(config_name, config_dir=config_dir)
    groups = find_groups(config_name, config_dir=config_dir)
    overrides = [_parse(argument) for argument in arguments]
    choices = [override for override in overrides if override.key_or_group in groups]
    settings = [override for override in overrides if override.key_or_group not in groups]
    for choice in choices:
        group = choice.key_or_group
        require_name(str(choice.value()), groups[group], what=group)
    lines = [f"{places[c.key_or_group]}={c.value()}" for c in choices]
    base = _compose(config_name, lines, config_dir=config_dir)
    known = [key for key, _ in _nodes(base)]
    for setting in settings:
        for key in _keys_of(setting.key_or_group, setting.value()):
            _require_key(key, [*known, *groups])
    composed = copy.deepcopy(base)
    for setting in settings:
        # Not left to Hydra, which takes every key with the name of a folder for a group.
        OmegaConf.update(composed, setting.key_or_group, setting.value(), merge=True)
    for setting in settings:
        _keep_types(setting, base, composed)
    missing = [key for key, value in _nodes(composed) if value == "???"]
    if missing:
        raise ContractError(f"{missing[0]} has no default; add {missing[0]}=VALUE")
    try:
        plain = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ContractError(_first_line(error)) from error
    return {str(key): value for key, value in dict(plain).items()}  # pyright: ignore[reportArgumentType, reportCallIssue]


def find_groups(config_name: str, *, config_dir: Path = CONFIG_DIR) -> dict[str, list[str]]:
    """Return the groups this configuration chooses from, each with its options.

    A folder that it does not choose from is not among them, so that a plain setting may have the
    name of another script's group. A group that the configuration puts elsewhere
    (``answers@policy: checkpoint``) goes by the name of its place.
    """
    return {
        name: sorted(file.stem for file in (config_dir / group.partition("@")[0]).glob("*.yaml"))
        for name, group in _places(config_name, config_dir=config_dir).items()
    }


def _places(config_name: str, *, config_dir: Path) -> dict[str, str]:
    """Return Hydra's name of every group by the one the user has for it."""
    with_choices = _compose(config_name, [], config_dir=config_dir, is_with_hydra=True)
    groups = [str(group) for group in with_choices.hydra.runtime.choices]
    return {g.rpartition("@")[2]: g for g in groups if not g.startswith("hydra/")}


def named(arguments: Sequence[str], positional: Sequence[str]) -> list[str]:
    """Give arguments that are neither ``key=value`` nor an option the names of settings, in order.

    Raises:
        ContractError: There are more of them than settings.
    """
    given = {argument.partition("=")[0] for argument in arguments if _SETTING.match(argument)}
    free = [name for name in positional if name not in given]
    rest: list[str] = []
    result: list[str] = []
    for argument in arguments:
        if not positional or argument[:1] in ("-", "+", "~") or _SETTING.match(argument):
            result.append(argument)
        elif free:
            quoted = "'" + argument.replace("\\", "\\\\").replace("'", "\\'") + "'"
            if free[0].endswith("..."):
                rest.append(quoted)
            else:
                result.append(f"{free.pop(0)}={quoted}")
        else:
            raise ContractError(
                f"{argument!r} is one argument too many; there may be {len(positional)} without a "
                f"name: {', '.join(positional)}"
            )
    return [*result, *([f"{free[0].removesuffix('...')}=[{','.join(rest)}]"] if rest else [])]


def help_text(
    config_name: str, *, positional: Sequence[str] = (), config_dir: Path = CONFIG_DIR
) -> str:
    """Return the usage, the groups with their options, and the default configuration."""
    script = sys.modules["__main__"]
    base = _compose(config_name, [], config_dir=config_dir)
    groups = find_groups(config_name, config_dir=config_dir)
    parts = [
        *([script.__doc__.strip(), ""] if script.__doc__ else []),
        USAGE.format(
            script=Path(sys.argv[0]).as_posix(),
            positional="".join(f" [{name.upper()}]" for name in positional),
        ),
        "groups:",
        *(f"  {group}: {', '.join(names)}" for group, names in groups.items()),
        "",
        "settings and their defaults:",
        *(f"  {line}" for line in OmegaConf.to_yaml(base).splitlines()),
    ]
    return "\n".join(parts)


def _parse(argument: str) -> Override:
    if argument.startswith("-"):
        raise ContractError(
            f"unknown option {argument!r}; there are --help and --cfg, settings are key=value"
        )
    key, equals, _ = argument.partition("=")
    if argument[0:1] in ("+", "~"):
        raise ContractError(
            f"settings are neither added nor removed, got {argument!r}; "
            f"write {key.lstrip('+~')}=VALUE for one that exists"
        )
    if not equals or not key:
        raise ContractError(f"settings are key=value, got {argument!r}")
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise ContractError(
            f"the value in {argument!r} cannot be read; "
            f"quote text with special characters: \"{key}='...'\""
        ) from error
    if override.is_sweep_override():
        raise ContractError(
            f"{argument!r} is a sweep over several values; write a list as {key}=[a,b], "
            "or run once per value"
        )
    return override


def _compose(
    config_name: str,
    overrides: Sequence[str],
    *,
    config_dir: Path,
    is_with_hydra: bool = False,
) -> DictConfig:
    try:
        with initialize_config_dir(config_dir=str(config_dir.resolve()), version_base="1.3"):
            return compose(config_name, list(overrides), return_hydra_config=is_with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise ContractError(_first_line(error)) from error


def _nodes(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the unresolved value of every setting, inner ones included."""
    pending: list[tuple[str, Any]] = [("", OmegaConf.to_container(config, resolve=False))]
    while pending:
        prefix, mapping = pending.pop()
        for key, value in mapping.items():
            yield f"{prefix}{key}", value
            if isinstance(value, dict):
                pending.append((f"{prefix}{key}.", value))


def _keys_of(key: str, value: object) -> Iterator[str]:
    """Yield ``key`` and, where the value is a mapping, the keys within."""
    yield key
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            yield from _keys_of(f"{key}.{inner_key}", inner)


def _require_key(key: str, known: Sequence[str]) -> None:
    if key in known:
        return
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    close = same_leaf or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    advice = f"did you mean {close[0]!r}?" if close else "--help lists them"
    raise ContractError(f"unknown setting {key!r}; {advice}")


def _keep_types(setting: Override, base: DictConfig, composed: DictConfig) -> None:
    key = setting.key_or_group
    text = str(setting.input_line).partition("=")[2]
    try:
        default, value = OmegaConf.select(base, key), OmegaConf.select(composed, key)
    except OmegaConfBaseException as error:
        raise ContractError(f"{key}={text}: {_first_line(error)}") from error
    if isinstance(default, str) and isinstance(value, bool | int | float):
        OmegaConf.update(composed, key, text)
        return
    complaint = _type_complaint(_unwrap(default), _unwrap(value), where=key)
    if complaint:
        raise ContractError(complaint)


def _unwrap(node: object) -> object:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _type_complaint(default: object, value: object, *, where: str) -> str | None:
    """Return what is wrong with ``value`` in the place of ``default``, or None."""
    if default is None or (isinstance(default, float) and type(value) is int):
        return None
    if isinstance(default, dict) and isinstance(value, dict):
        pairs = [(default.get(key), inner, f"{where}.{key}") for key, inner in value.items()]
    elif isinstance(default, list) and isinstance(value, list):
        example = default[0] if default else None
        pairs = [(example, inner, f"{where}[{i}]") for i, inner in enumerate(value)]
    elif type(value) is type(default):
        return None
    else:
        expected = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "text",
            list: "a list",
            dict: "a group of settings",
        }[type(default)]
        return (
            f"{where} is {json.dumps(value)}, expected {expected} "
            f"such as the default {json.dumps(default)}"
        )
    complaints = (_type_complaint(old, new, where=place) for old, new, place in pairs)
    return next((complaint for complaint in complaints if complaint), None)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _jsonable(value: Any) -> Any:  # noqa: ANN401 - whatever a script returns
    """Return ``value`` in JSON's types: paths as text, NumPy scalars bare, NaN and infinity null."""
    if isinstance(value, dict):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return _jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _stop(message: object, *, code: int) -> NoReturn:
    print(f"error: {message}" if code != 130 else message, file=sys.stderr, flush=True)
    sys.exit(code)
