"""Compare greedy decoding in fp32 on one thread: ONNX Runtime against the same model in eager torch.

    python tests/tools/bench_decode.py CHECKPOINT BUNDLE TSV [--sentences 64] [--rounds 5]

Both run in turns in one process. Prints the tokens per second of each, their ratio (the median over rounds), the time
of a step relative to its lower bound, and resident memory. The lower bound of a step is the larger of two times, both
measured here: one product of a matrix of as many weights with a vector, and as many multiplications at the rate of a
large matrix product. The memory is that of a new process that only decodes.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # read when numpy is imported
import numpy as np

from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.beam_search import search
from edge_attn.decoding.options import SearchConfig
from edge_attn.runtimes.tasks.translation import Translator
from edge_attn.text.corpus import read_pairs

MAX_LENGTH = 100
Sources = list[list[int]]
Decode = Callable[[Sources], int]
"""Function that decodes a batch and returns the number of generated tokens."""


def torch_greedy(checkpoint: Path) -> Decode:
    """Return greedy decoding in plain eager torch: encode once, step, argmax, without our search or numpy."""
    import torch
    from torch_greedy import TorchGreedy

    torch.set_num_threads(1)
    model = TorchGreedy(checkpoint, "torch eager", "fp32", "cpu")
    return torch.inference_mode()(model.decode)


def ort_greedy(bundle: Path) -> Decode:
    runtime = Translator.open(bundle, options=RuntimeOptions(threads=1)).runtime
    config = SearchConfig(beam=1, max_length=MAX_LENGTH)

    def decode(sources: Sources) -> int:
        n_best = search(runtime, sources, config)
        return sum(len(hypotheses[0].tokens) + hypotheses[0].finished for hypotheses in n_best)

    return decode


def rate(decode: Decode, batches: list[Sources]) -> float:
    """Return tokens per second."""
    started = time.perf_counter()
    tokens = sum(decode(batch) for batch in batches)
    return tokens / (time.perf_counter() - started)


def step_times(bundle: Path, batch: int) -> tuple[float, float]:
    """Return the seconds of one step of ONNX Runtime (the median of many), and its lower bound."""
    translator = Translator.open(bundle, options=RuntimeOptions(threads=1))
    runtime = translator.runtime
    source = [translator.text.encode_source("a b c d e f g h i j")] * batch
    array = np.array(source, np.int64)
    encoded = runtime.run("encoder", {"source": array, "source_length": np.full(batch, array.shape[1], np.int64)})
    step = runtime.graphs["step"]
    inputs = {name: encoded[name] for prefix in ("memory.", "state.") for name in step.names(prefix)}
    inputs |= {"tokens": np.full((batch, 1), 5, np.int64), "parents": np.zeros((batch, 1), np.int64)}
    times = []
    for _ in range(300):
        started = time.perf_counter()
        runtime.run("step", inputs)
        times.append(time.perf_counter() - started)
    weights = step_weights(bundle)
    random = np.random.default_rng(0)
    large = random.standard_normal((768, 768), dtype=np.float32)
    products = min(_seconds(lambda: large @ large) for _ in range(50))
    all_weights = random.standard_normal((weights // 768, 768), dtype=np.float32)
    reading = min(_seconds(lambda: all_weights @ large[0]) for _ in range(50))
    return statistics.median(times), max(reading, weights * batch * products / 768**3)


def step_weights(bundle: Path) -> int:
    """Return the number of weights that one step reads; ONNX Runtime computes products of weights once, at loading."""
    import onnx

    from edge_attn.bundle.bundle import Bundle

    graph = onnx.load_from_string(Bundle.open(bundle).read("graphs/step.onnx")).graph
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        weights = [sizes.get(name, 0) for name in node.input]
        if node.op_type in ("Cast", "Transpose") and weights[0]:
            sizes[node.output[0]] = weights[0]
        elif node.op_type in ("MatMul", "Gemm") and not weights[0]:
            total += weights[1]
    return total


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def resident(kind: str, model: Path, corpus: Path) -> str:
    """Return the peak resident memory in MB of a new process that only decodes."""
    command = [sys.executable, __file__, str(model), str(model), str(corpus), "--only", kind]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["torch", "ort"])
    options = parser.parse_args()
    decoders: dict[str, Callable[[], Decode]] = {
        "torch": lambda: torch_greedy(options.checkpoint),
        "ort": lambda: ort_greedy(options.bundle),
    }
    lines = list(dict.fromkeys(source for source, _ in read_pairs(options.corpus)))
    stride = max(1, len(lines) // options.sentences)
    if options.only:
        decode = decoders[options.only]()
        encode = source_encoder(options.checkpoint)
        for line in lines[::stride][: options.sentences]:
            decode([encode(line)])
        print(int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) // 1024)
        return
    encode = source_encoder(options.bundle)
    sources = sorted((encode(line) for line in lines[::stride][: options.sentences]), key=len)
    engines = {name: create() for name, create in decoders.items()}
    for batch in (1, 32):
        batches = [sources[i : i + batch] for i in range(0, len(sources), batch)]
        rates: dict[str, list[float]] = {name: [] for name in engines}
        for decode in engines.values():
            rate(decode, batches)
        for _ in range(options.rounds):
            for name, decode in engines.items():
                rates[name].append(rate(decode, batches))
        ratio = statistics.median(o / t for o, t in zip(rates["ort"], rates["torch"], strict=True))
        step, bound = step_times(options.bundle, batch)
        print(
            f"batch {batch}: torch {statistics.median(rates['torch']):.0f} tokens/s, "
            f"ort-cpu {statistics.median(rates['ort']):.0f} tokens/s, ratio {ratio:.2f}; "
            f"step {1e6 * step:.0f} us, {step / bound:.2f} times its lower bound of {1e6 * bound:.0f} us"
        )
    for name, model in (("torch", options.checkpoint), ("ort", options.bundle)):
        print(f"resident memory, {name}: {resident(name, model, options.corpus)} MB")


def source_encoder(model: Path) -> Callable[[str], list[int]]:
    from edge_attn.bundle.bundle import Bundle
    from edge_attn.text.pipeline import Text

    if (model / "config.json").is_file():
        return Text.load(lambda name: (model / name).read_bytes()).encode_source
    return Bundle.open(model).text().encode_source


if __name__ == "__main__":
    main()
