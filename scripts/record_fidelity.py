"""Record the golden data of the simulator checks again, with the official environment.

python scripts/record_fidelity.py out_dir=golden               # from the shipped actions
python scripts/record_fidelity.py out_dir=golden actions_dir=mine

Takes about six minutes. What ships is made with MuJoCo 2.3.7, robosuite 1.4.0 and
OPENBLAS_CORETYPE=Haswell; replace envs/fidelity/golden only by data of such an installation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra_cli import run

from envs.fidelity.golden import FOLDER
from envs.fidelity.record import record


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Play the recorded actions officially and write what came of them."""
    chosen = config["actions_dir"]
    out_dir = Path(config["out_dir"])
    golden = record(actions_dir=FOLDER if chosen is None else Path(chosen), out_dir=out_dir)
    return {
        "out_dir": str(out_dir),
        "episodes": sorted(golden.fixtures),
        "bytes": sum(file.stat().st_size for file in out_dir.iterdir()),
        "made_with": golden.made_with,
    }


if __name__ == "__main__":
    run("record_fidelity", main)
