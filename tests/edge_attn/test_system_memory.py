"""An allocation of more memory than the machine has fails, in place of the process."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from edge_attn import system_memory
from edge_attn.system_memory import SystemMemory, bounded_memory

GIGABYTE = 1 << 30


def test_allocation_past_the_free_memory_fails_only_inside(monkeypatch):
    free = SystemMemory(GIGABYTE, 1 << 28, 0, False)
    monkeypatch.setattr(system_memory, "system_memory", lambda: free)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with bounded_memory():
        assert np.zeros(1 << 20, np.uint8).nbytes == 1 << 20
        with pytest.raises(MemoryError):
            np.empty(GIGABYTE, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert np.empty(GIGABYTE, np.uint8).nbytes == GIGABYTE


def test_limit_is_restored_after_an_error():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(ValueError, match="bad"), bounded_memory():
        raise ValueError("bad")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_machine_of_unknown_memory_has_no_limit(monkeypatch):
    monkeypatch.setattr(system_memory, "system_memory", lambda: None)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with bounded_memory():
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
