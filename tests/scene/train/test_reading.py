"""Reading a scene once for all its texts changes nothing but the price."""

import pytest
import torch

from vega_policy.scene.heads.presets import nano_scannet, nano_vsi
from vega_policy.scene.train.reading import answers_to, ground_scores, read_texts, text_losses

TEXTS = ["the high one", "what is it that stands at the very back of the room ?"]
ANSWERS = ["yes", "a box that is high"]


@pytest.fixture(scope="module")
def scannet(bare_rooms):
    model = nano_scannet([*TEXTS, *ANSWERS])
    room = bare_rooms[0][0]
    with torch.no_grad():
        return model, model.encode([room.seen]), room


@pytest.fixture(scope="module")
def vsi(bare_rooms):
    model = nano_vsi([*TEXTS, *ANSWERS])
    room = bare_rooms[0][0]
    with torch.no_grad():
        return model, model.encode([room.video]), room


def test_scores_of_boxes_are_those_of_one_pass_for_each_text(scannet):
    model, tokens, room = scannet
    read = read_texts(model, tokens, TEXTS, answers=["<ground>"] * 2)
    expected = model.ground(tokens.take([0, 0]), [room.boxes] * 2, TEXTS)
    torch.testing.assert_close(ground_scores(model, tokens, room.boxes, read), expected)


def test_losses_with_places_are_those_of_one_pass_for_each_text(scannet):
    model, tokens, _ = scannet
    texts, coords = [f"{t} <coord>" for t in TEXTS], list(torch.rand(2, 3))
    read = read_texts(model, tokens, texts, answers=ANSWERS, coords=coords)
    expected = [
        model.loss_text(tokens, [t], [a], coords=[c])
        for t, a, c in zip(texts, ANSWERS, coords, strict=True)
    ]
    torch.testing.assert_close(text_losses(model, read, [0, 1]), expected)


def test_losses_of_videos_are_those_of_one_pass_for_each_text(vsi):
    model, tokens, _ = vsi
    read = read_texts(model, tokens, TEXTS, answers=ANSWERS)
    expected = [model.loss_text(tokens, [t], [a]) for t, a in zip(TEXTS, ANSWERS, strict=True)]
    torch.testing.assert_close(text_losses(model, read, [0, 1]), expected)


def test_gradients_flow_through_what_texts_share(scannet):
    model, _, room = scannet
    weight = model.branch.semantic_projector.fc3.weight

    def gradient(loss_of):
        tokens = model.encode([room.seen])
        return torch.autograd.grad(loss_of(tokens), weight)[0]

    shared = gradient(
        lambda t: torch.stack(
            text_losses(model, read_texts(model, t, TEXTS, answers=ANSWERS), [0, 1])
        ).sum()
    )
    apart = gradient(
        lambda t: sum(model.loss_text(t, [x], [a]) for x, a in zip(TEXTS, ANSWERS, strict=True))
    )
    torch.testing.assert_close(shared, apart, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["scannet", "vsi"])
def test_answers_are_those_of_generation(kind, request):
    model, tokens, _ = request.getfixturevalue(kind)
    model.backbone.lm_head.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    expected = [model.answer(tokens, [text], max_new_tokens=5)[0] for text in TEXTS]
    assert any(expected)
    assert answers_to(model, tokens, TEXTS, max_new_tokens=5) == expected


@pytest.mark.parametrize("head", ["scannet", "vsi"])
def test_texts_read_without_the_scene_depend_on_their_words_alone(head, request, bare_rooms):
    model, tokens, _ = request.getfixturevalue(head)
    other = bare_rooms[0][1]
    with torch.no_grad():
        elsewhere = model.encode([other.seen if head == "scannet" else other.video])
        states = [
            read_texts(model, t, TEXTS, answers=ANSWERS, with_scene=with_scene).states[0, -1]
            for with_scene in (False, True)
            for t in (tokens, elsewhere)
        ]
        alone = read_texts(model, tokens, TEXTS[:1], answers=ANSWERS[:1], with_scene=False)
    # Places of tokens differ by the longer scene or text before them, which attention does not see.
    assert torch.equal(states[0], states[1])
    assert not torch.allclose(states[2], states[3], atol=1e-4)
    torch.testing.assert_close(alone.states[0, -1], states[0], rtol=1e-4, atol=1e-4)
