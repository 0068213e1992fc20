"""The public names of the package are exactly `__all__`."""

from __future__ import annotations

import edge_attn


def test_all_is_sorted_and_has_every_public_name():
    public = [name for name, value in vars(edge_attn).items() if getattr(value, "__module__", "") == "edge_attn"]
    assert edge_attn.__all__ == sorted(["__version__", *(name for name in public if not name.startswith("_"))])
