"""The folder of a run: one process at a time, and only the run it was started as."""

from __future__ import annotations

import fcntl
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vega_policy.spec import CheckpointError, ContractError
from vega_policy.train.contract import changed_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vega_policy.train.checkpoint import RunState
    from vega_policy.train.config import TrainConfig


def require_same_run(config: TrainConfig) -> None:
    """Refuse to continue a run of other settings."""
    path = config.run_dir / "config.json"
    if not path.exists():
        return
    changed = changed_settings(
        json.loads(path.read_text()), config.to_dict(), defaults=type(config)().to_dict()
    )
    if changed:
        raise CheckpointError(
            f"{config.run_dir} holds a run of other settings: {'; '.join(changed)}; choose another name "
            "or delete the folder"
        )


def require_same_origin(state: RunState, origin: Mapping[str, object], *, folder: Path) -> None:
    """Refuse to continue on other data, with another prior or from another start."""
    saved = state.info["origin"]
    # What a run did not note down when it was started cannot be compared.
    changed = [f"the {k} changed" for k, value in origin.items() if saved.get(k, value) != value]
    if changed:
        raise CheckpointError(
            f"{folder} cannot be continued: {' and '.join(changed)} since it was started; "
            f"start another run with init_from={folder / 'policy'}"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder; a kill releases it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ContractError(
                f"another process trains in {folder}; wait for it or choose another name"
            ) from error
        yield
