"""What the models are asked, word for word as in the released code: the words change the scores.

Each function returns what follows the image token. Generation is greedy, with at most
`MAX_NEW_TOKENS` tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGE, COORD, GROUND = "<image>", "<coord>", "<ground>"
"""Stand for the tokens of a scene, for a place in it, and for "this is where I answer with an object"."""
MAX_NEW_TOKENS = {"scan2cap": 512, "scanqa": 512, "sqa3d": 512, "vsi_bench": 16}


def scanrefer(description: str) -> str:
    """Ask for one object. `str.capitalize` also lowers every other letter."""
    return (
        "Identify the object according to the following description.\n" + description.capitalize()
    )


def multi3drefer(description: str) -> str:
    """Ask for any number of objects."""
    return (
        scanrefer(description)
        + "\nThere may be no corresponding object, or there may be one or more objects."
    )


def scan2cap() -> str:
    """Ask for a caption; the place goes in as a coordinate."""
    return f"Given an object located at {COORD} , describe the object in detail."


def scanqa(question: str) -> str:
    """Ask a question."""
    return f"{question} Answer the question simply."


def sqa3d(situation: str, question: str) -> str:
    """Ask a question of somebody who stands in the scene."""
    return f"{situation} {question} Answer the question using a single word or phrase."


def vsi_bench(question: str, options: Sequence[str] | None = None) -> str:
    """Ask a question about a video; with options, for a letter.

    Args:
        question: As in the file.
        options: As in the file, letters included.
    """
    asked = f"These are frames of a video.\n{question}\n"
    if options is None:
        return asked + "Please answer the question using a single word or phrase."
    listed = "\n".join(options)
    return (
        f"{asked}Options:\n{listed}\n"
        "Answer with the option's letter from the given choices directly."
    )
