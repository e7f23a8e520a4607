"""Where the numbers of a run go: files by default, trackers behind the same two methods."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from vega_policy.spec import ContractError
from vega_policy.spec.files import atomic_path, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

Record = Mapping[str, float | int]
"""One row: ``step`` and named numbers."""

SINKS = ("jsonl", "tensorboard", "wandb")


class Sink(Protocol):
    """Takes one record after the other."""

    def write(self, record: Record) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


class JsonLinesSink:
    """One JSON object per line, flushed at once."""

    def __init__(self, path: Path, *, resume_step: int) -> None:
        """Open the file and drop what a killed run wrote behind the step it resumes from."""
        kept = [row for row in read_records(path) if row["step"] <= resume_step]
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a")

    def write(self, record: Record) -> None:
        """Append one line."""
        self._file.write(json.dumps(dict(record)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardSink:
    """Event files for TensorBoard; needs the ``tensorboard`` extra."""

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ContractError(
                _missing("tensorboard", "pip install 'vega-policy[tensorboard]'")
            ) from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def write(self, record: Record) -> None:
        """Add every number of the record as a scalar."""
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandbSink:
    """Weights & Biases; needs ``wandb`` and an account or its offline mode."""

    def __init__(self, folder: Path, *, name: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ContractError(_missing("wandb", "pip install wandb")) from error
        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            dir=str(folder), project="vega-policy", id=name, resume="allow", config=dict(config)
        )

    def write(self, record: Record) -> None:
        """Log the record at its step."""
        values = {k: v for k, v in record.items() if k != "step"}
        self._run.log(values, step=int(record["step"]))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Sinks:
    """Several sinks behind one."""

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self._sinks = list(sinks)

    def write(self, record: Record) -> None:
        """Give the record to every sink."""
        for sink in self._sinks:
            sink.write(record)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()


def build_sinks(
    names: Sequence[str], *, run_dir: Path, resume_step: int, config: Mapping[str, Any]
) -> Sinks:
    """Open the sinks a configuration names.

    Raises:
        ContractError: The library of a sink is not installed.
    """
    sinks: list[Sink] = []
    if "jsonl" in names:
        sinks.append(JsonLinesSink(run_dir / "metrics.jsonl", resume_step=resume_step))
    if "tensorboard" in names:
        sinks.append(TensorBoardSink(run_dir / "tensorboard", resume_step=resume_step))
    if "wandb" in names:
        sinks.append(WandbSink(run_dir / "wandb", name=run_dir.name, config=config))
    return Sinks(sinks)


def read_records(path: Path) -> list[dict[str, float]]:
    """Read a metrics file; a line cut short by a kill is left out."""
    if not path.exists():
        return []
    rows: list[dict[str, float]] = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def plot_losses(records: Sequence[Record], path: Path) -> None:
    """Draw training and held-out loss and the learning rate over the steps, atomically."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for name, label in (
        ("loss", "training"),
        ("val/loss", "held-out demonstrations (average weights)"),
    ):
        rows = [(r["step"], r[name]) for r in records if name in r]
        if rows:
            losses.plot(
                *zip(*rows, strict=True), label=label, marker="." if "val" in name else None
            )
    losses.set_ylabel("L1, normalised actions")
    losses.set_yscale("log")
    losses.grid(visible=True, which="both", alpha=0.25)
    if losses.get_legend_handles_labels()[0]:
        losses.legend()
    rows = [(r["step"], r["lr"]) for r in records if "lr" in r]
    if rows:
        rates.plot(*zip(*rows, strict=True), color="grey")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("step")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _missing(library: str, command: str) -> str:
    return f"metric sink {library!r} is not installed, expected the {library} library; {command}"
