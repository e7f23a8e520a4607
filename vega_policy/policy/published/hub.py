"""Checkpoints of the Hugging Face hub: what is here is used, the rest is asked for by name."""

from __future__ import annotations

import logging
import re
from functools import partial
from pathlib import Path

from vega_policy.spec import CheckpointError

log = logging.getLogger(__name__)

FILES = (
    "config.json",
    "dataset_statistics.json",
    "tokenizer*",
    "special_tokens_map.json",
    "model*.safetensors*",
    "*--*_checkpoint.pt",
    # Our own layout.
    "tokenizer/*",
    "prior/**",
    "adapter_*",
)
"""What is downloaded: no code, and not the folder of adapters that are already merged."""
_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def is_hub_id(name: str) -> bool:
    """Return whether this is ``owner/name`` or ``owner/name@revision`` and no path on this machine."""
    return _ID.fullmatch(name) is not None and not Path(name.split("/", maxsplit=1)[0]).exists()


def snapshot(name: str) -> Path:
    """Return the directory of a hub checkpoint, downloading what the local cache lacks.

    Args:
        name: ``owner/name`` or ``owner/name@revision``. What the cache holds is used without asking
            whether the hub has a newer one.

    Raises:
        CheckpointError: It is not here and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    found = _ID.fullmatch(name)
    if found is None:
        raise CheckpointError(f"{name!r} is no hub id; expected owner/name or owner/name@revision")
    download = partial(
        snapshot_download, found["repo"], revision=found["revision"], allow_patterns=list(FILES)
    )
    try:
        return Path(download(local_files_only=True))
    except LocalEntryNotFoundError:
        log.info("%s is not in the local cache, downloading it", name)
    try:
        return Path(download())
    except Exception as error:
        first = str(error).strip().split("\n")[0].split(". ")[0]
        raise CheckpointError(
            f"{name!r} is not on this machine and could not be downloaded ({type(error).__name__}: "
            f"{first}); run `hf download {found['repo']}` where there is a network, or pass "
            "the directory of a copy"
        ) from error
