"""Settings of all tests."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from metaformer import keep_freed_memory

# A busy machine may take seconds over what takes milliseconds; slowness is tested where it counts.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

keep_freed_memory()  # as the command does


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Scores differ in their last bit with the number of threads, which is of the whole process:
    a test that sets it must not change it for those after it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
