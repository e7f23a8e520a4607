"""Report what a collection of demonstrations is like: one page and one JSON file.

python scripts/demo_report.py suite=libero_goal data_dir=data/demonstrations
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra_cli import run

from envs.collection_page import page
from envs.collection_report import report_collection
from vega_policy.spec.files import write_atomic


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Report on one suite; the data is only read."""
    suite, data_dir = config["suite"]["name"], Path(config["data_dir"])
    reports = report_collection(data_dir, suite)
    out = Path(config["out"]) / suite
    numbers = [report.numbers for report in reports]
    write_atomic(out.with_suffix(".html"), page(suite, reports))
    write_atomic(out.with_suffix(".json"), json.dumps({"suite": suite, "tasks": numbers}, indent=1))
    return {
        "page": str(out.with_suffix(".html")),
        "tasks": len(reports),
        "demonstrations": sum(n["demonstrations"] for n in numbers),
        "leaked": sum(n["n_leaked"] for n in numbers),
        "nearest_evaluation_m": min(n["nearest_evaluation_m"] for n in numbers),
    }


if __name__ == "__main__":
    run("demo_report", main)
