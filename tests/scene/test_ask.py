"""One question about one scan."""

import dataclasses

import pytest
import torch
from PIL import Image

from vega_policy.scene.ask import Question, Reply, ask, draw_reply
from vega_policy.scene.heads import prompts
from vega_policy.scene.heads.inputs import scene_inputs
from vega_policy.scene.heads.presets import nano_scannet, nano_vsi
from vega_policy.scene.heads.scannet_model import ScanNetModel
from vega_policy.scene.readers.scannet import read_scan
from vega_policy.spec import CheckpointError, ContractError

ROOMS = "tests/data/scene/rooms"
TEXTS = [
    prompts.scanrefer("the red chair"),
    prompts.scan2cap(),
    prompts.scanqa("what color is the sofa?"),
    prompts.sqa3d("I am standing by the bed.", "what is behind me?"),
    prompts.vsi_bench("How many chair(s) are in this room?"),
]


@pytest.fixture(scope="module")
def scan():
    return read_scan(ROOMS, "room0000_90", n_frames=3)


@pytest.fixture(scope="module")
def model():
    return nano_scannet(TEXTS, seed=1)


@pytest.fixture(scope="module")
def shipped():
    return ScanNetModel.from_pretrained("nano-scannet")


@pytest.fixture(scope="module")
def video_model():
    return nano_vsi(TEXTS, seed=1)


@torch.no_grad()
def test_one_object_is_the_box_with_the_highest_score(model, scan):
    tokens = model.encode([scene_inputs(scan, px=model.image_px, points_px=32)])
    boxes = torch.stack([torch.from_numpy(o.box) for o in scan.objects])
    scores = model.ground(tokens, [boxes], [TEXTS[0]])[0][:-1]
    reply = ask(model, scan, Question(task="scanrefer", text="the red chair"))
    assert reply == Reply(object_ids=(scan.objects[int(scores.argmax())].object_id,))


def test_text_depends_on_what_is_asked_and_on_the_place(model, scan):
    tokens = model.encode([scene_inputs(scan, px=model.image_px, points_px=32)])
    said = ask(model, scan, Question(task="scanqa", text="what color is the sofa?"))
    assert said == Reply(text=model.answer(tokens, [TEXTS[2]])[0])
    place = torch.from_numpy(scan.objects[3].box[:3]).float()
    said = ask(model, scan, Question(task="scan2cap", object_id=scan.objects[3].object_id))
    assert said == Reply(text=model.answer(tokens, [TEXTS[1]], coords=[place])[0])
    said = ask(
        model,
        scan,
        Question(task="sqa3d", situation="I am standing by the bed.", text="what is behind me?"),
    )
    assert said == Reply(text=model.answer(tokens, [TEXTS[3]])[0])


def test_a_video_is_asked_without_depth_or_boxes(video_model, scan):
    bare = dataclasses.replace(
        scan, objects=(), frames=[dataclasses.replace(f, depth_m=None) for f in scan.frames]
    )
    question = Question(task="vsi_bench", text="How many chair(s) are in this room?")
    assert ask(video_model, bare, question) == ask(video_model, scan, question)


@pytest.mark.parametrize(
    ("question", "change", "says"),
    [
        (Question(task="scanref", text="x"), {}, "did you mean 'scanrefer'"),
        (Question(task="vsi_bench", text="x"), {}, "is answered by a VsiModel"),
        (Question(task="scan2cap", object_id=99), {}, "got 99; expected one of"),
        (Question(task="scan2cap"), {}, "got None"),
        (Question(task="scanrefer", text="x"), {"objects": ()}, "has no objects"),
    ],
)
def test_what_does_not_fit_is_said(model, scan, question, change, says):
    with pytest.raises(ContractError, match=says):
        ask(model, dataclasses.replace(scan, **change), question)


def test_picture_shows_the_box_that_is_meant(scan, tmp_path):
    question = Question(task="scanrefer", text="the red chair")
    pictures = []
    for ids in ((9,), (8,), ()):
        path = tmp_path / f"{ids}.png"
        draw_reply(scan, question, Reply(object_ids=ids), path)
        pictures.append(Image.open(path).convert("RGB").tobytes())
    assert len(set(pictures)) == 3


@pytest.mark.parametrize(
    ("text", "object_id"),
    [("the green table", 6), ("the bookshelf", 4), ("the pink lamp", 12), ("the white door", 0)],
)
def test_the_shipped_model_finds_what_stands_out(shipped, text, object_id):
    scan = read_scan(ROOMS, "room0000_90", n_frames=6)
    assert ask(shipped, scan, Question(task="scanrefer", text=text)).object_ids == (object_id,)


def test_a_model_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(CheckpointError, match=r"nano-scanet is no scene model.*nano-scannet"):
        ScanNetModel.from_pretrained("nano-scanet")
