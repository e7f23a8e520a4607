"""Ours against the public evaluators, on predictions that record_oracles.py stored with their answers."""

import json
from pathlib import Path

import numpy as np
import pytest

from vega_policy.scene.annotations import Multi3DReferRow, ScanReferRow, VsiRow
from vega_policy.scene.boxes import iou
from vega_policy.scene.metrics.answers import clean_answer, refined_match
from vega_policy.scene.metrics.bleu import bleu, bleu_statistics
from vega_policy.scene.metrics.cider import cider
from vega_policy.scene.metrics.meteor import meteor, ptb_tokens, why_no_java
from vega_policy.scene.metrics.multi3drefer import THRESHOLDS, f1, score_multi3drefer
from vega_policy.scene.metrics.rouge import rouge_l
from vega_policy.scene.metrics.scan2cap import prepare
from vega_policy.scene.metrics.scanrefer import score_scanrefer
from vega_policy.scene.metrics.vsi_bench import TASKS, score_answer, score_vsi_bench

DATA = Path(__file__).resolve().parents[2] / "data" / "scene" / "metrics"
needs_java = pytest.mark.skipif(why_no_java() is not None, reason=str(why_no_java()))


def recorded(name):
    return json.loads((DATA / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def captions():
    return recorded("captions")


@pytest.fixture(scope="module")
def grounding():
    return recorded("grounding")


def texts(captions, mode):
    said, targets = captions["candidates"], captions["references"]
    if mode == "ptb":
        return captions["ptb_candidates"], captions["ptb_references"]
    if mode == "raw":
        return [text.rstrip(".") for text in said], targets
    made = [prepare(text if mode == "scan2cap" else "") for text in said]
    return made, [[prepare(text) for text in row] for row in targets]


@pytest.mark.parametrize("mode", ["raw", "ptb", "scan2cap", "scan2cap_empty"])
def test_bleu_cider_and_rouge_equal_pycocoevalcap(captions, mode):
    said, targets = texts(captions, mode)
    found = captions[mode]
    total = bleu_statistics(said, targets).sum(axis=0)
    np.testing.assert_allclose(bleu(total), found["bleu"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(cider(said, targets), found["cider_items"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(rouge_l(said, targets), found["rouge_l_items"], rtol=0, atol=1e-15)
    assert cider(said, targets).mean() == pytest.approx(found["cider"], abs=1e-12)


@needs_java
def test_meteor_equals_the_recorded_run(captions):
    said, targets = texts(captions, "scan2cap")
    found = meteor(said, targets)
    assert found.value == captions["scan2cap"]["meteor"]
    assert found.items.tolist() == captions["scan2cap"]["meteor_items"]


@needs_java
def test_ptb_tokens_equal_the_recorded_run(captions):
    assert ptb_tokens(captions["candidates"]) == captions["ptb_candidates"]
    assert ptb_tokens(["", "", "A chair.", ""]) == ["", "", "a chair", ""]


def test_scanrefer_equals_torchmetrics_ext(grounding):
    rows = grounding["scanrefer_rows"]
    found = score_scanrefer(
        [{**row, "box": row["predicted"]} for row in rows],
        [scanrefer_row(row) for row in rows],
        unique_by="file",
    )
    ours = {
        f"{group}_{t}": found.scores[f"{'' if group == 'all' else group + '/'}acc@{t}"].value / 100
        for group in ("all", "unique", "multiple")
        for t in THRESHOLDS
    }
    assert ours == pytest.approx(grounding["scanrefer"], abs=1e-7)  # theirs are float32


def test_overlap_equals_video_3d_llm(grounding):
    rows = grounding["scanrefer_rows"]
    ours = np.diagonal(iou([r["predicted"] for r in rows], [r["box"] for r in rows]))
    np.testing.assert_allclose(ours, [row["iou"] for row in rows], rtol=0, atol=1e-15)


def test_multi3drefer_equals_torchmetrics_ext(grounding):
    rows = grounding["multi3drefer_rows"]
    found = score_multi3drefer(
        [{**row, "boxes": row["predicted"]} for row in rows], [multi_row(row) for row in rows]
    )
    ours = {}
    for name in grounding["multi3drefer"]:
        kind, _, threshold = name.partition("_0.")
        prefix = "" if kind == "all" else f"{kind}/"
        ours[name] = found.scores[f"{prefix}f1@0.{threshold or '25'}"].value / 100
    assert ours == pytest.approx(grounding["multi3drefer"], abs=1e-6)  # theirs are float32


def test_f1_of_each_description_equals_video_3d_llm(grounding):
    for row in grounding["multi3drefer_rows"]:
        predicted, truth = (np.reshape(row[k], (-1, 6)) for k in ("predicted", "boxes"))
        assert f1(predicted, truth, thresholds=THRESHOLDS).tolist() == row["f1"]


@pytest.mark.parametrize("parser", ["original", "lmms_eval"])
def test_vsi_answers_equal_the_benchmarks_code(parser):
    for row in recorded("vsi_bench")["rows"]:
        assert score_answer(row["text"], vsi_row(row), parser=parser) == row[parser], row


def test_vsi_scores_equal_torchmetrics_ext():
    content = recorded("vsi_bench")
    kept = set(content["torchmetrics_ext_ids"])
    rows = [row for row in content["rows"] if row["id"] in kept]
    found = score_vsi_bench(rows, [vsi_row(row) for row in rows])
    theirs = content["torchmetrics_ext"]
    assert found.scores["overall"].value == pytest.approx(theirs["overall_acc"], abs=1e-9)
    for task in TASKS:
        assert found.scores[task].value == pytest.approx(theirs[f"{task}_acc"], abs=1e-9)


def test_cleaned_answers_equal_video_3d_llm():
    for text, cleaned in recorded("answers"):
        assert clean_answer(text) == cleaned, repr(text)


def test_the_refined_match_equals_leos_and_strict_differs_where_nothing_is_said():
    rows = recorded("refined")
    assert len(rows) == 600
    for said, references, em, refined in rows:
        assert refined_match(said, references, em_r="leo") == bool(refined)
        is_silent = not clean_answer(said).strip()
        strict = refined_match(said, references, em_r="strict")
        assert strict == (False if is_silent else bool(refined))
        # LEO stops at the first reference that contains the answer, also where a later one equals it.
        equal = any(clean_answer(said) == clean_answer(reference) for reference in references)
        assert equal >= em
        assert equal == bool(em) or len(references) > 1


def test_live_pycocoevalcap_agrees_on_fresh_texts():
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    rng = np.random.default_rng(7)
    words = np.array(["a", "the", "chair", "table", "is", "red", "near", "left", "of", "it"])
    said = [" ".join(rng.choice(words, rng.integers(0, 12))) for _ in range(80)]
    targets = [
        [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(rng.integers(1, 5))]
        for _ in said
    ]
    res, gts = {i: [text] for i, text in enumerate(said)}, dict(enumerate(targets))
    ours = bleu(bleu_statistics(said, targets).sum(axis=0))
    np.testing.assert_allclose(ours, Bleu(4).compute_score(gts, res, verbose=0)[0], rtol=1e-12)
    np.testing.assert_allclose(cider(said, targets), Cider().compute_score(gts, res)[1], atol=1e-12)
    np.testing.assert_allclose(rouge_l(said, targets), Rouge().compute_score(gts, res)[1])


def scanrefer_row(row):
    return ScanReferRow(
        scene_id=row["scene_id"],
        object_id=row["object_id"],
        object_name="chair",
        ann_id=row["ann_id"],
        description="a chair",
        eval_type=row["eval_type"],
        box=tuple(row["box"]),
    )


def multi_row(row):
    return Multi3DReferRow(
        scene_id=row["scene_id"],
        object_ids=tuple(range(len(row["boxes"]))),
        description="chairs",
        eval_type=row["eval_type"],
        object_name="chair",
        ann_id=row["ann_id"],
        boxes=tuple(map(tuple, row["boxes"])),
    )


def vsi_row(row):
    return VsiRow(
        id=row["id"],
        dataset="scannet",
        scene_name=row["scene_name"],
        question_type=row["question_type"],
        question="?",
        ground_truth=row["ground_truth"],
    )
