"""A cache's memory is there before the first request needs it."""

import gc
import platform
import resource
from pathlib import Path

import pytest
import torch
from native_models import native_model
from test_oracle import BASE, random_model

from model.paged import kv_bytes_per_block

CACHE_BYTES = 96 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def fills_pages() -> bool:
    release = platform.release().split(".")
    return platform.system() == "Linux" and (int(release[0]), int(release[1])) >= (5, 14)


@pytest.mark.skipif(not fills_pages(), reason="this system gives memory at the first touch only")
def test_the_pages_of_a_cache_come_without_being_touched() -> None:
    model = random_model(BASE, torch.float32)
    num_blocks = CACHE_BYTES // kv_bytes_per_block(BASE, torch.float32)
    before = resident_bytes()
    native = native_model(model, num_blocks, 1)
    while resident_bytes() < before + 0.9 * CACHE_BYTES:  # or the test runs out of time
        pass
    del native
    gc.collect()
    assert resident_bytes() < before + 0.5 * CACHE_BYTES


def test_a_cache_larger_than_the_machine_can_be_given_up_while_it_fills() -> None:
    model = random_model(BASE, torch.float32)
    native = native_model(model, 2**30, 1)
    del native
