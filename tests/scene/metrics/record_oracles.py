"""Record what the public evaluators say of synthetic predictions, for the tests beside this file.

    python -m venv oracle
    oracle/bin/pip install numpy==1.26.4 pyarrow==25.0.0 torchmetrics-ext==0.4.2 pycocoevalcap==1.2
    # and a Java runtime
    oracle/bin/python tests/scene/metrics/record_oracles.py \
        --video-3d-llm CHECKOUT --thinking-in-space CHECKOUT --lmms-eval CHECKOUT --leo CHECKOUT

Checkouts: LaVi-Lab/Video-3D-LLM at 3ff70e8, vision-x-nyu/thinking-in-space at 51e089c,
EvolvingLMMs-Lab/lmms-eval at 75571cf, embodied-generalist/embodied-generalist at 567f2d8. Inputs are drawn with fixed seeds and stored with the answers, so
that the tests need none of this. Single functions are taken out of the checkouts, whose imports are heavy.
"""

# ruff: noqa: RUF001, S102, S311
import argparse
import ast
import json
import random
import re
from functools import partial
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parents[2] / "data" / "scene" / "metrics"
WORDS = [
    "the",
    "a",
    "chair",
    "table",
    "red",
    "brown",
    "is",
    "in",
    "front",
    "of",
    "left",
    "right",
    "next",
    "to",
    "it",
    "wall",
    "corner",
    "tall",
    "wooden",
    "desk",
    "and",
    "this",
    "there",
    "two",
    "monitor",
    "shelf",
    "window",
    "small",
    "with",
    "legs",
    "near",
    "door",
    "black",
    "that",
]
NUMERIC = [
    "object_counting",
    "object_abs_distance",
    "object_size_estimation",
    "room_size_estimation",
]
CHOICE = [
    "object_rel_distance",
    "object_rel_direction_easy",
    "object_rel_direction_medium",
    "object_rel_direction_hard",
    "route_planning",
    "obj_appearance_order",
]


def functions(path, names):
    """Return functions and constants of a file without running the rest of it."""
    tree = ast.parse(Path(path).read_text())
    methods = [
        node for owner in tree.body if isinstance(owner, ast.ClassDef) for node in owner.body
    ]
    kept = [
        node
        for node in (*tree.body, *methods)
        if getattr(node, "name", None) in names
        or (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in names)
    ]
    from scipy.optimize import linear_sum_assignment

    scope = {"np": np, "re": re, "linear_sum_assignment": linear_sum_assignment}
    exec(compile(ast.Module(kept, []), str(path), "exec"), scope)
    return scope


def sentence(rng, n):
    return " ".join(rng.choice(WORDS) for _ in range(n))


def box(rng, at=None):
    if at is not None and rng.random() < 0.7:
        moved = [v + rng.uniform(-0.25, 0.25) * s for v, s in zip(at[:3], at[3:], strict=True)]
        return [round(v, 3) for v in (*moved, *(s * rng.uniform(0.7, 1.3) for s in at[3:]))]
    centre = [rng.uniform(-3, 3) for _ in range(3)]
    return [round(v, 3) for v in (*centre, *(rng.uniform(0.2, 2) for _ in range(3)))]


def bounds(boxes):
    import torch

    array = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 6)
    return torch.stack([array[:, :3] - array[:, 3:] / 2, array[:, :3] + array[:, 3:] / 2], dim=1)


def captions():
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rng = random.Random(0)
    candidates, references = [], []
    for i in range(120):
        texts = [sentence(rng, rng.randint(1, 14)) for _ in range(rng.randint(1, 5))]
        words = rng.choice(texts).split()
        mixed = [w if rng.random() < 0.8 else rng.choice(WORDS) for w in words]
        said = " ".join(mixed[: rng.randint(0, len(mixed))] if i % 5 == 0 else mixed)
        said = {3: said.capitalize() + ".", 7: "", 11: said + "  twice  blank"}.get(i % 13, said)
        candidates.append(said)
        references.append([t.capitalize() + "." if i % 17 == 3 else t for t in texts])

    def scores(said, targets):
        res = {i: [text] for i, text in enumerate(said)}
        gts = dict(enumerate(targets))
        bleu, _ = Bleu(4).compute_score(gts, res, verbose=0)
        cider, ciders = Cider().compute_score(gts, res)
        rouge, rouges = Rouge().compute_score(gts, res)
        meteor, meteors = Meteor().compute_score(gts, res)
        return {
            "bleu": bleu,
            "cider": float(cider),
            "cider_items": ciders.tolist(),
            "rouge_l": float(rouge),
            "rouge_l_items": rouges.tolist(),
            "meteor": meteor,
            "meteor_items": meteors,
        }

    prepared = [f"sos {t.replace('.', ' . ').replace(',', ' , ').lower()} eos" for t in candidates]
    targets = [
        [f"sos {t.replace('.', ' . ').replace(',', ' , ').lower()} eos" for t in row]
        for row in references
    ]
    tokenizer = PTBTokenizer()
    ptb = tokenizer.tokenize({i: [{"caption": t}] for i, t in enumerate(candidates)})
    ptb_references = tokenizer.tokenize(
        {i: [{"caption": t} for t in row] for i, row in enumerate(references)}
    )
    ptb = [ptb[i][0] for i in range(len(candidates))]
    ptb_references = [ptb_references[i] for i in range(len(candidates))]
    return {
        "candidates": candidates,
        "references": references,
        "ptb_candidates": ptb,
        "ptb_references": ptb_references,
        "raw": scores([c.rstrip(".") for c in candidates], references),
        "ptb": scores(ptb, ptb_references),
        "scan2cap": scores(prepared, targets),
        "scan2cap_empty": scores(["sos  eos"] * len(prepared), targets),
    }


def grounding(video_3d_llm):
    import torch
    from torchmetrics_ext.metrics.visual_grounding import Multi3DReferMetric, ScanReferMetric

    evaluation = Path(video_3d_llm) / "llava" / "eval"
    upstream = functions(
        evaluation / "box_utils.py",
        {"get_3d_box_corners", "get_box3d_min_max", "box3d_iou"},
    )
    query = functions(evaluation / "eval_multi3drefer.py", {"evaluate_one_query"})
    query.update({k: v for k, v in upstream.items() if callable(v)})
    one_query = query["evaluate_one_query"]
    rng = random.Random(1)

    single = []
    for i in range(300):
        truth = box(rng)
        single.append(
            {
                "scene_id": f"scene{i % 17:04d}_00",
                "object_id": i // 17,
                "ann_id": "0",
                "eval_type": rng.choice(["unique", "multiple"]),
                "box": truth,
                "predicted": box(rng, truth),
            }
        )
    metric = ScanReferMetric.__new__(ScanReferMetric)
    metric._load_gt_data = lambda **_: None
    ScanReferMetric.__init__(metric, dataset_file_path="", split="")
    metric.gt_ids_to_idx = {str(i): i for i in range(len(single))}
    metric.gt_eval_types = torch.tensor([int(r["eval_type"] == "multiple") for r in single])
    metric.gt_aabbs = bounds([r["box"] for r in single])
    metric.update({str(i): bounds([r["predicted"]])[0] for i, r in enumerate(single)})
    scanrefer = {name: float(value) for name, value in metric.compute().items()}
    for row in single:
        corners = [
            query["get_3d_box_corners"](b[:3], b[3:]) for b in (row["box"], row["predicted"])
        ]
        row["iou"] = float(query["box3d_iou"](*corners))

    many = []
    for i in range(300):
        kind = ("zt_wo_d", "zt_w_d", "st_wo_d", "st_w_d", "mt")[i % 5]
        n = {"z": 0, "s": 1, "m": rng.randint(2, 5)}[kind[0]]
        truth = [box(rng) for _ in range(n)]
        near = [box(rng, b) for b in truth if rng.random() < 0.8]
        far = [box(rng) for _ in range(rng.choice([0, 0, 0, 1, 2]))]
        many.append(
            {
                "scene_id": f"scene{i % 13:04d}_00",
                "ann_id": i,
                "eval_type": kind,
                "boxes": truth,
                "predicted": near + far,
            }
        )
    multi = Multi3DReferMetric.__new__(Multi3DReferMetric)
    multi._load_gt_data = lambda **_: None
    Multi3DReferMetric.__init__(multi, split="")
    multi.gt_data = {
        str(i): {"gt_aabbs": bounds(r["boxes"]).numpy(), "eval_type": r["eval_type"]}
        for i, r in enumerate(many)
    }
    multi.update({str(i): bounds(r["predicted"]) for i, r in enumerate(many)})
    for row in many:
        row["f1"] = [float(v) for v in one_query(row["predicted"], row["boxes"])]
    return {
        "scanrefer_rows": single,
        "scanrefer": scanrefer,
        "multi3drefer_rows": many,
        "multi3drefer": {name: float(value) for name, value in multi.compute().items()},
    }


def vsi_bench(thinking_in_space, lmms_eval):
    from torchmetrics_ext.metrics.vqa import VSIBenchMetric

    original = functions(
        Path(thinking_in_space) / "lmms_eval/tasks/vsibench/utils.py",
        {"fuzzy_matching", "exact_match", "abs_dist_norm", "mean_relative_accuracy", "to_float"},
    )
    today = functions(
        Path(lmms_eval) / "lmms_eval/tasks/vsibench/utils.py",
        {
            *("_NUMBER_WORDS", "_NUM_RE", "extract_number", "fuzzy_matching", "exact_match"),
            *("abs_dist_norm", "mean_relative_accuracy", "to_float"),
        },
    )
    rng = random.Random(2)
    chatty = (
        "about {}", "{} meters", "{}.", "{}m", "**{}**", "{}", "There are {} of them", "{}-{}",
        "{}\n", "three hundred and two", "twenty one chairs", "no idea", "", "one thousand", "-{}",
        "a hundred", "{},000", "1e1", "two and a half", "Three boxes.",
    )  # fmt: skip
    letters = (
        "A",
        "b",
        "C.",
        "D. left",
        "(A)",
        "A)",
        "Answer: B",
        "A\nleft",
        "\nB",
        "left",
        "c",
        "",
    )
    rows = []
    for i in range(600):
        kind = rng.choice([*NUMERIC, *CHOICE])
        row = {"id": i, "scene_name": f"s{i % 19}", "question_type": kind}
        if kind in NUMERIC:
            truth = rng.choice([1, 2, 3, 4, 7, 20, 40, 2.5, 0.8])
            said = truth * rng.choice([1, 0.5, 0.55, 0.95, 1.05, 1.1, 1.3, 1.5, 2])
            number = f"{said:g}"
            row |= {"ground_truth": f"{truth:g}", "text": rng.choice(chatty).format(number, number)}
        else:
            row |= {"ground_truth": rng.choice("ABCD"), "text": rng.choice(letters)}
        rows.append(row)

    def points(row, scope, read):
        if row["question_type"] in CHOICE:
            return scope["exact_match"](scope["fuzzy_matching"](row["text"]), row["ground_truth"])
        mra = partial(scope["mean_relative_accuracy"], start=0.5, end=0.95, interval=0.05)
        try:
            return float(mra(read(row["text"]), scope["to_float"](row["ground_truth"])))
        except TypeError:
            return 0.0

    for row in rows:
        read = lambda text: original["to_float"](original["fuzzy_matching"](text))  # noqa: E731
        row["original"] = points(row, original, read)
        row["lmms_eval"] = points(row, today, today["extract_number"])
    metric = VSIBenchMetric.__new__(VSIBenchMetric)
    metric._load_gt_data = lambda **_: None
    VSIBenchMetric.__init__(metric)
    metric.gt_data = {row["id"]: row for row in rows}
    # It takes blanks off first, so that answers in lines are read where the original reads none.
    metric.update({row["id"]: row["text"] for row in rows if "\n" not in row["text"]})
    kept = [row["id"] for row in rows if "\n" not in row["text"]]
    values = {name: float(value) for name, value in metric.compute().items()}
    return {"rows": rows, "torchmetrics_ext": values, "torchmetrics_ext_ids": kept}


def answers(video_3d_llm):
    clean = functions(Path(video_3d_llm) / "llava/eval/eval_sqa3d.py", {"clean_answer"})
    rng = random.Random(3)
    parts = [
        "the",
        "a",
        "an",
        "tv",
        "TV",
        "none",
        "0",
        "1",
        "2",
        "9",
        "10",
        "11",
        "20",
        "21",
        "23",
        "3",
        "chai",
        "letf",
        "let",
        "tehre",
        "rigth",
        "rght",
        "behine",
        "wasing",
        "waslked",
        "oclock",
        "o'",
        "clock",
        "mat2",
        "no1",
        "room10",
        "backwards",
        "backwards.",
        "left,",
        "right;",
        "chair's",
        "o'clock",
        "twenty-three",
        "ç",
        "’",
        "é",
        "12:30",
        "A",
        "An",
        "The",
        "...",
        "-",
        ":",
    ]
    gaps = (" ", "  ", "   ", ". ", ".  ", "\n", " \n", ",", "", "\t")
    texts = ["", " ", "\n", " \n", "a", "the", "a 2", "4 chairs"]
    for _ in range(600):
        some = [rng.choice(parts) + rng.choice(gaps) for _ in range(rng.randint(1, 5))]
        texts.append(rng.choice(["", " ", "  "]) + "".join(some))
    return [[text, clean["clean_answer"](text)] for text in texts]


def refined(leo):
    """Return answers, references, and LEO's exact and refined match."""
    clean = functions(Path(leo) / "data/data_utils.py", {"clean_answer"})["clean_answer"]
    match = functions(Path(leo) / "evaluator/scanqa_eval.py", {"answer_match"})["answer_match"]
    rng = random.Random(4)
    words = ["the", "brown", "table", "a", "2", "two", "TV", "left", "lamp", "tab", "none", "0"]

    def answer():
        return " ".join(rng.choice(words) for _ in range(rng.randint(0, 3)))

    rows = []
    for _ in range(600):
        said, references = answer(), [answer() for _ in range(rng.randint(1, 3))]
        cleaned = [clean(reference) for reference in references]
        rows.append([said, references, *match(None, clean(said), cleaned)])
    return rows


def write(name, content):
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser()
    for name in ("--video-3d-llm", "--thinking-in-space", "--lmms-eval", "--leo"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    write("refined", refined(given.leo))
    write("answers", answers(given.video_3d_llm))
    write("vsi_bench", vsi_bench(given.thinking_in_space, given.lmms_eval))
    write("grounding", grounding(given.video_3d_llm))
    write("captions", captions())


if __name__ == "__main__":
    main()
