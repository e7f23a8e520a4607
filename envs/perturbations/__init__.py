"""Changes of an episode that leave the task what it is, each paired with its clean episode.

A perturbation is a name in the episode's key. Replacing it with ``none`` gives the clean episode
with the same initial state, seed and repetition.
"""

from envs.perturbations.base import Perturbation
from envs.perturbations.making import make
from envs.perturbations.naming import CLEAN, KINDS, LEVELS, PRO, is_pro, names, require

__all__ = ["CLEAN", "KINDS", "LEVELS", "PRO", "Perturbation", "is_pro", "make", "names", "require"]
