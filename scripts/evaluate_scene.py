"""Score predictions about scenes, or the features of priors on them; see configs/evaluate_scene.yaml.

python scripts/evaluate_scene.py task=scanrefer predictions=boxes.json annotations=ScanRefer_filtered_val.json scans=scans labels=scannetv2-labels.combined.tsv
python scripts/evaluate_scene.py task=vsi_bench predictions=answers.jsonl annotations=test.jsonl parser=lmms_eval
python scripts/evaluate_scene.py task=all predictions=runs/scene/scannet/full/predictions annotations=data/rooms/annotations scans=data/rooms
python scripts/evaluate_scene.py task=correspondence scans=data/rooms
python scripts/evaluate_scene.py task=nos results=table.csv
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra_cli import run

from vega_policy.scene.evaluate import (
    OPTIONS,
    TASKS,
    Evaluation,
    EvaluationSettings,
    evaluate,
    find_annotations,
)
from vega_policy.spec import ContractError
from vega_policy.spec.files import write_atomic
from vega_policy.spec.names import require_name

ALL, CORRESPONDENCE, CONSISTENCY, NOS = "all", "correspondence", "consistency", "nos"


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Run the task the configuration names."""
    task = str(config["task"])
    require_name(task, [*TASKS, ALL, CORRESPONDENCE, CONSISTENCY, NOS], what="task")
    out = Path(config["out"] or f"runs/scene_{task}")
    if task in (CORRESPONDENCE, CONSISTENCY, NOS):
        return _features(task, config, out)
    for name in ("predictions", "annotations"):
        if config[name] is None:
            raise ContractError(f"task={task} reads {name}; name them with {name}=")
    if task != ALL:
        return _one(task, Path(config["predictions"]), config, out)
    files = _files(Path(config["predictions"]))
    found = {name: _one(name, file, config, out / name) for name, file in files.items()}
    left_out = [name for name in TASKS if name not in found]
    return {"task": ALL, "tasks": found, "without_predictions": left_out}


def _one(task: str, predictions: Path, config: dict[str, Any], out: Path) -> dict[str, Any]:
    given = {name: config[name] for name in OPTIONS if config[name] is not None}
    if config["task"] == ALL:
        given = {name: value for name, value in given.items() if task in OPTIONS[name]}
    annotations = find_annotations(task, config["annotations"])
    found = evaluate(task, predictions, annotations, EvaluationSettings(**given))
    print(found.table() + "\n", flush=True)
    return {**_saved(found, out), "predictions": predictions, "annotations": annotations}


def _saved(found: Evaluation, out: Path) -> dict[str, Any]:
    result = found.to_json()
    write_atomic(out / "scores.json", json.dumps(result, indent=1) + "\n")
    rows = "".join(json.dumps(row) + "\n" for row in found.rows())
    write_atomic(out / "questions.jsonl", rows)
    # The file lists every id, the printed line shows what kind of ids they are.
    shown = [{**problem, "ids": problem["ids"][:5]} for problem in result["problems"]]
    return {**result, "problems": shown, "out": str(out)}


def _files(folder: Path) -> dict[str, Path]:
    """Return the prediction file of each task in a folder."""
    names = {task: [folder / f"{task}.json", folder / f"{task}.jsonl"] for task in TASKS}
    found = {task: [file for file in files if file.is_file()] for task, files in names.items()}
    twice = [task for task, files in found.items() if len(files) > 1]
    if twice:
        raise ContractError(f"{folder} has both .json and .jsonl of {', '.join(twice)}; keep one")
    if not any(found.values()):
        raise ContractError(
            f"no predictions in {folder}; name a folder with {', '.join(f'{t}.json' for t in TASKS)}"
        )
    return {task: files[0] for task, files in found.items() if files}


def _features(task: str, config: dict[str, Any], out: Path) -> dict[str, Any]:
    # Its models take seconds to import; scoring a file needs none.
    from scene_correspondence import run_consistency, run_correspondence, run_nos

    if task == CORRESPONDENCE:
        return run_correspondence(config["correspondence"], scans=config["scans"], out=out)
    if task == CONSISTENCY:
        options = {name: config[name] for name in ("number", "reference")}
        return run_consistency(config["scores"], config["findings"], **options)
    options = {name: config[name] for name in ("group", "baseline", "unknown")}
    return run_nos(config["results"], **options)


if __name__ == "__main__":
    run("evaluate_scene", main, positional=("task",))
