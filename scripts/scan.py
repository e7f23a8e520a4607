"""Render posed RGB-D scans with ground truth, in ScanNet's layout, and questions about them.

python scripts/scan.py                                          # 260 rooms to data/rooms
python scripts/scan.py kind=libero n=24 px=[320,240]            # table tops to data/libero
python scripts/scan.py n=260 questions=true                     # and the public annotation files
python scripts/scan.py n=1 out=/tmp/room picture=room.png       # a contact sheet of the first scene
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from hydra_cli import run

from envs.scan.ask import ANNOTATIONS, write_questions
from envs.scan.check import check_scan, summary
from envs.scan.export import ScanSettings, export_scans, to_check
from vega_policy.scene.questions.blind import table
from vega_policy.spec import ContractError


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Render, check, and ask."""
    px = config["px"]
    if len(px) != 2:
        raise ContractError(f"px is {px}, expected width and height such as [160, 120]")
    settings = ScanSettings(
        kind=config["kind"],
        out=Path(config["out"]),
        n=config["n"],
        seed=config["seed"],
        frames=config["frames"],
        width_px=px[0],
        height_px=px[1],
        fovy_deg=config["fovy_deg"],
        video=config["video"],
        workers=len(os.sched_getaffinity(0)) if config["workers"] is None else config["workers"],
    )
    began_s = time.monotonic()
    scenes = export_scans(settings)
    result: dict[str, Any] = {
        "out": settings.out,
        "scenes": len(scenes),
        "views": len(scenes) * settings.frames,
        "seconds": round(time.monotonic() - began_s, 1),
    }
    if config["questions"]:
        written = write_questions(settings, scenes)
        n = sum(written.rows.values())
        print(table(written.blind))
        print(f"{written.proved} of {n} rows of questions are proved", flush=True)
        result |= {"questions": written.rows, "proved": written.proved}
        if config["questions_picture"] is not None:
            from envs.scan.question_picture import draw_questions

            folder = settings.out / ANNOTATIONS
            draw_questions(settings.out, scenes[0], folder, config["questions_picture"])
            result["questions_picture"] = config["questions_picture"]
    if chosen := to_check(scenes, n=config["check"]):
        checked = summary(check_scan(settings.out, scene) for scene in chosen)
        print(*(f"{name:>18}  {value}" for name, value in checked.items()), sep="\n", flush=True)
        result["check"] = checked
    if config["picture"] is not None:
        from envs.scan.picture import draw_scan

        draw_scan(settings.out, scenes[0], config["picture"])
        result["picture"] = config["picture"]
    return result


if __name__ == "__main__":
    run("scan", main)
