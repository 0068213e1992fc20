"""Optional build settings of TensorRT-RTX, on a fake builder."""

from __future__ import annotations

import json

import pytest
from fake_build import FakeBuild, build_in_steps, log_errors, run

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Target
from edge_attn.errors import InputError, NotTestedError
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.builder import engine_for
from edge_attn.runtimes.trt.cudart import Gpu
from edge_attn.runtimes.trt.engine_cache import EngineCache


@pytest.fixture
def bundle(toy_bundle) -> Bundle:
    return Bundle.open(toy_bundle)


CAPTURABLE, CURRENT = "user allocation", "current 0"


@pytest.mark.parametrize(
    ("rtx", "this_gpu", "unsupported", "rtx_options"),
    [
        (False, True, [], [[]]),
        (True, False, [], [[CAPTURABLE]]),
        (True, True, [], [[CAPTURABLE, CURRENT]]),
        (True, True, [CURRENT], [[CAPTURABLE, CURRENT], [CAPTURABLE]]),
        (True, False, [CAPTURABLE], [[CAPTURABLE], []]),
        (True, True, [CAPTURABLE], [[CAPTURABLE, CURRENT], [CAPTURABLE], []]),
    ],
)
def test_unsupported_option_is_dropped(bundle, rtx, this_gpu, unsupported, rtx_options):
    """A network with a loop may not be capturable, and TensorRT-RTX cannot build for each GPU separately."""

    def build(fake: FakeBuild) -> bytes | None:
        return None if set(unsupported) & set(fake.rtx_options[-1]) else b"engine"

    fake = FakeBuild(bundle.manifest.graphs["encoder"], build)
    tensorrt = fake.tensorrt((1, 7, 1) if rtx else (10, 3, 0), rtx)
    assert run(bundle, fake, tensorrt=tensorrt, this_gpu=this_gpu) == b"engine"
    assert fake.rtx_options == rtx_options


def test_failure_without_options_is_reported(bundle):
    def build(fake: FakeBuild) -> None:
        log_errors(fake, "no such GPU" if fake.rtx_options[-1] else "no such layer")

    fake = FakeBuild(bundle.manifest.graphs["encoder"], build)
    with pytest.raises(InputError, match=r"tensorrt 1\.7\.1: no such layer"):
        run(bundle, fake, tensorrt=fake.tensorrt((1, 7, 1), True))


def test_out_of_memory_keeps_the_options(bundle):
    """Otherwise the cache would contain the slower engine, although there may be enough memory later."""
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: log_errors(fake, "out of memory"))
    with pytest.raises(NotTestedError, match="memory ran out"):
        run(bundle, fake, tensorrt=fake.tensorrt((1, 7, 1), True))
    assert len(fake.rtx_options) == 1


def test_stopped_build_is_not_repeated(bundle):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], build_in_steps)
    with pytest.raises(NotTestedError, match="took longer"):
        run(bundle, fake, BuildConfig(max_build_minutes=1e-9), tensorrt=fake.tensorrt((1, 7, 1), True))
    assert len(fake.rtx_options) == 1


def test_rtx_engine_and_its_key_are_for_this_gpu(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    target = Target("trt", "fp32", bundle.manifest.graphs)
    gpu = Gpu("Orin", (8, 7), 8, True, 8 << 30, 4 << 30)
    for tensorrt in (fake.tensorrt((1, 7, 1), True), fake.tensorrt()):
        engine_for(tensorrt, bundle, target, "encoder", EngineCache(tmp_path), gpu, BuildConfig(), print)
    assert fake.rtx_options == [[CAPTURABLE, CURRENT], []]
    records = [json.loads(path.read_text(encoding="utf-8"))["parts"] for path in tmp_path.rglob("*.json")]
    assert {parts["runtime"]: parts["settings"] for parts in records} == {
        "tensorrt 1.7.1": "workspace 1024 MB, level 3, for this GPU and capturable where it can be",
        "tensorrt 10.3.0": "workspace 1024 MB, level 3",
    }
