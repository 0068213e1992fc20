"""Greedy decoding on a GPU: every way that there is to run the same model, in turns, in one run.

    python tests/benchmarks/bench_gpu.py CHECKPOINT BUNDLE TSV [--sentences 64] [--rounds 5] [--json FILE]

fp16 needs its graphs in the bundle: edge-attn optimize BUNDLE --target ort-cuda --precision fp16, and --target trt with
--profiles of a TOML file whose table `buckets` says `batch = [1, 32]`. Without torch nothing is there to compare with.

Prints, a row a contender: tokens a second (the median over rounds), how often that is the quicker of eager torch in
fp32 and fp16, the time of a step with what it brings to the host, and how often that is its floor. The floor is the
larger of two times: the weights' bytes at the bandwidth of a large copy, and their products at the rate of a large
product, both measured here. Beside it stands what a launch that does nothing takes to be waited for. A contender that
cannot run is printed with its reason. Exit code 3: there is no GPU, so nothing was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from bench_decode import MAX_LENGTH, Decode, Sources, rate, reader, step_weights
from gpu_machine import BYTES, machine, measure_speed

from edge_attn.bundle import Bundle
from edge_attn.config import RuntimeOptions, SearchConfig
from edge_attn.errors import EdgeAttnError, NotTestedError
from edge_attn.pairs import read_pairs
from edge_attn.search import pad_sources, search
from runtimes.base import open_runtime

BATCHES = (1, 32)
OURS = ("ort-cuda", "trt", "trt-rtx")
TORCH = ("torch eager", "torch.compile", "torch CUDA graph")
STEPS, WARM_UP = 200, 20


class Contender(Protocol):
    decode: Decode

    def stepper(self, sources: Sources) -> Callable[[], object]:
        """One step behind the encoder that read `sources`, waited for."""

    def close(self) -> None: ...


Key = tuple[str, str]
"""A contender's name and precision."""
Makers = dict[Key, Callable[[], Contender]]


@dataclass(frozen=True)
class Row:
    """One contender at one batch."""

    contender: str
    precision: str
    batch: int
    tokens: float
    """A second."""
    step: float
    """Seconds."""
    floor: float | None
    """Seconds; None where torch could not measure it."""


@dataclass(frozen=True)
class Goal:
    words: str
    found: float | None
    met: bool

    def __str__(self) -> str:
        if self.found is None:
            return f"goal: {self.words}: not measured"
        return f"goal: {self.words}: found {self.found:.2f}, {'met' if self.met else 'MISSED'}"


# ---- the contenders


class Ours:
    """A runtime of ours under the search of every runtime."""

    def __init__(self, bundle: Bundle, name: str, precision: str) -> None:
        self.runtime = open_runtime(bundle, name, RuntimeOptions(precision=precision))

    def decode(self, sources: Sources) -> int:
        found = search(self.runtime, sources, SearchConfig(beam=1, max_length=MAX_LENGTH))
        return sum(len(hypotheses[0].tokens) + hypotheses[0].finished for hypotheses in found)

    def stepper(self, sources: Sources) -> Callable[[], object]:
        run, numpy = self.runtime.run, self.runtime.numpy
        source, lengths = pad_sources(sources)
        encoded = run("encoder", {"source": source, "source_length": lengths})
        spec, batch = self.runtime.graphs["step"], len(sources)
        inputs = {name: encoded[name] for prefix in ("memory.", "state.") for name in spec.names(prefix)}
        inputs |= {"tokens": np.full((batch, 1), 5, np.int64), "parents": np.zeros((batch, 1), np.int64)}

        def step() -> object:
            outputs = run("step", inputs)
            return numpy(outputs["candidates"]), numpy(outputs["candidate_ids"])

        return step

    def close(self) -> None:
        self.runtime.close()


def torch_contender(checkpoint: Path, way: str, precision: str) -> Contender:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise NotTestedError("torch is not installed") from error
    if not torch.cuda.is_available():
        raise NotTestedError(f"torch {torch.__version__} sees no GPU")
    from torch_greedy import TorchGreedy

    return TorchGreedy(checkpoint, way, precision)


def ctranslate2_contender() -> Contender:
    raise NotTestedError("CTranslate2 takes Transformers only, and no recurrent model (OpenNMT/CTranslate2#796)")


def contenders(checkpoint: Path, bundle: Bundle) -> Makers:
    """By name and precision, what makes each; it raises NotTestedError with the reason where it cannot run."""
    made: Makers = {}
    for precision in BYTES:
        for way in TORCH:
            made[way, precision] = lambda way=way, precision=precision: torch_contender(checkpoint, way, precision)
        made["CTranslate2", precision] = ctranslate2_contender
        for name in OURS:
            made[name, precision] = lambda name=name, precision=precision: Ours(bundle, name, precision)
    return made


# ---- measuring


def measure(
    makers: Makers, sources: Sources, rounds: int, floors: Callable[[int, str], float | None]
) -> tuple[list[Row], dict[str, str]]:
    """At each batch every contender warms up twice, and then they take turns; and why the others could not."""
    rows: list[Row] = []
    missing: dict[str, str] = {}
    running: dict[Key, Contender] = {}
    for key, make in makers.items():
        try:
            running[key] = make()
        except Exception as error:  # one that fails must not cost what the others show
            missing[" ".join(key)] = reason(error)
    for batch in BATCHES:
        batches = split(sources, batch)
        rates: dict[Key, list[float]] = {}
        for key, contender in running.items():
            try:
                for _ in range(2):
                    rate(contender.decode, batches)
                rates[key] = []
            except Exception as error:
                missing[f"{' '.join(key)} at batch {batch}"] = reason(error)
        for _ in range(rounds):
            for key, found in rates.items():
                found.append(rate(running[key].decode, batches))
        middle = sources[len(sources) // 2]
        for key, found in rates.items():
            step = median_time(running[key].stepper([middle] * batch))
            rows.append(Row(*key, batch, statistics.median(found), step, floors(batch, key[1])))
    for contender in running.values():
        contender.close()
    return rows, missing


def reason(error: Exception) -> str:
    said = str(error) if isinstance(error, EdgeAttnError) else f"{type(error).__name__}: {error}"
    return said.partition("\n")[0]


def split(sources: Sources, batch: int) -> list[Sources]:
    return [sources[i : i + batch] for i in range(0, len(sources), batch)]


def median_time(step: Callable[[], object]) -> float:
    """Seconds, the median over STEPS."""
    times = []
    for _ in range(WARM_UP + STEPS):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times[WARM_UP:])


# ---- showing


def table(rows: Sequence[Row]) -> str:
    """Markdown, by batch and then in the order of the contenders."""
    lines = [
        "| batch | contender | precision | tokens/s | times eager torch | step, µs | floor, µs | step over floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.batch):
        eager = baseline(rows, row.batch)
        cells = [
            f"{row.tokens:.0f}",
            _number(eager and row.tokens / eager),
            _number(1e6 * row.step, 1),
            _number(row.floor and 1e6 * row.floor, 1),
            _number(row.floor and row.step / row.floor),
        ]
        lines.append(f"| {row.batch} | {row.contender} | {row.precision} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def baseline(rows: Sequence[Row], batch: int) -> float | None:
    """Tokens a second of eager torch, the quicker of its precisions."""
    return max((row.tokens for row in rows if row.contender == TORCH[0] and row.batch == batch), default=None)


def goals(rows: Sequence[Row]) -> list[Goal]:
    """What the best of our runtimes must reach in fp16."""
    ours = [row for row in rows if row.contender in OURS and row.precision == "fp16"]
    made = []
    for batch, least in ((1, 3.0), (32, 2.0)):
        eager = baseline(rows, batch)
        found = max((row.tokens / eager for row in ours if eager and row.batch == batch), default=None)
        words = f"fp16 at least {least:g} times eager torch at batch {batch}"
        made.append(Goal(words, found, found is not None and found >= least))
    over = min((row.step / row.floor for row in ours if row.floor and row.batch == 32), default=None)
    made.append(Goal("a step of fp16 at most 1.5 times its floor at batch 32", over, over is not None and over <= 1.5))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="Also write what was found to this file.")
    options = parser.parse_args()
    lines = list(dict.fromkeys(source for source, _ in read_pairs(options.corpus)))
    text = reader(options.bundle)
    sources = sorted(map(text, lines[:: max(1, len(lines) // options.sentences)][: options.sentences]), key=len)
    here, speed = machine(), None
    try:
        import torch
        from torch_greedy import set_up
    except ModuleNotFoundError:
        print("no floors: torch, which measures them, is not installed")
    else:
        set_up()
        speed = measure_speed() if torch.cuda.is_available() else None
    weights = step_weights(options.bundle)
    rows, missing = measure(
        contenders(options.checkpoint, Bundle.open(options.bundle)),
        sources,
        options.rounds,
        lambda batch, precision: speed and speed.floor(weights, batch, precision),
    )
    found = {
        **here,
        "weights of a step": weights,
        "speed": speed and asdict(speed),
        "rows": [asdict(row) for row in rows],
        "not available": missing,
    }
    if rows:
        print(table(rows))
    print(*(f"not available: {name}: {reason}" for name, reason in missing.items()), *goals(rows), sep="\n")
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not rows:
        print("nothing was measured: no contender runs here", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
