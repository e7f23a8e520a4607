"""Scores of scene tasks, independent of any model: predictions and annotations in, percent out.

NumPy and SciPy alone; METEOR and the PTB tokeniser are programmes in Java that come with
pycocoevalcap, and are left out, with a note, where they are missing.
"""
