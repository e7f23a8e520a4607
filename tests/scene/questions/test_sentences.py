"""What is written is read back, and nothing else is read into it."""

import pytest

from vega_policy.scene.questions.sentences import (
    ASK,
    CAPTION,
    REFER,
    SITUATED,
    SITUATION,
    VSI,
    one,
    plural,
    read,
    without_colour,
    write,
)

NOUNS = ("lamp", "coffee table", "trash can", "desk", "shelf", "box")
SLOTS = {
    **dict.fromkeys(("thing", "label", "goal"), "lamp"),
    **dict.fromkeys(("anchor", "by", "other"), "red coffee table"),
    "facing": "trash can",
    "things": "gray trash cans",
    "one": "an orange trash can",
    "side": "left",
    "color": "pink",
    "n": "two",
    "way": "behind me",
    "choices": "lamp, coffee table, desk, box",
    "actions": "1. [please fill in] 2. Go forward until the lamp.",
}


@pytest.mark.parametrize("family", [REFER, CAPTION, ASK, SITUATION, SITUATED, VSI])
def test_every_sentence_is_read_in_one_way(family):
    for kind, templates in family.items():
        for template in templates:
            (said,) = read(write(template, **SLOTS), family, nouns=NOUNS)
            assert said.kind == kind
            assert all(said.slots[name] == SLOTS[name] for name in said.slots)


def test_without_classes_a_text_may_have_more_than_one_meaning():
    assert {s.kind for s in read("the biggest box", REFER)} == {"only", "biggest"}
    assert [s.kind for s in read("the biggest box", REFER, nouns=NOUNS)] == ["biggest"]


def test_the_second_time_a_slot_must_say_the_same():
    text = write(VSI["object_rel_direction_easy"][0], thing="lamp", by="desk", facing="box")
    assert read(text, VSI)
    assert read(text.replace("right of the box", "right of the desk"), VSI) == ()


@pytest.mark.parametrize("text", ["", "the", "the lamp!", "The lamp", "find lamp", "the lamp\n"])
def test_other_texts_are_not_read(text):
    assert read(text, REFER) == ()


def test_plurals_and_articles():
    assert [plural(n) for n in ("box", "bench", "shelf", "couch", "lady", "toy", "desk")] == [
        *("boxes", "benches", "shelves", "couches", "ladies", "toys", "desks")
    ]
    assert [one(n) for n in ("orange box", "red box")] == ["an orange box", "a red box"]
    assert [plural("glass"), plural("cookies"), one("cookies")] == ["glasses", "cookies", "cookies"]


def test_colour_words_are_split_off():
    assert without_colour("red coffee table") == ("red", "coffee table")
    assert without_colour("coffee table") == ("", "coffee table")
    assert without_colour("orange") == ("", "orange")
