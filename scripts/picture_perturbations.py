"""Draw every perturbation of one task into one picture.

python scripts/picture_perturbations.py docs/images/perturbations.png
python scripts/picture_perturbations.py out.png suite=libero_object task=3
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from hydra_cli import run

_N_COLUMNS = 4
_PANEL_INCHES = 2.4


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Render the first observation of each episode and write the grid."""
    from matplotlib.figure import Figure

    from envs import LiberoEnv
    from vega_policy.spec.files import atomic_path

    rows = _rows()
    figure = Figure(
        figsize=(_N_COLUMNS * _PANEL_INCHES, len(rows) * _PANEL_INCHES * 1.15), layout="constrained"
    )
    axes = figure.subplots(len(rows), _N_COLUMNS)
    env = LiberoEnv(suite=config["suite"], task_id=config["task"], camera_px=config["px"])
    try:
        for row, (camera, names) in zip(axes, rows, strict=True):
            for axis, name in zip(row, names, strict=True):
                options = {"init_state_id": config["init_state"], "perturbation": name}
                seen, _ = env.reset(seed=0, options=options)
                axis.imshow(seen[camera])
                axis.set(xticks=[], yticks=[])
                axis.set_title(name if camera == "agentview" else f"{name}, {camera}", fontsize=9)
                if name.startswith("pro"):
                    axis.set_xlabel("\n".join(textwrap.wrap(env.instruction, 36)), fontsize=8)
    finally:
        env.close()
    with atomic_path(Path(config["out"])) as temporary:
        figure.savefig(temporary, dpi=60, format="png", pil_kwargs={"optimize": True})
    return {"picture": config["out"], "task": env.task.name}


def _rows() -> list[tuple[str, tuple[str, ...]]]:
    """Return a camera and the names of the perturbations for each row of the picture."""
    from envs.perturbations import CLEAN, KINDS, LEVELS, PRO

    levels = {kind: (CLEAN, *(f"{kind}-{level}" for level in LEVELS)) for kind in KINDS}
    return [
        *(("agentview", levels[kind]) for kind in KINDS if kind != "wording"),
        ("wrist", levels["robot_start"]),
        ("wrist", (CLEAN, "light-3", "texture-3", "image_noise-3")),
        ("agentview", tuple(PRO)),
    ]


if __name__ == "__main__":
    run("picture_perturbations", main, positional=("out",))
