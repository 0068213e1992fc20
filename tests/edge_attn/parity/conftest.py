"""Golden data of the toy bundle."""

from __future__ import annotations

import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.parity import golden, reader


@pytest.fixture(scope="session")
def toy_golden(toy_bundle) -> golden.Golden:
    return reader.load(Bundle.open(toy_bundle))
