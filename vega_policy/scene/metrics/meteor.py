"""METEOR 1.5 and the PTB tokeniser: Java programmes that come with pycocoevalcap (extra ``eval``)."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence


class JavaMissingError(RuntimeError):
    """A Java programme cannot run here; the message says what to install."""


@dataclass(frozen=True, eq=False)
class Meteor:
    """METEOR of a corpus."""

    value: float
    """In [0, 1]; of the summed statistics, so not the mean of ``items``."""
    items: NDArray[np.float64]
    """(items,) in [0, 1]."""


def why_no_java() -> str | None:
    """Return what is missing for METEOR and the PTB tokeniser, or None."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "pycocoevalcap is not installed; pip install 'vega-policy[eval]'"
    if shutil.which("java") is None:
        return "there is no java; install a Java runtime, such as openjdk-17-jre-headless"
    return None


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Meteor:
    """Return METEOR; loading its tables takes some ten seconds.

    Line breaks and the separator ``|||`` become blanks: the programme reads one line a text and would
    wait for ever.

    Args:
        candidates: One text an item.
        references: The texts each is compared with, at least one.

    Raises:
        JavaMissingError: pycocoevalcap or Java is missing, or the programme ended early.
    """
    _require_java()
    from pycocoevalcap.meteor.meteor import (  # pyright: ignore[reportMissingImports]
        Meteor as Programme,
    )

    texts = {i: [_one_line(candidate)] for i, candidate in enumerate(candidates)}
    others = {i: [_one_line(text) for text in row] for i, row in enumerate(references)}
    programme = Programme()
    try:
        value, items = programme.compute_score(others, texts)
    except (OSError, ValueError) as error:
        raise JavaMissingError(f"METEOR ended early ({error}); run java -version") from error
    finally:
        # The destructor would wait for a lock that a failed call still holds.
        if programme.lock.locked():
            programme.lock.release()
        if programme.meteor_p.stdout is not None:
            programme.meteor_p.stdout.close()
        if programme.meteor_p.stderr is not None:
            programme.meteor_p.stderr.close()
    return Meteor(value=float(value), items=np.array(items, dtype=np.float64))


def ptb_tokens(texts: Sequence[str]) -> list[str]:
    """Return texts as the Penn Treebank has them: lower case, punctuation gone, words parted.

    Raises:
        JavaMissingError: pycocoevalcap or Java is missing, or the programme gave no line a text.
    """
    _require_java()
    from pycocoevalcap.tokenizer.ptbtokenizer import (  # pyright: ignore[reportMissingImports]
        PTBTokenizer,
    )

    # A word at the end shows that every line came back, empty ones too.
    rows = {i: [{"caption": " ".join(text.split())}] for i, text in enumerate([*texts, "end"])}
    try:
        tokens = PTBTokenizer().tokenize(rows)
    except OSError as error:
        raise JavaMissingError(f"the PTB tokeniser did not run ({error})") from error
    if len(tokens) != len(rows) or tokens[len(texts)] != ["end"]:
        raise JavaMissingError("the PTB tokeniser gave another number of lines; run java -version")
    return [tokens[i][0] for i in range(len(texts))]


def _require_java() -> None:
    reason = why_no_java()
    if reason is not None:
        raise JavaMissingError(reason)


def _one_line(text: str) -> str:
    for separator in ("|||", "\r\n", *"\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"):
        text = text.replace(separator, " ")
    return text
