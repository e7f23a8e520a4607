"""A machine without ROS 2: one sentence, and nothing else notices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
WITHOUT_ROS = """
import runpy, sys
sys.modules["rclpy"] = None  # importing it now raises
sys.argv = {argv}
sys.path.insert(0, {scripts})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", ["ros2_node", "ros2_simulated_robot"])
def test_a_script_says_in_one_sentence_how_to_get_it(name):
    scripts = str(ROOT / "scripts")
    argv = json.dumps([f"{scripts}/{name}.py", "suite=fake_reach"])
    code = WITHOUT_ROS.format(argv=argv, scripts=json.dumps(scripts))
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert "ROS 2 is not installed for this Python" in ended.stderr
    assert "pip install -e '.[ros]'" in ended.stderr


def test_the_modules_import_without_it():
    code = (
        "import sys; sys.modules['rclpy'] = None\n"
        "from vega_policy.deploy.ros2 import messages, node, parameters, simulated_robot\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
