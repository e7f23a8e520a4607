"""The scripted demonstrator: from simulator state to actions, goal by goal."""

from envs.expert.goals import GoalExpert, Style, require_skills

__all__ = ["GoalExpert", "Style", "require_skills"]
