"""The kernel of additive attention against the float64 oracle: compiled for the CPU, and on a GPU where there is one.

The CPU proves the arithmetic, every index, the order of reads and writes between barriers (each race is counted), and
the arguments that the driver receives. It does not prove the GPU's compiler, its warps and its tanh, which the test
marked gpu does.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from cuda_kernels import Gpu

from edge_attn.errors import NotTestedError
from edge_attn.ops.additive import OP
from edge_attn.runtimes.trt.plugins.additive_attention import BLOCKS, KERNELS, SOURCE, ptx

TYPES = {"fp32": np.float32, "fp16": np.float16}
BOUNDS = {"fp32": (2e-6, 2e-5), "fp16": (1e-7, 5.5e-4)}
"""(absolute, relative): fp16 is rounding to the nearest, half of 2^-10, and half of the smallest number, 2^-24."""


def ragged(mask: np.ndarray) -> None:
    for row, sentence in enumerate(mask):
        sentence[max(1, mask.shape[1] - 1 - 3 * row) :] = False
        sentence[1 : 1 + row] = False


def one_key(mask: np.ndarray) -> None:
    mask[:] = False
    mask[:, -1] = True


def one_sentence_without_keys(mask: np.ndarray) -> None:
    mask[0] = False


MASKS = {
    "none": lambda mask: None,
    "ragged": ragged,
    "one key": one_key,
    "no key": lambda mask: mask.fill(False),
    "no key in one": one_sentence_without_keys,
}


@dataclass(frozen=True)
class Case:
    """Inputs of one precision; padding contains NaN, which must not matter."""

    inputs: tuple[np.ndarray, ...]
    expected: tuple[np.ndarray, ...]
    precision: str

    @classmethod
    def make(cls, precision, mask, batch, tgt, src, attn, value, peak=1.0):
        random = np.random.default_rng([batch, tgt, src, attn, value])
        shapes = ((batch, tgt, attn), (batch, src, attn), (batch, src, value), (attn,))
        query, keys, values, v = (random.standard_normal(shape).astype(TYPES[precision]) for shape in shapes)
        v *= np.asarray(peak, v.dtype)
        live = np.ones((batch, src), bool)
        MASKS[mask](live)
        expected = OP.oracle(query, keys, values, live, v)
        keys[~live], values[~live] = np.nan, np.nan
        return cls((query, keys, values, live, v), expected, precision)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        query, keys, values = self.inputs[:3]
        return query.shape[1], keys.shape[1], query.shape[2], values.shape[2]

    def check(self, actual: tuple[np.ndarray, ...]) -> None:
        absolute, relative = BOUNDS[self.precision]
        for name, array, expected in zip(OP.outputs, actual, self.expected, strict=True):
            difference = np.abs(array.astype(np.float64) - expected)
            scale = np.abs(expected) if name == "weights" else np.max(np.abs(expected), initial=0.0)
            outside = ~(difference <= absolute + relative * scale)
            assert not outside.any(), f"{name}: {outside.sum()} outside, greatest difference {np.max(difference)}"
        empty = ~self.inputs[3].any(-1)
        assert not np.any([array[empty].any() for array in actual]), "a row without a key is not 0"


def launch(gpu: Gpu, code: bytes, case: Case, threads: int) -> tuple[np.ndarray, ...]:
    """Return context and weights of the kernel of the case's precision."""
    inputs = [gpu.upload(array) for array in case.inputs]
    outputs = [gpu.empty(array.shape, TYPES[case.precision]) for array in case.expected]
    blocks = case.inputs[0].shape[0] * case.inputs[0].shape[1]
    gpu.launch(gpu.kernel(code, KERNELS[case.precision]), blocks, threads, (*inputs, *case.sizes, *outputs))
    arrays = tuple(gpu.download(output) for output in outputs)
    for address in (*inputs, *outputs):
        gpu.free(address)
    return arrays


FAKE_PTX = b".version 0"


def on_cpu(cpu: ctypes.CDLL, case: Case, threads: int, backwards: bool = False) -> tuple[np.ndarray, ...]:
    """Run the kernel on the CPU, where no two threads may race."""
    cpu.fake_backwards(backwards)
    with Gpu(cpu.path) as gpu:
        outputs = launch(gpu, FAKE_PTX, case, threads)
    assert cpu.fake_races() == 0, "threads read and write the same address between two barriers"
    assert cpu.fake_leaks() == 0
    return outputs


SIZES = [(1, 1), (33, 65), (70, 3)]
"""Sizes (attn, value): one, just over a warp and over a block, no multiple of either."""


@pytest.mark.parametrize(("attn", "value"), SIZES)
@pytest.mark.parametrize("src", [1, 2, 7, 50, 300])
@pytest.mark.parametrize("precision", KERNELS)
@pytest.mark.parametrize("mask", MASKS)
def test_kernel_matches_the_oracle(cpu, mask, precision, src, attn, value):
    for batch, tgt in itertools.product((1, 3), (1, 5)):
        case = Case.make(precision, mask, batch, tgt, src, attn, value)
        case.check(on_cpu(cpu, case, BLOCKS[(batch + tgt) % len(BLOCKS)]))


WIDE = [("fp32", 2, 3, 50, 256, 512), ("fp16", 1, 2, 513, 40, 1100), ("fp32", 1, 1, 600, 3, 300)]
"""Cases (precision, batch, tgt, src, attn, value): the embedded model's; several tiles and rounds of columns."""


@pytest.mark.parametrize("mask", ["none", "ragged"])
@pytest.mark.parametrize("sizes", WIDE, ids=str)
def test_order_of_threads_does_not_matter(cpu, mask, sizes):
    case = Case.make(sizes[0], mask, *sizes[1:])
    for threads in BLOCKS:
        outputs = [on_cpu(cpu, case, threads, backwards) for backwards in (False, True)]
        case.check(outputs[0])
        for forwards, reversed_order in zip(*outputs, strict=True):
            assert np.array_equal(forwards, reversed_order)


@pytest.mark.parametrize("precision", KERNELS)
@pytest.mark.parametrize("src", [7, 300])
def test_large_energies_do_not_overflow(cpu, precision, src):
    case = Case.make(precision, "ragged", 2, 2, src, 33, 5, peak=40.0)
    assert np.max(np.abs(np.tanh(case.inputs[0].astype(float)) @ case.inputs[4].astype(float))) > 100
    outputs = on_cpu(cpu, case, 64)
    assert all(np.isfinite(array).all() for array in outputs)
    np.testing.assert_allclose(outputs[1].astype(float), case.expected[1], atol=2e-3, rtol=0)
    """Energies of a hundred have an fp32 error of about 1e-5, which the exponential passes on."""


@pytest.mark.parametrize("which", range(3), ids=["query", "keys", "values"])
def test_nan_outside_padding_is_not_hidden(cpu, which):
    case = Case.make("fp32", "none", 1, 1, 5, 8, 4)
    case.inputs[which][0, 0, 0] = np.nan
    assert np.isnan(on_cpu(cpu, case, 64)[0]).any()


def test_fp16_on_the_cpu_matches_numpy(cpu):
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = np.array([cpu.half_to_float(int(x)) for x in bits], np.float32)
    np.testing.assert_array_equal(wide, bits.view(np.float16).astype(np.float32))
    step = wide[1:0x7C01].astype(np.float64)
    between = ((wide[0:0x7C00].astype(np.float64) + np.where(np.isinf(step), 65536.0, step)) / 2).astype(np.float32)
    values = np.concatenate(
        [between, np.nextafter(between, 0), np.nextafter(between, np.inf), -between, [np.nan, 1e30]]
    )
    with np.errstate(over="ignore"):
        expected = values.astype(np.float32).astype(np.float16)
    actual = np.array([cpu.float_to_half(float(x)) for x in values], np.uint16).view(np.float16)
    np.testing.assert_array_equal(actual, expected)


# ---- wrong kernels fail the comparison


ALARM = Case.make("fp32", "ragged", 3, 2, 520, 33, 300, peak=3.0)
WRONG = {
    "a masked key has a weight": ("const bool live = row.mask[j] != 0;", "const bool live = true;"),
    "a masked key counts in the sum": ("if (row.mask[j]) powers", "powers"),
    "a masked value is read": ("if (!row.mask[j]) continue;", ""),
    "no tanh": ("v * TANH(", "v * ("),
    "no sum": (" / total[t]", ""),
    "no greatest": ("EXP(energy[j - first] - top[t])", "EXP(energy[j - first])"),
    "tiles are not brought to one greatest": ("total[t] * shrink", "total[t] + 0 * shrink"),
    "only one tile": ("if (!one_tile) energies(row, first, end, energy);", ""),
    "another sentence": ("at / tgt", "at / (tgt + 1)"),
    "a key too few": ("key + i < end && row", "key + i < end - 1 && row"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_kernel_is_detected(compile_for_cpu, what):
    source = SOURCE.read_text(encoding="utf-8")
    right, wrong = WRONG[what]
    assert source.count(right) == 1
    with pytest.raises(AssertionError, match="outside, greatest"):
        ALARM.check(on_cpu(compile_for_cpu(source.replace(right, wrong)), ALARM, 64))


def test_division_by_zero_in_a_row_without_keys_is_detected(compile_for_cpu):
    source = SOURCE.read_text(encoding="utf-8")
    wrong = source.replace("live ? EXP", "live || true ? EXP")
    case = Case.make("fp32", "no key", 1, 1, 3, 2, 2)
    with pytest.raises(AssertionError, match="outside, greatest"):
        case.check(on_cpu(compile_for_cpu(wrong), case, 64))


BARRIERS = SOURCE.read_text(encoding="utf-8").count(" SYNC();\n")


@pytest.mark.parametrize("which", range(BARRIERS))
def test_missing_barrier_is_detected(compile_for_cpu, which):
    parts = SOURCE.read_text(encoding="utf-8").split(" SYNC();\n")
    source = " SYNC();\n".join(parts[: which + 1]) + "\n" + " SYNC();\n".join(parts[which + 1 :])
    with pytest.raises(AssertionError, match="between two barriers"):
        on_cpu(compile_for_cpu(source), ALARM, 64)


def test_write_past_an_output_is_detected(compile_for_cpu):
    source = SOURCE.read_text(encoding="utf-8").replace("if (column < value) store", "store")
    with pytest.raises(NotTestedError, match="cuMemFree_v2"):
        on_cpu(compile_for_cpu(source), Case.make("fp32", "none", 1, 1, 3, 2, 2), 64)


# ---- the driver


def test_missing_driver_is_a_sentence():
    with pytest.raises(NotTestedError, match="no NVIDIA driver here"):
        Gpu("libcuda-that-is-not-there.so")


def test_failing_call_is_a_sentence(cpu):
    with Gpu(cpu.path) as gpu:
        assert (gpu.name, gpu.architecture) == ("a fake GPU", "sm_90")
        with pytest.raises(NotTestedError, match=r"fails at cuModuleLoadData: device kernel image is invalid \(200\)"):
            gpu.kernel(b"no PTX", KERNELS["fp32"])
        with pytest.raises(NotTestedError, match="cuModuleGetFunction"):
            gpu.kernel(FAKE_PTX, "another")
        with pytest.raises(NotTestedError, match="cuMemAlloc_v2: out of memory"):
            gpu.empty((1 << 40,), np.float32)
        with pytest.raises(NotTestedError, match="cuLaunchKernel"):
            gpu.launch(gpu.kernel(FAKE_PTX, KERNELS["fp32"]), 0, 64, ())
    assert cpu.fake_leaks() == 0


def test_time_is_measured(cpu):
    case = Case.make("fp32", "none", 1, 1, 3, 2, 2)
    with Gpu(cpu.path) as gpu:
        addresses = [*map(gpu.upload, case.inputs)]
        outputs = [gpu.empty(array.shape, np.float32) for array in case.expected]
        arguments = (*addresses, *case.sizes, *outputs)
        assert gpu.milliseconds(gpu.kernel(FAKE_PTX, KERNELS["fp32"]), 1, 64, arguments, repeat=4) == 0.25
    assert cpu.fake_leaks() == 0


# ---- on a GPU


@pytest.fixture(scope="module")
def gpu() -> Iterator[Gpu]:
    try:
        opened = Gpu()
    except NotTestedError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    with opened:
        yield opened


@pytest.mark.gpu
@pytest.mark.parametrize("threads", BLOCKS)
@pytest.mark.parametrize("precision", KERNELS)
@pytest.mark.parametrize("mask", MASKS)
def test_gpu_matches_the_oracle(gpu, mask, precision, threads):
    code = ptx(gpu.architecture)
    for batch, tgt, src, (attn, value) in itertools.product((1, 3), (1, 5), (1, 2, 7, 50, 300), SIZES):
        case = Case.make(precision, mask, batch, tgt, src, attn, value)
        case.check(launch(gpu, code, case, threads))
    for kind, *sizes in WIDE:
        case = Case.make(kind, mask, *sizes)
        case.check(launch(gpu, code, case, threads))
