"""What every test gets: one thread, no network, off-screen rendering, and a simulator if marked."""

import importlib.util
import os

import pytest

# Before the first import of torch, OpenGL or transformers, and inherited by real processes.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "LP_NUM_THREADS": "0",
    "MPLBACKEND": "Agg",
    "MUJOCO_GL": "osmesa",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(name, value)
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("libero") is None:
        reason = "LIBERO is not installed: pip install -e '.[sim]' -c constraints.txt"
        for item in items:
            if item.get_closest_marker("sim"):
                item.add_marker(pytest.mark.skip(reason=reason))
