"""The one door to TensorRT: finds the module, says what its version can do, and listens to what it logs.

`tensorrt` (JetPack's, or a wheel) or TensorRT-RTX is imported here and nowhere else, and only when it is asked for.
Outside what a Capability guards, the code touches only what 10.3, 10.13, 10.16 and 11.4 share, and every network is
strongly typed: precision is in the graph.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any, TypeAlias

from edge_attn.errors import NotTestedError
from edge_attn.runtimes.versions import parse_version

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
"""TensorRT's classes by its own names, for annotations: a test resolves them and checks what is done with them.
TensorrtModule is `tensorrt` itself, PluginModule `tensorrt.plugin`."""

OLDEST = (10, 3)
"""Of JetPack 6."""
MODULES = {False: ("tensorrt",), True: ("tensorrt_rtx_bindings", "tensorrt_rtx")}
INSTALL = {
    False: "on a Jetson it comes with JetPack and only the system's Python sees it: make the environment with "
    "python3 -m venv --system-site-packages; elsewhere: pip install 'edge-attn[trt]'",
    True: "run: pip install --only-binary=:all: 'edge-attn[trt-rtx]'",
}
RTX_LEVELS = (((1, 7), (11, 0)), ((1, 0), (10, 16)))
"""From which TensorRT-RTX on the Python interface is that of which TensorRT."""


@dataclass(frozen=True)
class Capability:
    """What a version of TensorRT (or of TensorRT-RTX) can do."""

    version: tuple[int, ...]
    rtx: bool = False

    @property
    def level(self) -> tuple[int, ...]:
        """The version of TensorRT whose interface this is."""
        if not self.rtx:
            return self.version
        return next((level for since, level in RTX_LEVELS if self.version >= since), OLDEST)

    @property
    def attention_layer(self) -> bool:
        """An Attention node becomes one layer, which may be marked as decomposable."""
        return self.level >= (10, 14)

    @property
    def inplace_cache(self) -> bool:
        """A cache may be updated in place: a network input and an output at one address."""
        return self.level >= (10, 15)

    @property
    def plugins(self) -> bool:
        return not self.rtx

    @property
    def plugin_override(self) -> bool:
        return self.plugins and self.level >= (10, 15)

    @property
    def aot_plugins(self) -> bool:
        """A kernel in PTX is baked into the engine (tensorrt.plugin)."""
        return self.plugins and self.level >= (10, 13)

    @property
    def timing_cache(self) -> bool:
        """Measured tactics can be kept; TensorRT-RTX would ask a GPU for it while it builds without one."""
        return not self.rtx

    @property
    def function_precedence(self) -> str:
        """What a node becomes that has a function body and a registered plugin: always the function; the plugin; or
        the plugin only where the node names its namespace."""
        if self.rtx or self.level < (10, 7):
            return "function"
        return "plugin" if self.level < (10, 15) else "named plugin"


@dataclass(frozen=True)
class TensorRT:
    """TensorRT, opened."""

    trt: TensorrtModule
    """The module."""
    capability: Capability
    name: str
    """What an engine is bound to, as `tensorrt 10.3.0` or `tensorrt-rtx 1.7.1.116`."""

    @functools.cached_property
    def log(self) -> Any:
        """The logger of every builder and runtime: TensorRT keeps the first that it is given, so there is one."""
        return _log(self.trt)


def load_tensorrt(rtx: bool = False) -> TensorRT:
    """TensorRT, or TensorRT-RTX.

    Raises:
        NotTestedError: it is not here, does not load, or is older than 10.3; the sentence holds the next command.
    """
    product = "TensorRT-RTX" if rtx else "TensorRT"
    failures = []
    for name in MODULES[rtx]:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            failures.append(f"{name}: {error}")
            continue
        return _door(module, rtx)
    raise NotTestedError(f"{product} does not load here ({'; '.join(failures)}); {INSTALL[rtx]}")


@functools.lru_cache(maxsize=4)
def _door(module: Any, rtx: bool) -> TensorRT:
    product = "tensorrt-rtx" if rtx else "tensorrt"
    text = str(getattr(module, "__version__", ""))
    version = parse_version(text)
    if not version:
        raise NotTestedError(f"the module {module.__name__} has no version, so it is not {product}; {INSTALL[rtx]}")
    if not rtx and version < OLDEST:
        raise NotTestedError(
            f"{product} {text} is too old, expected {'.'.join(map(str, OLDEST))} or newer: JetPack 6 brings 10.3"
        )
    return TensorRT(module, Capability(version, rtx), f"{product} {text}")


def _log(trt: TensorrtModule) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]  # the class is found at run time
        """Keeps errors until they are taken, so that they become part of a sentence; nothing is printed."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

        def drain_errors(self) -> list[str]:
            """The errors since the last time."""
            taken, self.errors = self.errors, []
            return taken

    return Log()
