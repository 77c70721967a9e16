from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from metaformer import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
image = torch.zeros(32, 32, 128, 128)
for _ in range(20):
    (image + 1).square_().sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    (image + 1).square_().sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_that_was_freed_is_used_again_without_asking_the_system():
    # 67 MB a pass: some 16,000 pages of 4 KB.
    assert page_faults("keep") < 100 < 100_000 < page_faults("as it is")
