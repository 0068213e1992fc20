"""A fake of the module `tensorrt`, as far as a build needs it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from edge_attn.bundle.bundle import Bundle
from edge_attn.runtimes.trt.api import Capability, TensorRT
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.builder import build_engine
from edge_attn.spec import GraphSpec

DEFAULT = BuildConfig()
DTYPES = {"float32": "FLOAT", "int64": "INT64", "bool": "BOOL"}


class FakeBuild:
    """The fake module. `build` returns the engine, or None after it has logged errors."""

    def __init__(self, spec: GraphSpec, build: Callable[[FakeBuild], bytes | None]) -> None:
        self.spec, self.build = spec, build
        self.log: Any = None
        self.flags = -1
        self.limits: dict[str, int] = {}
        self.profiles: list[dict[str, Any]] = []
        self.timings: list[bytes] = []
        self.cleared: list[str] = []
        self.rtx_options: list[list[str]] = []
        """TensorRT-RTX options of each build."""
        self.accepts_timing = self.accepts_profiles = self.starts = True
        self.options = SimpleNamespace(
            set_memory_pool_limit=self.limits.__setitem__,
            add_optimization_profile=self.add_profile,
            create_timing_cache=lambda data: None if data == b"unreadable" else data,
            set_timing_cache=self.set_timing,
            clear_flag=self.cleared.append,
            set_flag=lambda flag: self.rtx_options[-1].append(flag),
            set_compute_capability=lambda which, index: self.rtx_options[-1].append(f"{which} {index}"),
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"measured"),
            progress_monitor=None,
        )
        tensors = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
        tensors_by_name = {
            name: SimpleNamespace(
                name=name,
                is_shape_tensor=False,
                dtype=SimpleNamespace(name=DTYPES[tensor.dtype]),
                shape=[-1] * len(tensor.shape),
            )
            for name, tensor in tensors.items()
        }
        layer = SimpleNamespace(
            type="",
            num_outputs=0,
            num_inputs=len(spec.inputs),
            get_input=lambda i: tensors_by_name[spec.inputs[i].name],
        )
        self.network = SimpleNamespace(
            num_layers=1,
            get_layer=lambda i: layer,
            num_inputs=len(spec.inputs),
            get_input=lambda i: tensors_by_name[spec.inputs[i].name],
            num_outputs=len(spec.outputs),
            get_output=lambda i: tensors_by_name[spec.outputs[i].name],
        )
        self.module = SimpleNamespace(
            ILogger=type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0}),
            IProgressMonitor=type("IProgressMonitor", (), {}),
            Builder=self.builder,
            OnnxParser=lambda network, log: SimpleNamespace(
                supports_operator=lambda op: False, parse=lambda model: True
            ),
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
            BuilderFlag=SimpleNamespace(TF32="TF32", REQUIRE_USER_ALLOCATION="user allocation"),
            ComputeCapability=SimpleNamespace(CURRENT="current"),
            MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
            LayerType=SimpleNamespace(TRIP_LIMIT="trip", LOOP_OUTPUT="loop", ATTENTION_INPUT="attention"),
        )

    def builder(self, log: Any) -> SimpleNamespace:
        self.log = log
        if not self.starts:
            log_errors(self, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(flags: int) -> SimpleNamespace:
            self.flags = flags
            return self.network

        def create_builder_config() -> SimpleNamespace:
            self.rtx_options.append([])
            return self.options

        def create_optimization_profile() -> Any:
            profile: dict[str, Any] = {}
            return ProfileOf(profile)

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=create_builder_config,
            create_optimization_profile=create_optimization_profile,
            build_serialized_network=lambda network, options: self.build(self),
        )

    def add_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1 if self.accepts_profiles else -1

    def set_timing(self, data: bytes, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self.timings.append(data)
        return self.accepts_timing

    def tensorrt(self, version: tuple[int, ...] = (10, 3, 0), rtx: bool = False) -> TensorRT:
        return TensorRT(self.module, Capability(version, rtx), f"tensorrt {'.'.join(map(str, version))}")


class ProfileOf:
    def __init__(self, shapes: dict[str, Any]) -> None:
        self.shapes = shapes

    def set_shape(self, name: str, min_shape: Any, opt_shape: Any, max_shape: Any) -> None:
        if max(max_shape) > 10**6:
            raise RuntimeError("Shape provided for min is inconsistent with other shapes.\nInvoked with: ...")
        self.shapes[name] = (min_shape, opt_shape, max_shape)


def log_errors(fake: FakeBuild, *messages: str) -> None:
    for message in messages:
        fake.log.log(1, message)


def run(
    bundle: Bundle,
    fake: FakeBuild,
    config: BuildConfig = DEFAULT,
    report: Any = lambda share, what: None,
    **options: Any,
) -> bytes:
    profiles = config.buckets.profiles(fake.spec, bundle.manifest.max_source)
    model = bundle.read(fake.spec.file)
    return build_engine(
        options.pop("tensorrt", None) or fake.tensorrt(), model, fake.spec, profiles, config, report, **options
    )


def build_in_steps(fake: FakeBuild) -> bytes | None:
    """Build in ten steps, which the monitor may stop."""
    monitor = fake.options.progress_monitor
    monitor.phase_start("Building engine", None, 10)
    for step in range(10):
        monitor.phase_start("Layers", "Building engine", 2)
        if not (monitor.step_complete("Layers", 0) and monitor.step_complete("Layers", 1)):
            return None
        monitor.phase_finish("Layers")
        if not monitor.step_complete("Building engine", step):
            return None
    monitor.phase_finish("Building engine")
    return b"engine"
