"""Writing a file so that a reader sees the old one or the whole new one, never a half."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def atomic_path(path: Path | str) -> Generator[Path]:
    """Give a temporary path beside ``path`` and move it there when the block ends well.

    The suffix of ``path`` is kept, since writers choose a format by it. On an error, or a kill, the old
    file stays as it was; a temporary file left by a kill starts with a dot and is never read.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path | str, content: str | bytes) -> None:
    """Write text or bytes atomically."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
