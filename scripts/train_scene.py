"""Train the nano scene heads on generated scans in every arm, and compare the arms on held-out scenes.

python scripts/train_scene.py data.scans=data/rooms data.annotations=data/rooms/annotations out=runs/scene

Writes models, prediction files, a page with a table and a chart; continues after a kill. Ends with one
JSON line. With ``published.*`` set it evaluates a published 7B model on real data instead.
"""

from __future__ import annotations

from typing import Any

from hydra_cli import run

from vega_policy.scene.train.settings import SceneTrainConfig
from vega_policy.scene.train.study import train_scene


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Build the settings and run."""
    return train_scene(SceneTrainConfig.from_dict(config))


if __name__ == "__main__":
    run("train_scene", main)
