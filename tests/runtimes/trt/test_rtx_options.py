"""What TensorRT-RTX is asked for, and what a build that fails with it is done without; on a fake builder."""

from __future__ import annotations

import json

import pytest
from fake_build import FakeBuild, run, say, stepping

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Target
from edge_attn.errors import InputError, NotTestedError
from edge_attn.runtimes.trt.builder import BuildConfig, engine_for
from edge_attn.runtimes.trt.cudart import Gpu
from edge_attn.runtimes.trt.engine_cache import EngineCache


@pytest.fixture
def bundle(toy_bundle) -> Bundle:
    return Bundle.open(toy_bundle)


CAPTURABLE, CURRENT = "user allocation", "current 0"


@pytest.mark.parametrize(
    ("rtx", "this_gpu", "refused", "wishes"),
    [
        (False, True, [], [[]]),
        (True, False, [], [[CAPTURABLE]]),
        (True, True, [], [[CAPTURABLE, CURRENT]]),
        (True, True, [CURRENT], [[CAPTURABLE, CURRENT], [CAPTURABLE]]),
        (True, False, [CAPTURABLE], [[CAPTURABLE], []]),
        (True, True, [CAPTURABLE], [[CAPTURABLE, CURRENT], [CAPTURABLE], []]),
    ],
)
def test_what_a_build_with_a_wish_refuses_is_done_without(bundle, rtx, this_gpu, refused, wishes):
    """A network with a loop may not be capturable, and not every GPU is one that TensorRT-RTX builds for alone."""

    def build(fake: FakeBuild) -> bytes | None:
        return None if set(refused) & set(fake.wishes[-1]) else b"engine"

    fake = FakeBuild(bundle.manifest.graphs["encoder"], build)
    tensorrt = fake.tensorrt((1, 7, 1) if rtx else (10, 3, 0), rtx)
    assert run(bundle, fake, tensorrt=tensorrt, this_gpu=this_gpu) == b"engine"
    assert fake.wishes == wishes


def test_a_build_that_fails_with_and_without_wishes_says_why_without(bundle):
    def build(fake: FakeBuild) -> None:
        say(fake, "no such GPU" if fake.wishes[-1] else "no such layer")

    fake = FakeBuild(bundle.manifest.graphs["encoder"], build)
    with pytest.raises(InputError, match=r"tensorrt 1\.7\.1: no such layer"):
        run(bundle, fake, tensorrt=fake.tensorrt((1, 7, 1), True))


def test_a_build_that_runs_out_of_memory_does_not_give_up_its_wishes(bundle):
    """Else the lesser engine would be kept, where a moment later there may be memory for the better one."""
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: say(fake, "out of memory"))
    with pytest.raises(NotTestedError, match="memory ran out"):
        run(bundle, fake, tensorrt=fake.tensorrt((1, 7, 1), True))
    assert len(fake.wishes) == 1


def test_a_build_that_was_ended_is_not_begun_again(bundle):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], stepping)
    with pytest.raises(NotTestedError, match="took longer"):
        run(bundle, fake, BuildConfig(max_build_minutes=1e-9), tensorrt=fake.tensorrt((1, 7, 1), True))
    assert len(fake.wishes) == 1


def test_an_engine_of_tensorrt_rtx_is_built_for_this_gpu_and_its_record_says_so(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    target = Target("trt", "fp32", bundle.manifest.graphs)
    gpu = Gpu("Orin", (8, 7), 8, True, 8 << 30, 4 << 30)
    for tensorrt in (fake.tensorrt((1, 7, 1), True), fake.tensorrt()):
        engine_for(tensorrt, bundle, target, "encoder", EngineCache(tmp_path), gpu, BuildConfig(), print)
    assert fake.wishes == [[CAPTURABLE, CURRENT], []]
    records = [json.loads(path.read_text(encoding="utf-8"))["parts"] for path in tmp_path.rglob("*.json")]
    assert {parts["runtime"]: parts["settings"] for parts in records} == {
        "tensorrt 1.7.1": "workspace 1024 MB, level 3, for this GPU and capturable where it can be",
        "tensorrt 10.3.0": "workspace 1024 MB, level 3",
    }
