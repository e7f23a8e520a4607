"""The scripted demonstrator: from simulator state to actions, goal by goal."""

from envs.expert.pick_place import PickPlaceExpert, Style

__all__ = ["PickPlaceExpert", "Style"]
