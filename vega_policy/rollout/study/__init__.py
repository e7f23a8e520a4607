"""A declared study: arms x training seeds x episodes, compared in pairs with one reference arm."""

from vega_policy.rollout.study.contrast import Contrast, contrast, detectable
from vega_policy.rollout.study.declaration import Arm, Evaluation, Study

__all__ = ["Arm", "Contrast", "Evaluation", "Study", "contrast", "detectable"]
