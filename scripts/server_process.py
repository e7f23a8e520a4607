"""`serve.py` in a process of its own, for what asks it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START_S = 300.0
"""How long a server may take to load its weights."""
END_S = 60.0


@dataclass(eq=False)
class ServerProcess:
    """A server that runs; `end` has it drain and returns what it counted."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def memory_mb(self, what: str = "VmRSS") -> float | None:
        """Return the memory it has, or with ``VmHWM`` the most it had; None where unknown."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return None
        return next(
            (int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:")), None
        )

    def end(self) -> dict[str, Any]:
        """Send SIGTERM and return the JSON of its last line.

        Raises:
            ContractError: It does not end, or not with 0.
        """
        self.process.send_signal(signal.SIGTERM)
        try:
            out, _ = self.process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired as error:
            raise ContractError(f"the server did not end within {END_S:g} s") from error
        if self.process.returncode:
            raise ContractError(f"the server ended with {self.process.returncode}: {self.tail()}")
        return json.loads(out.splitlines()[-1])

    def tail(self) -> str:
        """Return the last line it logged."""
        return " ".join(self.log.read_text(errors="replace").strip().splitlines()[-1:])


@contextmanager
def started(settings: Sequence[str]) -> Iterator[ServerProcess]:
    """Start a server on a free port and kill it at the end, if it runs then.

    Args:
        settings: ``key=value`` of serve.py.

    Raises:
        ContractError: It did not start.
    """
    with TemporaryDirectory() as folder:
        port_file, log = Path(folder, "url"), Path(folder, "log")
        command = [
            *(sys.executable, str(Path(__file__).with_name("serve.py"))),
            *("serve.port=0", f"serve.port_file={port_file}", *settings),
        ]
        with log.open("w") as sink:
            process = subprocess.Popen(  # noqa: S603
                command, stdout=subprocess.PIPE, stderr=sink, text=True
            )
        server = ServerProcess("", process, log)
        try:
            give_up = time.monotonic() + START_S
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > give_up:
                    raise ContractError(f"the server did not start: {server.tail()}")
                time.sleep(0.02)
            server.url = port_file.read_text().strip()
            yield server
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
