"""The multi-view correspondence score: do features of one place agree between views?

`measure` scores sources of features on scans. NumPy alone, but for `sources`, which runs networks.
"""

from __future__ import annotations

from vega_policy.scene.correspondence.benefit import Relation, consistency_and_benefit
from vega_policy.scene.correspondence.controls import CONTROLS, Control
from vega_policy.scene.correspondence.features import FeatureMap, Source
from vega_policy.scene.correspondence.matches import CorrespondenceSettings, Matches, find_matches
from vega_policy.scene.correspondence.measure import Measurement, measure
from vega_policy.scene.correspondence.score import (
    CorrespondenceScore,
    Interval,
    SceneScore,
    correspondence,
)

__all__ = [
    "CONTROLS",
    "Control",
    "CorrespondenceScore",
    "CorrespondenceSettings",
    "FeatureMap",
    "Interval",
    "Matches",
    "Measurement",
    "Relation",
    "SceneScore",
    "Source",
    "consistency_and_benefit",
    "correspondence",
    "find_matches",
    "measure",
]
