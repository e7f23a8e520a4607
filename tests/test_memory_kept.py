"""Arrays of one size, made again and again, cost pages only once where the C library keeps them."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import numpy as np
from vega_policy.spec.processes import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for made in range(30):
    if made == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_kept_memory_is_used_again():
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", COUNT, how], text=True))
        for how in ("keep", "leave")
    }
    assert faults["keep"] < 100
    assert faults["leave"] > 10 * 100
