"""The package must import on a robot computer: no simulator, tracker or Hydra at import time."""

import subprocess
import sys

import pytest

import vega_policy

HEAVY = (
    "diffusers",
    "hydra",
    "libero",
    "mujoco",
    "rclpy",
    "rerun",
    "robosuite",
    "tensorflow",
    "wandb",
)
IMPORT_ALL = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({HEAVY}))  # importing one of these now raises
import vega_policy
for module in pkgutil.walk_packages(vega_policy.__path__, "vega_policy."):
    importlib.import_module(module.name)
"""
IMPORT_LIGHT = """
import sys
import vega_policy, vega_policy.spec
vega_policy.Observation
import vega_policy.control.pilot, vega_policy.control.start, vega_policy.control.thread_link
import vega_policy.deploy.client, vega_policy.deploy.loop
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


def test_every_module_imports_without_the_heavy_libraries():
    subprocess.run([sys.executable, "-c", IMPORT_ALL], check=True)


def test_front_door_spec_control_and_client_load_no_torch():
    subprocess.run([sys.executable, "-c", IMPORT_LIGHT], check=True)


@pytest.mark.parametrize("name", vega_policy.__all__)
def test_every_name_of_the_front_door_opens(name):
    assert getattr(vega_policy, name) is not None
    assert name in dir(vega_policy)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vega_policy.nothing
