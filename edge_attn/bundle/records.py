"""Known keys of the manifest's free tables. Other keys may have any value: newer versions add some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_attn.config.validation import convert

TABLE = dict[str, Any]
PROVENANCE: Mapping[str, Any] = {
    "graphs": dict[str, TABLE],
    "folded": bool,
    "parameters": int,
    "cell": str,
    "attention": str,
}
GRAPH_STATISTICS: Mapping[str, Any] = {"nodes": int, "ops": dict[str, int]}
"""Types in each table of `provenance.graphs`."""
VERIFICATION: Mapping[str, Any] = {
    "levels": dict[str, str],
    "provider": str,
    "runtime": str,
    "sentences": int,
    "engine": str,
    "plugins": TABLE,
    "overrides": dict[str, float],
}
SETTINGS: Mapping[str, Any] = {
    "build": TABLE,
    "min_version": str,
    "modules": dict[str, dict[str, str]],
    "plugins": TABLE,
}
PLUGINS: Mapping[str, Any] = {"ops": list[str], "graphs": dict[str, str], "measured": TABLE}
"""Types in the table `plugins` of a target's settings."""
MEASURED: Mapping[str, Any] = {"graphs": dict[str, TABLE]}
"""Types in the table `plugins.measured` of a target's settings."""


def check_provenance(provenance: Mapping[str, Any]) -> None:
    """Check the known keys of a manifest's `provenance`.

    Raises:
        ConfigError: a value has another type.
    """
    _check(provenance, PROVENANCE, "provenance")
    for name, statistics in provenance.get("graphs", {}).items():
        _check(statistics, GRAPH_STATISTICS, f"provenance: graphs: {name}")


def check_verification(record: Mapping[str, Any], where: str = "verification") -> None:
    """Check the known keys of a record of a verification.

    Raises:
        ConfigError: a value has another type.
    """
    _check(record, VERIFICATION, where)
    if "plugins" in record:
        _check(record["plugins"], VERIFICATION, f"{where}: plugins")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the known keys of a target's settings.

    Raises:
        ConfigError: a value has another type.
    """
    present = {key: value for key, value in settings.items() if value is not None}
    plugins, where = present.get("plugins"), "settings: plugins"
    if isinstance(plugins, list | tuple):  # versions before 0.1.0 listed the names of ops
        convert(list[str], present.pop("plugins"), where)
    _check(present, SETTINGS, "settings")
    _check(present.get("plugins", {}), PLUGINS, where)
    measured, where = present.get("plugins", {}).get("measured", {}), f"{where}: measured"
    _check(measured, MEASURED, where)
    for graph, choice in measured.get("graphs", {}).items():
        _check(choice, {"plugin": bool}, f"{where}: graphs: {graph}")


def _check(values: Mapping[str, Any], types: Mapping[str, Any], where: str) -> None:
    for key in types.keys() & values.keys():
        convert(types[key], values[key], f"{where}: {key}")
