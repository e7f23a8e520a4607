"""Ask a scene model one question about one scan.

python scripts/ask_scene.py "the red chair" picture=found.png
python scripts/ask_scene.py "what color is the sofa?" task=scanqa scans=data/rooms scene=room0250_00
python scripts/ask_scene.py task=scan2cap object_id=3

Prints the answer as one JSON line: objects for descriptions, text for questions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra_cli import run

from vega_policy.scene.ask import Question, ask, draw_reply
from vega_policy.scene.heads.scannet_model import ScanNetModel
from vega_policy.scene.heads.vsi_model import VsiModel
from vega_policy.scene.readers.scannet import list_scans, read_scan
from vega_policy.spec import ContractError


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Ask."""
    question = Question(
        task=config["task"],
        text=config["text"],
        situation=config["situation"],
        object_id=config["object_id"],
        options=tuple(config["options"]),
    )
    if not question.text and question.task != "scan2cap":
        raise ContractError(f"{question.task} needs a text; add it: text='the red chair'")
    scene = config["scene"] or _only(config["scans"])
    scan = read_scan(config["scans"], scene, n_frames=config["frames"])
    kind = VsiModel if question.task == "vsi_bench" else ScanNetModel
    if kind is VsiModel and config["model"] is None:
        raise ContractError(
            "no model for vsi_bench comes with the package; train one with scripts/train_scene.py "
            "(scannet.arms=[] vsi.arms=[full], a quarter of an hour) and name it: model=runs/scene/vsi/full/model"
        )
    model = kind.from_pretrained(config["model"] or "nano-scannet")
    reply = ask(model, scan, question)
    if config["picture"]:
        draw_reply(scan, question, reply, Path(config["picture"]))
    labels = {item.object_id: item.label for item in scan.objects}
    said: dict[str, Any] = {"scene": scene, "task": question.task, "asked": question.text}
    if reply.object_ids is None:
        return {**said, "answer": reply.text}
    return {**said, "objects": [{"object_id": i, "label": labels[i]} for i in reply.object_ids]}


def _only(scans: str) -> str:
    scenes = list_scans(scans)
    if len(scenes) != 1:
        raise ContractError(
            f"{scans} has {len(scenes)} scenes; name one of them: scene={(scenes or ['NAME'])[0]}"
        )
    return scenes[0]


if __name__ == "__main__":
    run("ask_scene", main, positional=("text",))
