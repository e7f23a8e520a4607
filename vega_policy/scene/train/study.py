"""From settings to a compared study: arms trained, held-out questions answered, scored and shown."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Any, cast

from vega_policy.scene.train.cases import case_of
from vega_policy.scene.train.clustered import clustered_mean
from vega_policy.scene.train.contrasts import compare
from vega_policy.scene.train.page import CAVEAT, draw_chart, write_page
from vega_policy.scene.train.published import evaluate_published
from vega_policy.scene.train.runs import DONE, Job, jobs_of, load_corpus, run_all
from vega_policy.scene.train.scoring import (
    HEADLINE,
    any_of_class,
    chance,
    question_scores,
    score,
    with_boxes,
)
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.scene.annotations import Row, ScanReferRow, Task
    from vega_policy.scene.train.clustered import Mean
    from vega_policy.scene.train.contrasts import Finding
    from vega_policy.scene.train.corpus import Corpus
    from vega_policy.scene.train.settings import SceneTrainConfig

log = logging.getLogger(__name__)

CHANCE, ANY_OF_CLASS = "chance", "any_of_class"


def train_scene(config: SceneTrainConfig) -> dict[str, Any]:
    """Train every arm, answer, score and write ``page.md``, ``arms.png`` and ``results.json``.

    Returns:
        JSON values: ``results`` (by measure and arm: mean, interval, n), ``findings``, ``page``.

    Raises:
        ContractError: Data is missing or does not fit, or the folder holds other settings.
    """
    if config.published.is_asked:
        return evaluate_published(config)
    corpus = load_corpus(config)
    run_all(config, corpus)
    rooms = {room.scene_id: room for room in (*corpus.train, *corpus.held_out)}
    means: dict[str, dict[str, Mean]] = {}
    findings: dict[str, list[Finding]] = {}
    evaluated: dict[str, dict[str, dict[str, float]]] = {}
    for head in ("scannet", "vsi"):
        for task in config.tasks_of(head):
            if not corpus.rows[task] or not config.study(head).arms:
                continue
            rows = [with_boxes(row, rooms) for row in corpus.rows[task]]
            found = {
                job.arm: score(task, json.loads(_predictions(job, config, task)), rows)
                for job in jobs_of(config)
                if job.head == head
            }
            asked = corpus.asked(corpus.train, [task])
            train = [case.row for some in asked.values() for case in some]
            by_arm = {arm: question_scores(one, task) for arm, one in found.items()}
            by_arm[CHANCE] = chance(task, rows, train, rooms)
            if task == "scanrefer":
                by_arm[ANY_OF_CLASS] = any_of_class(cast("list[ScanReferRow]", rows), rooms)
            ids = next(iter(found.values())).ids
            for measure, kept in _measures(task, rows).items():
                scenes = {ids[i]: case_of(rows[i]).scene_id for i in kept}
                some_scores = {a: {k: s[k] for k in scenes} for a, s in by_arm.items()}
                means[measure] = {a: clustered_mean(s, scenes) for a, s in some_scores.items()}
                findings[measure] = compare(some_scores, scenes)
            evaluated[task] = {
                arm: {name: one.value for name, one in evaluation.scores.items()}
                for arm, evaluation in found.items()
            }
    draw_chart(means, config.out_dir / "arms.png")
    page = config.out_dir / "page.md"
    write_page(
        page,
        means=means,
        findings=findings,
        scores=evaluated,
        facts=_facts(config, corpus),
        chart="arms.png",
    )
    result = {
        "what": CAVEAT,
        "results": {m: {a: _mean(v) for a, v in column.items()} for m, column in means.items()},
        "findings": [
            {
                "measure": measure,
                "a": f.contrast.a,
                "b": f.contrast.b,
                "expected": f.contrast.expected,
                "difference": _mean(f.difference),
                "verdict": f.verdict,
            }
            for measure, some in findings.items()
            for f in some
        ],
        "scores": evaluated,
    }
    write_atomic(config.out_dir / "results.json", json.dumps(result, indent=2) + "\n")
    return {**{k: v for k, v in result.items() if k != "scores"}, "page": str(page)}


def _measures(task: Task, rows: Sequence[Row]) -> dict[str, list[int]]:
    """Return which rows count for all of a task, and for each kind of it."""
    kinds = [case_of(row).kind for row in rows]
    measures = {f"{task} {HEADLINE[task]}": list(range(len(rows)))}
    if task in ("scanrefer", "vsi_bench") and len(set(kinds)) > 1:
        for kind in sorted(set(kinds)):
            measures[f"{task} {kind}"] = [i for i, one in enumerate(kinds) if one == kind]
    return measures


def _predictions(job: Job, config: SceneTrainConfig, task: Task) -> str:
    return (job.folder(config) / "predictions" / f"{task}.json").read_text()


def _facts(config: SceneTrainConfig, corpus: Corpus) -> dict[str, object]:
    said = {
        f"{j.head} {j.arm}": json.loads((j.folder(config) / DONE).read_text())
        for j in jobs_of(config)
    }
    training = sum(one["seconds"]["training"] for one in said.values())
    return {
        "scenes": f"{len(corpus.train)} for training, {len(corpus.held_out)} held out",
        "views of a scene": config.data.n_frames,
        "held-out questions": ", ".join(f"{t} {len(r)}" for t, r in corpus.rows.items()),
        "updates of an arm": f"{config.scannet.steps} (ScanNet), {config.vsi.steps} (VSI)",
        "training": f"{training / 60:.0f} minutes in all, on one thread",
        "seed": config.seed,
    }


def _mean(mean: Mean) -> dict[str, Any]:
    return {
        "mean": round(mean.value, 5),
        # Of a single scene it has no end, for which JSON has no number.
        "interval": [round(end, 5) if math.isfinite(end) else None for end in mean.interval],
        "n": mean.n,
        "scenes": mean.n_scenes,
    }
