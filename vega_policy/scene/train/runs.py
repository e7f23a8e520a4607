"""Arms, trained side by side: each ends with its answers on disk, and is not done again."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vega_policy.scene.heads.presets import scannet_config, vsi_config
from vega_policy.scene.train.answering import answer_all, name_of
from vega_policy.scene.train.arms import ARMS
from vega_policy.scene.train.cases import words
from vega_policy.scene.train.corpus import read_corpus
from vega_policy.scene.train.eyes import train_eyes
from vega_policy.scene.train.features import FeatureBank
from vega_policy.scene.train.learning import BatchConfig, SceneLoss
from vega_policy.scene.train.models import centre, new_scannet, new_vsi, save
from vega_policy.scene.train.rooms import digest_of
from vega_policy.scene.train.settings import Head
from vega_policy.spec.files import write_atomic
from vega_policy.spec.processes import end_with_parent
from vega_policy.train.prior.stage import Surroundings, run_stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.scene.train.arms import Arm
    from vega_policy.scene.train.corpus import Corpus
    from vega_policy.scene.train.rooms import Room
    from vega_policy.scene.train.settings import SceneTrainConfig

log = logging.getLogger(__name__)

QWEN_UNIT_PX = 28
"""Pixels of one token of Qwen2.5-VL along one side."""
DONE = "done.json"


@dataclass(frozen=True)
class Job:
    """One arm of one head."""

    head: Head
    arm: str

    def folder(self, config: SceneTrainConfig) -> Path:
        """Return where its files are."""
        return config.out_dir / self.head / self.arm


def jobs_of(config: SceneTrainConfig) -> list[Job]:
    """Return every arm that is to be trained."""
    return [
        Job(head, arm)
        for head in ("scannet", "vsi")
        for arm in config.study(head).arms
        if config.tasks_of(head)
    ]


def load_corpus(config: SceneTrainConfig) -> Corpus:
    """Read the data of a run, in the sizes of the nano models."""
    return read_corpus(
        config.data,
        tasks=[*config.tasks_of("scannet"), *config.tasks_of("vsi")],
        px=scannet_config().vision.semantic.image_px,
        width_px=vsi_config().width_px,
        unit_px=QWEN_UNIT_PX,
    )


def run_all(config: SceneTrainConfig, corpus: Corpus) -> None:
    """Train every arm that is not done, ``workers`` at a time.

    Raises:
        ContractError: A folder holds an arm of other settings.
    """
    open_jobs = [j for j in jobs_of(config) if not _is_done(j, config, corpus)]
    if config.eyes.steps and any(job.head == "scannet" for job in open_jobs):
        train_eyes(config, corpus, eyes_folder(config))
    if config.workers == 1 or len(open_jobs) < 2:
        for job in open_jobs:
            run_arm(job, config, corpus)
        return
    # Not forked: torch's threads do not survive it.
    with ProcessPoolExecutor(
        max_workers=min(config.workers, len(open_jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(os.getpid(), logging.getLogger().level),
    ) as pool:
        running = {pool.submit(_run_from_disk, job, config): job for job in open_jobs}
        try:
            for done in as_completed(running):
                done.result()
                log.info("%s %s is done", running[done].head, running[done].arm)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def eyes_folder(config: SceneTrainConfig) -> Path:
    """Return where the towers of all arms are."""
    return config.out_dir / "eyes"


def run_arm(job: Job, config: SceneTrainConfig, corpus: Corpus) -> None:
    """Train one arm on one thread, from its last checkpoint where there is one, and write its answers."""
    # As in a worker: with other threads the last bits, and so the weights, are others.
    torch.set_num_threads(1)
    arm, folder = ARMS[job.arm], job.folder(config)
    tasks = config.tasks_of(job.head)
    cases = corpus.asked(corpus.train, tasks)
    rooms = [room for room in corpus.train if room.scene_id in cases]
    model = build(job.head, arm, config, corpus)
    study = config.study(job.head)
    seconds = run_stage(
        model,
        SceneLoss(
            model=model,
            arm=arm,
            rooms=rooms,
            cases=cases,
            bank=bank_of(model, corpus.train, config),
            batch=BatchConfig(
                scenes=study.scenes,
                texts_per_scene=study.texts_per_scene,
                views=study.views,
                words_first=config.words_first,
                shift_m=config.shift_m,
            ),
            seed=config.seed,
            precision=config.precision,
        ),
        config=config.stage(job.head),
        around=Surroundings(
            name="train",
            folder=folder,
            log_every_s=config.log_every_s,
            checkpoint_every_s=config.checkpoint_every_s,
            made_with=made_with(job, config, corpus),
        ),
    )
    trained = time.monotonic()
    save(model, folder / "model")
    asked = corpus.asked(corpus.held_out, tasks)
    answers = answer_all(
        *(model, arm, corpus.held_out, asked),
        bank_of(model, corpus.held_out, config),
        views=study.views,
    )
    for task, rows in answers.items():
        write_atomic(folder / "predictions" / f"{task}.json", json.dumps(rows) + "\n")
    said = {
        "made_with": made_with(job, config, corpus),
        "seconds": {"training": seconds, "answering": time.monotonic() - trained},
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    write_atomic(folder / DONE, json.dumps(said, indent=2) + "\n")


def build(head: Head, arm: Arm, config: SceneTrainConfig, corpus: Corpus) -> Any:  # noqa: ANN401
    """Return the untrained model of an arm."""
    cases = corpus.asked(corpus.train, config.tasks_of(head))
    texts = words(case for some in cases.values() for case in some)
    how: dict[str, Any] = {"policy": config.policy, "fusion": config.fusion, "seed": config.seed}
    if head == "scannet":
        eyes = eyes_folder(config) if config.eyes.steps else None
        model = new_scannet(arm, texts, wiring=config.wiring, eyes=eyes, **how)
    else:
        model = new_vsi(arm, texts, **how)
    some = corpus.train[:4]
    bank = bank_of(model, some, config)
    features = [bank.of(room, arm.features) for room in some]
    given = [one for one in features if one is not None]
    centre(
        model,
        torch.cat([room.seen.pixels for room in some]),
        torch.cat(given) if given else None,
    )
    return model


def bank_of(model: Any, rooms: Sequence[Room], config: SceneTrainConfig) -> FeatureBank:  # noqa: ANN401
    """Return the features of one side of the split."""
    store = Path(config.feature_store) if config.feature_store else None
    return FeatureBank(model, rooms, store_dir=store)


def made_with(job: Job, config: SceneTrainConfig, corpus: Corpus) -> dict[str, Any]:
    """Return what an arm's answers depend on, as JSON values."""
    settings = config.to_dict()
    free = {"out", "workers", "scannet", "vsi", "feature_store", "data", "tasks", "published"}
    kept = {k: v for k, v in settings.items() if k not in free and k[-2:] != "_s"}
    study = {k: v for k, v in settings[job.head].items() if k != "arms"}
    digest = hashlib.sha256()
    for side, rooms in (("train", corpus.train), ("held out", corpus.held_out)):
        digest.update(side.encode() + digest_of(rooms))
        for room in rooms:
            for case in corpus.cases[room.scene_id]:
                if case.task in config.tasks_of(job.head):
                    said = (case.prompt, case.targets, case.answers, case.coord)
                    digest.update(repr((case.task, name_of(case.row), *said)).encode())
    return {**kept, **study, "tasks": list(config.tasks_of(job.head)), "data": digest.hexdigest()}


def _is_done(job: Job, config: SceneTrainConfig, corpus: Corpus) -> bool:
    path = job.folder(config) / DONE
    wanted = json.loads(json.dumps(made_with(job, config, corpus)))
    return path.is_file() and json.loads(path.read_text())["made_with"] == wanted


def _begin_worker(parent: int, level: int) -> None:
    end_with_parent(parent)
    torch.set_num_threads(1)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _run_from_disk(job: Job, config: SceneTrainConfig) -> None:
    run_arm(job, config, load_corpus(config))
