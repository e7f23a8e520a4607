"""A model's directory: a folder of this machine, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vega_policy.spec.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def model_folder(
    source: Path | str, *, patterns: Sequence[str], is_complete: Callable[[Path], bool]
) -> Path:
    """Return the folder ``source`` means; only a hub id that is not in the local cache is fetched.

    Args:
        source: A folder, or an id such as ``Wan-AI/Wan2.1-T2V-1.3B-Diffusers``.
        patterns: Files of the repository that are needed (a ``*`` also matches ``/``).
        is_complete: Tells whether a cached copy has what is needed.

    Raises:
        CheckpointError: There is no such folder, or the hub does not give the repository.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(str(source)):
        raise CheckpointError(
            f"{source} is not a directory; give the folder of the model or its id on the hub"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(str(source), local_files_only=True))
        if is_complete(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(str(source), allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:  # what the hub raises derives from these
        raise CheckpointError(
            f"{source} is neither a folder here nor to be had from the hub "
            f"({type(error).__name__}); download it where there is a network and give its folder"
        ) from error
