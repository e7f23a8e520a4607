"""Loading a gigabyte takes a gigabyte: measured in processes of their own, since peaks never fall."""

import json
import subprocess
import sys

import pytest

from vega_policy.testing.published import published_checkpoint, published_config

LOAD = """
import json, sys, torch
from vega_policy.policy import from_pretrained
from vega_policy.testing.tiny_policy import tiny_observation

def peak():
    return next(int(x.split()[1]) * 1024 for x in open("/proc/self/status") if x[:6] == "VmHWM:")

from_pretrained(sys.argv[2], image_transform="fast")  # libraries are loaded once, whatever follows
before = peak()
dtype = {"none": None, "float32": torch.float32}[sys.argv[3]]
policy = from_pretrained(sys.argv[1], dtype=dtype, image_transform="fast")
loaded = peak()
total = sum(float(p.float().sum()) * 0 for p in policy.parameters())  # touch every page
if len(sys.argv) > 4:
    policy.save_pretrained(sys.argv[4])
used = peak()
size = sum(p.nbytes for p in policy.parameters())
print(json.dumps({"size": size, "loaded": (loaded - before) / size, "used": (used - before) / size}))
"""


def measure(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_peak_memory_is_that_of_the_weights(tmp_path):
    language = {"width": 1024, "heads": 8, "depth": 28, "mlp_width": 4096}
    config = published_config().changed({"language": language})
    large = published_checkpoint(tmp_path / "large", config=config, max_shard_size="400MB")
    small = published_checkpoint(tmp_path / "small")
    as_stored = measure(large, small, "none", tmp_path / "ours")
    cast = measure(large, small, "float32")
    ours = measure(tmp_path / "ours", small, "none")
    print({"as stored": as_stored, "cast": cast, "ours": ours})  # noqa: T201
    assert as_stored["size"] > 0.9e9
    assert as_stored["loaded"] < 0.1
    assert max(x["used"] for x in (as_stored, cast, ours)) < 1.2
