from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from metaformer import keep_freed_memory
from metaformer.backbone import load_backbone
if sys.argv[1] == "keep":
    assert keep_freed_memory()
backbone, image = load_backbone(), torch.zeros(1, 3, 256, 256)
with torch.inference_mode():
    for _ in range(10):
        backbone(image)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        backbone(image)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_that_was_freed_is_used_again_without_asking_the_system():
    # Some 3,000 pages of 4 KB a pass otherwise.
    assert 10 * page_faults("keep") < page_faults("as it is")
