"""Runtime options are checked, and have safe defaults."""

from __future__ import annotations

import pytest

from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import UsageError


@pytest.mark.parametrize("threads", [0, -1])
def test_runtime_without_threads_is_refused(threads):
    with pytest.raises(UsageError, match=f"`threads` must be at least 1, got {threads}"):
        RuntimeOptions(threads)


def test_runtime_defaults_are_fp32_without_fallback():
    assert RuntimeOptions() == RuntimeOptions(None, "fp32", False, None)
