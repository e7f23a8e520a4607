"""Unite the parts of a rollout from several machines into one run, with its report.

python scripts/merge.py runs/part0 runs/part1 runs/part2 out=runs/whole     # again: completes it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra_cli import run

from vega_policy.rollout.merge import merge


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Merge the runs the configuration names."""
    sources = config["sources"]
    merged = merge(
        [Path(str(source)) for source in (sources if isinstance(sources, list) else [sources])],
        Path(str(config["out"])),
    )
    return {
        "run_dir": merged.run_dir,
        "report": merged.report,
        "episodes": merged.n_rows,
        "duplicates": merged.n_duplicates,
        "missing": len(merged.missing),
        "warnings": list(merged.warnings),
    }


if __name__ == "__main__":
    run("merge", main, positional=("sources...",))
