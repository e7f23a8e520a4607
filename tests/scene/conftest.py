"""Published files, where somebody has put them."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real():
    """Return a function from parts of a path below VEGA_SCENE_DATA to the path; it skips where nothing is."""
    root = Path(os.environ.get("VEGA_SCENE_DATA", "no such folder"))

    def find(*parts: str) -> Path:
        path = root.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"{'/'.join(parts)} is not in VEGA_SCENE_DATA")
        return path

    return find
