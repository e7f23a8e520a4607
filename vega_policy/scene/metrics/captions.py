"""The four caption scores of a corpus, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vega_policy.scene.metrics.bleu import bleu, bleu_statistics
from vega_policy.scene.metrics.cider import cider
from vega_policy.scene.metrics.meteor import JavaMissingError, meteor
from vega_policy.scene.metrics.rouge import rouge_l
from vega_policy.scene.metrics.score import Floats, Score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.scene.metrics.score import SceneBootstrap


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """What the caption metrics say of a corpus."""

    scores: Mapping[str, Score]
    """``cider, bleu1..bleu4, meteor, rouge_l`` in percent."""
    values: Mapping[str, Floats]
    """``cider`` (0 to 10), ``meteor`` and ``rouge_l`` of each item."""
    notes: tuple[str, ...]
    """What was not computed, and why."""


def score_captions(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    bootstrap: SceneBootstrap,
    *,
    with_meteor: bool = True,
) -> CaptionScores:
    """Score texts as they are; a protocol has prepared them.

    CIDEr's word weights stay those of all references in every draw of the bootstrap. METEOR is made
    from summed statistics inside its programme: its interval is that of the mean over items, moved
    to the corpus value.

    Args:
        candidates: One text an item.
        references: The texts each is compared with, at least one.
        bootstrap: Over the scenes of the items.
        with_meteor: Whether to run it, which takes some ten seconds.
    """
    n = len(candidates)
    rarity, overlap = cider(candidates, references), rouge_l(candidates, references)
    statistics = bleu_statistics(candidates, references)
    points, draws = 100 * bleu(statistics.sum(axis=0)), 100 * bleu(bootstrap.sums(statistics))
    scores = {"cider": _mean(100 * rarity, bootstrap)}
    scores |= {f"bleu{k + 1}": bootstrap.of(float(points[k]), n, draws[:, k]) for k in range(4)}
    values = {"cider": rarity, "rouge_l": overlap}
    notes: list[str] = []
    if with_meteor:
        try:
            found = meteor(candidates, references)
        except JavaMissingError as error:
            notes.append(f"METEOR not computed: {error}")
        else:
            scores["meteor"] = _moved(100 * found.value, 100 * found.items, bootstrap)
            values["meteor"] = found.items
    else:
        notes.append("METEOR not computed: not asked for")
    scores["rouge_l"] = _mean(100 * overlap, bootstrap)
    return CaptionScores(scores=scores, values=values, notes=tuple(notes))


def _mean(values: Floats, bootstrap: SceneBootstrap) -> Score:
    return bootstrap.of(float(values.mean()), len(values), bootstrap.means(values))


def _moved(value: float, items: Floats, bootstrap: SceneBootstrap) -> Score:
    shift = value - float(items.mean())
    return bootstrap.of(value, len(items), bootstrap.means(items) + shift)
