"""Access to TensorRT: the module, the capabilities of its version, and its log.

`tensorrt` (part of JetPack, or a wheel) or TensorRT-RTX is imported only here, and only when a runtime needs it. Except
under a Capability, the code uses only what 10.3, 10.13, 10.16 and 11.4 have in common, and every network is strongly
typed: the graph defines the precision.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any, TypeAlias

from edge_attn.errors import NotTestedError
from edge_attn.versions import parse_version

Builder: TypeAlias = Any
IAttentionInputLayer: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
ICudaEngine: TypeAlias = Any
IExecutionContext: TypeAlias = Any
IHostMemory: TypeAlias = Any
ILayer: TypeAlias = Any
ILoop: TypeAlias = Any
ILoopOutputLayer: TypeAlias = Any
INetworkDefinition: TypeAlias = Any
IOptimizationProfile: TypeAlias = Any
IPluginRegistry: TypeAlias = Any
IRuntimeCache: TypeAlias = Any
IRuntimeConfig: TypeAlias = Any
ITensor: TypeAlias = Any
ITimingCache: TypeAlias = Any
ITripLimitLayer: TypeAlias = Any
OnnxParser: TypeAlias = Any
ParserError: TypeAlias = Any
PluginModule: TypeAlias = Any
Runtime: TypeAlias = Any
TensorDesc: TypeAlias = Any
TensorrtModule: TypeAlias = Any
"""TensorRT's classes by their own names, for annotations: a test checks the attributes that are used of each.
TensorrtModule is `tensorrt` itself, PluginModule is `tensorrt.plugin`."""

OLDEST = (10, 3)
"""Oldest supported version of TensorRT, the one of JetPack 6."""
MODULE_NAMES = ("tensorrt",)
RTX_MODULE_NAMES = ("tensorrt_rtx_bindings", "tensorrt_rtx")
INSTALL = (
    "on a Jetson it is in the system's Python (venv --system-site-packages); elsewhere: pip install 'edge-attn[trt]'"
)
INSTALL_RTX = "run: pip install --only-binary=:all: 'edge-attn[trt-rtx]'"
RTX_API_LEVELS = (((1, 7), (11, 0)), ((1, 0), (10, 16)))
"""Pairs of a TensorRT-RTX version and the TensorRT version whose Python API it has from then on, newest first."""


@dataclass(frozen=True)
class Capability:
    """Features of a version of TensorRT or TensorRT-RTX."""

    version: tuple[int, ...]
    rtx: bool = False

    @property
    def level(self) -> tuple[int, ...]:
        """Version of TensorRT with the same API."""
        if not self.rtx:
            return self.version
        return next((level for oldest, level in RTX_API_LEVELS if self.version >= oldest), OLDEST)

    @property
    def attention_layer(self) -> bool:
        """True if an Attention node becomes one layer, which may be marked as decomposable."""
        return self.level >= (10, 14)

    @property
    def inplace_cache(self) -> bool:
        """True if a network input and an output may have one address, so that a cache is updated in place."""
        return self.level >= (10, 15)

    @property
    def plugins(self) -> bool:
        return not self.rtx

    @property
    def plugin_override(self) -> bool:
        return self.plugins and self.level >= (10, 15)

    @property
    def aot_plugins(self) -> bool:
        """True if `tensorrt.plugin` can store a PTX kernel in the engine."""
        return self.plugins and self.level >= (10, 13)

    @property
    def timing_cache(self) -> bool:
        """True if measured tactics can be stored. TensorRT-RTX needs a GPU for this, and builds without one."""
        return not self.rtx

    @property
    def function_precedence(self) -> str:
        """Implementation of a node that has a function body and a registered plugin.

        `function`, `plugin`, or `named plugin`: the plugin, if the node contains its namespace.
        """
        if self.rtx or self.level < (10, 7):
            return "function"
        return "plugin" if self.level < (10, 15) else "named plugin"


@dataclass(frozen=True)
class TensorRT:
    """The imported TensorRT."""

    trt: TensorrtModule
    """The module."""
    capability: Capability
    name: str
    """Name and version, as in `tensorrt 10.3.0`. An engine runs with this version only."""

    @functools.cached_property
    def log(self) -> Any:
        """The logger of every builder and runtime. There is one, because TensorRT uses the first for all of them."""
        return _error_log(self.trt)


def load_tensorrt(rtx: bool = False) -> TensorRT:
    """Import TensorRT, or TensorRT-RTX.

    Raises:
        NotTestedError: it is not installed, does not load, or is older than 10.3. The text contains the next command.
    """
    product, names, install = (
        ("TensorRT-RTX", RTX_MODULE_NAMES, INSTALL_RTX) if rtx else ("TensorRT", MODULE_NAMES, INSTALL)
    )
    failures = []
    for name in names:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            failures.append(f"{name}: {error}")
            continue
        return _check_version(module, rtx, install)
    raise NotTestedError(f"{product} does not load here ({'; '.join(failures)}); {install}")


@functools.lru_cache(maxsize=4)
def _check_version(module: Any, rtx: bool, install: str) -> TensorRT:
    product = "tensorrt-rtx" if rtx else "tensorrt"
    text = str(getattr(module, "__version__", ""))
    version = parse_version(text)
    if not version:
        raise NotTestedError(f"the module {module.__name__} has no version, so it is not {product}; {install}")
    if not rtx and version < OLDEST:
        raise NotTestedError(
            f"{product} {text} is too old, expected {'.'.join(map(str, OLDEST))} or newer: JetPack 6 has 10.3"
        )
    return TensorRT(module, Capability(version, rtx), f"{product} {text}")


def _error_log(trt: TensorrtModule) -> Any:
    class ErrorLog(trt.ILogger):  # type: ignore[misc]  # the class is only known at run time
        """Collects errors for the text of an exception, and prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

        def drain_errors(self) -> list[str]:
            """Return the errors since the last call."""
            errors, self.errors = self.errors, []
            return errors

    return ErrorLog()
