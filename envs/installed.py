"""The one place where the installed LIBERO distribution is imported.

Several distributions provide ``libero.libero``. Some ask a question on standard input when they
find no configuration file and then write one to the home directory; others print. Neither happens
here: the first import is given a throw-away configuration folder unless the user has a
configuration of their own, and what it prints goes to the log.
"""
# pyright: basic

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_log = logging.getLogger(__name__)
_CONFIG_VARIABLE = "LIBERO_CONFIG_PATH"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what a third-party call prints to the debug log instead of standard output."""
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured):
        yield
    if captured.getvalue().strip():
        _log.debug("%s", captured.getvalue().strip())


def _has_own_configuration() -> bool:
    if _CONFIG_VARIABLE in os.environ:
        return True
    return (Path.home() / ".libero" / "config.yaml").is_file()


@functools.cache
def libero_module(name: str = "libero.libero") -> ModuleType:
    """Import a module of the installed LIBERO distribution without a question being asked.

    Raises:
        ContractError: No distribution that provides ``libero.libero`` is installed, or it cannot
            be imported here (a missing off-screen GL library, say).
    """
    # robosuite advises three times, in every process, to make a file nobody needs.
    logging.getLogger("robosuite_logs").addFilter(_is_no_advice_on_macros)
    try:
        with quiet():
            if not _has_own_configuration():
                # Kept for the life of the process: distributions read it again at each path look-up.
                folder = _temporary_configuration_folder()
                with (
                    mock.patch.dict(os.environ, {_CONFIG_VARIABLE: folder}),
                    mock.patch("builtins.input", return_value="n"),
                ):
                    importlib.import_module("libero.libero")
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "libero":
            raise
        raise ContractError(
            "no LIBERO distribution is installed (no module libero.libero); "
            "install the simulator extra: pip install -e '.[sim]' -c constraints.txt"
        ) from error


def _is_no_advice_on_macros(record: logging.LogRecord) -> bool:
    return "macro" not in record.getMessage()


@functools.cache
def _temporary_configuration_folder() -> str:
    # The finaliser of TemporaryDirectory removes it at exit.
    folder = tempfile.TemporaryDirectory(prefix="libero-config-")
    _kept.append(folder)
    return folder.name


_kept: list[tempfile.TemporaryDirectory[str]] = []
