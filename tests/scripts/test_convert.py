"""Converting from the command line: one JSON line, nothing overwritten, a kill leaves no data set."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vega_policy.data.episodes import open_episodes
from vega_policy.spec import ContractError
from vega_policy.testing.demos import write_suite

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert.py"
SUITE = "libero_object"


def command(*arguments):
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def test_a_conversion_prints_what_it_wrote_and_is_not_repeated(tmp_path):
    source = write_suite(tmp_path / "a", px=64, n_demos=1) / SUITE
    arguments = (source, tmp_path / "b", "format=lerobot")
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "episodes": 2,
        "frames": 28,
        "skipped": [],
        "out": str(tmp_path / "b"),
    }
    assert "Svt" not in done.stderr
    again = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_a_killed_conversion_leaves_nothing_that_looks_whole(tmp_path):
    source = write_suite(tmp_path / "a", px=128, n_steps=60, n_demos=4) / SUITE
    out = tmp_path / "out" / "set"
    process = subprocess.Popen(
        command(source, out, "format=rlds"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(tmp_path.glob("out/.set.*/part-*")):
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    with pytest.raises(ContractError, match="is no data set"):
        open_episodes(out.parent)
    result = subprocess.run(
        command(source, out, "format=hdf5"), capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout.splitlines()[-1])["episodes"] == 8
    assert [path.name for path in out.parent.iterdir()] == ["set"]


def test_regenerating_writes_libero_files_only(tmp_path):
    asked = command(tmp_path, tmp_path / "b", "regenerate=true", "format=rlds")
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "set format=hdf5" in done.stderr
