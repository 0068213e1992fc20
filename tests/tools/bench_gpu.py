"""Compare greedy decoding on a GPU: every runtime and every way of torch for one model, in turns.

    python tests/tools/bench_gpu.py CHECKPOINT BUNDLE [TSV] [--json FILE] [--cache-dir FOLDER] [--skip NAME]

Without a TSV the sentences are the golden ones of the bundle. Targets are first optimized in a copy of the bundle,
which needs onnx: ort-cuda and trt in fp32 and fp16, with the buckets `batch = [1, 32]` and `beam = 1`, because profiles
are tuned for the widest beam. Without onnx, or with --as-it-is, BUNDLE must contain them. Without torch there is no
baseline.

The script prints a row per contender: tokens of one pass, tokens per second (the median over rounds), the ratio to the
faster precision of eager torch, the times of the encoder and of a step with the copy of their results to the host, the
ratio of the step to its floor, and the provider. The floor is the launch of an empty kernel plus the larger of two
times: the bytes of the weights and of the sentences' memory at the bandwidth of a large copy, and their products at the
rate of a large product. All of these are measured with torch in the same run. A contender that cannot run, or fails, is
printed with its reason. The JSON is written after each batch. Exit code 3: nothing was measured.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from bench_decode import MAX_LENGTH, Decode, Sources, rate, step_weights
from gpu_machine import BYTES, Speed, machine, measure_speed, step_load
from gpu_targets import read_sources, with_targets

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.beam_search import search
from edge_attn.decoding.decoder import pad_sources
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import EdgeAttnError, NotTestedError
from edge_attn.runtimes.base import open_runtime

BATCHES = (1, 32)
OURS = ("ort-cuda", "trt", "trt-rtx")
TORCH = ("torch eager", "torch.compile", "torch CUDA graph")
STEPS, WARM_UP = 200, 20


class Contender(Protocol):
    decode: Decode
    provider: str
    """Name of the library and device that run."""

    def encoding(self, sources: Sources) -> Callable[[], object]:
        """Return a function that runs the encoder over `sources` and waits for it."""

    def stepper(self, sources: Sources) -> Callable[[], object]:
        """Return a function that runs one step after the encoder over `sources` and waits for it."""

    def close(self) -> None: ...


Key = tuple[str, str]
"""Name and precision of a contender."""
Makers = dict[Key, Callable[[], Contender]]
Floors = Callable[[int, int, str], float | None]
"""Takes batch, source tokens and precision; returns the minimum seconds of a step, or None if not measured."""


@dataclass(frozen=True)
class Row:
    """One contender at one batch."""

    contender: str
    precision: str
    batch: int
    generated: int
    """Tokens of all sentences; a contender with another number is wrong, not fast."""
    tokens: float
    """Tokens per second."""
    encoder: float
    step: float
    floor: float | None
    """Seconds, like `encoder` and `step`."""
    provider: str


@dataclass(frozen=True)
class Goal:
    description: str
    value: float | None
    met: bool

    def __str__(self) -> str:
        if self.value is None:
            return f"goal: {self.description}: not measured"
        return f"goal: {self.description}: got {self.value:.2f}, {'met' if self.met else 'MISSED'}"


# ---- the contenders


class Ours:
    """A runtime of edge-attn with its search."""

    def __init__(self, bundle: Bundle, name: str, precision: str, cache_dir: Path | None = None) -> None:
        self.runtime = open_runtime(bundle, name, RuntimeOptions(precision=precision, cache_dir=cache_dir))

    @property
    def provider(self) -> str:
        """Provider, with the reason for each graph that was not captured."""
        refused = getattr(getattr(self.runtime, "_launches", None), "enqueued", {})
        return "; ".join([self.runtime.provider, *(f"{name}: {why}" for name, why in sorted(refused.items()))])

    def decode(self, sources: Sources) -> int:
        results = search(self.runtime, sources, SearchConfig(beam=1, max_length=MAX_LENGTH))
        return sum(len(hypotheses[0].tokens) + hypotheses[0].finished for hypotheses in results)

    def encoding(self, sources: Sources) -> Callable[[], object]:
        state = self.runtime.graphs["step"].names("state.")[0]
        return lambda: self.runtime.numpy(self._encode(sources)[state])

    def stepper(self, sources: Sources) -> Callable[[], object]:
        run, numpy = self.runtime.run, self.runtime.numpy
        encoded = self._encode(sources)
        spec, batch = self.runtime.graphs["step"], len(sources)
        inputs = {name: encoded[name] for prefix in ("memory.", "state.") for name in spec.names(prefix)}
        inputs |= {"tokens": np.full((batch, 1), 5, np.int64), "parents": np.zeros((batch, 1), np.int64)}

        def step() -> object:
            outputs = run("step", inputs)
            return numpy(outputs["candidates"]), numpy(outputs["candidate_ids"])

        return step

    def _encode(self, sources: Sources) -> dict[str, Any]:
        source, lengths = pad_sources(sources)
        return self.runtime.run("encoder", {"source": source, "source_length": lengths})

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


def contenders(checkpoint: Path, bundle: Bundle, cache_dir: Path | None = None) -> Makers:
    """Return a factory of each contender, which raises NotTestedError if it cannot run."""
    makers: Makers = {}
    for precision in BYTES:
        for way in TORCH:
            makers[way, precision] = lambda way=way, precision=precision: torch_contender(checkpoint, way, precision)
        makers["CTranslate2", precision] = ctranslate2_contender
        for name in OURS:
            makers[name, precision] = lambda name=name, precision=precision: Ours(bundle, name, precision, cache_dir)
    return makers


# ---- measuring


class Missing(dict[str, str]):
    """Reason of each contender or step that failed, by its name."""

    def attempt(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of `work`; None if it fails, so that the other contenders still run."""
        print(f"... {name}", file=sys.stderr, flush=True)
        try:
            return work(*arguments)
        except Exception as error:
            self[name] = reason(error)
            return None


def measure(
    running: dict[Key, Contender], sources: Sources, batch: int, rounds: int, floors: Floors, missing: Missing
) -> list[Row]:
    """Warm every contender up twice, then measure them in turns.

    Args:
        running: contenders, by name and precision.
        sources: tokens of each sentence.
        batch: sentences per batch.
        rounds: measured passes over all sentences.
        floors: minimum time of a step.
        missing: takes the reason of each contender that fails.
    """
    batches = split(sources, batch)
    middle = [sources[len(sources) // 2]] * batch
    names = {key: f"{' '.join(key)} at batch {batch}" for key in running}
    generated = {key: missing.attempt(names[key], tokens, running[key], batches) for key in running}
    rates: dict[Key, list[float]] = {key: [] for key, count in generated.items() if count is not None}
    for turn in range(-1, rounds):
        for key in list(rates):
            result = missing.attempt(names[key], rate, running[key].decode, batches)
            if result is None:
                del rates[key]
            elif turn >= 0:
                rates[key].append(result)
    rows = []
    for key, measured in rates.items():

        def row(contender: Contender, key: Key = key, measured: list[float] = measured) -> Row:
            encoder, step = median_time(contender.encoding(middle)), median_time(contender.stepper(middle))
            floor = floors(batch, len(middle[0]), key[1])
            return Row(
                *key, batch, generated[key], statistics.median(measured), encoder, step, floor, contender.provider
            )

        rows.append(missing.attempt(names[key], row, running[key]))
    return [row for row in rows if row is not None]


def tokens(contender: Contender, batches: list[Sources]) -> int:
    return sum(contender.decode(batch) for batch in batches)


def reason(error: Exception) -> str:
    """Return the first line of an error, with the second one if the first ends in a colon."""
    message = str(error) if isinstance(error, EdgeAttnError) else f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in message.splitlines() if line.strip()] or [message]
    return " ".join(lines[: 1 + lines[0].endswith(":")])


def split(sources: Sources, batch: int) -> list[Sources]:
    return [sources[i : i + batch] for i in range(0, len(sources), batch)]


def median_time(step: Callable[[], object]) -> float:
    """Return the median seconds over STEPS calls."""
    times = []
    for _ in range(WARM_UP + STEPS):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times[WARM_UP:])


# ---- showing


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table, by batch and then in the order of the contenders."""
    lines = [
        "| batch | contender | precision | tokens | tokens/s | times eager torch | encoder, µs | step, µs "
        "| floor, µs (a launch, and weights and memory read or multiplied) | step over floor | provider |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.batch):
        eager = baseline(rows, row.batch)
        cells = [
            str(row.generated),
            f"{row.tokens:.0f}",
            _number(eager and row.tokens / eager),
            _number(1e6 * row.encoder, 1),
            _number(1e6 * row.step, 1),
            _number(row.floor and 1e6 * row.floor, 1),
            _number(row.floor and row.step / row.floor),
            row.provider.replace("|", "/"),
        ]
        lines.append(f"| {row.batch} | {row.contender} | {row.precision} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def baseline(rows: Sequence[Row], batch: int) -> float | None:
    """Return tokens per second of eager torch in its faster precision."""
    return max((row.tokens for row in rows if row.contender == TORCH[0] and row.batch == batch), default=None)


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Return the goals in fp16, for the fastest runtime of edge-attn."""
    ours = [row for row in rows if row.contender in OURS and row.precision == "fp16"]
    results = []
    for batch, minimum in ((1, 3.0), (32, 2.0)):
        eager = baseline(rows, batch)
        ratio = max((row.tokens / eager for row in ours if eager and row.batch == batch), default=None)
        description = f"fp16 at least {minimum:g} times eager torch at batch {batch}"
        results.append(Goal(description, ratio, ratio is not None and ratio >= minimum))
    over = min((row.step / row.floor for row in ours if row.floor and row.batch == 32), default=None)
    results.append(
        Goal("a step of fp16 at most 1.5 times its floor at batch 32", over, over is not None and over <= 1.5)
    )
    return results


def main() -> int:
    options = arguments()
    here, missing = machine(), Missing()
    if here["gpu"] is None:
        return finish({**here, "rows": [], "not available": {}}, options.json, "no NVIDIA GPU answers")
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle
        if not options.as_it_is and importlib.util.find_spec("onnx"):
            bundle = with_targets(bundle, Path(folder), options.max_build_minutes, missing.attempt)
        opened = Bundle.open(bundle)
        sources = read_sources(bundle, options.corpus, options.sentences)
        speed, floors = limits(opened, missing)
        makers = contenders(options.checkpoint, opened, options.cache_dir or Path(folder) / "engines")
        running: dict[Key, Contender] = {}
        for key, make in makers.items():
            contender = None if key[0] in options.skip else missing.attempt(" ".join(key), make)
            if contender is not None:
                running[key] = contender
        rows: list[Row] = []
        results = {**here, "sentences": len(sources), "speed": speed and asdict(speed)}
        for batch in BATCHES:
            rows += measure(running, sources, batch, options.rounds, floors, missing)
            results |= {"rows": [asdict(row) for row in rows], "not available": missing}
            write(results, options.json)
        for key, contender in running.items():
            missing.attempt(f"closing {' '.join(key)}", contender.close)
    if rows:
        print(table(rows))
    print(*goals(rows), sep="\n")
    return finish(results, options.json, "" if rows else "no contender runs here")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="Write the results to this file.")
    parser.add_argument("--cache-dir", type=Path, help="Engine cache folder; by default a temporary one.")
    parser.add_argument("--max-build-minutes", type=float, default=10.0, help="Time limit per engine build.")
    parser.add_argument("--as-it-is", action="store_true", help="Measure the existing targets of the bundle.")
    parser.add_argument("--skip", action="append", default=[], help="Skip a contender that crashes; repeatable.")
    return parser.parse_args()


def limits(bundle: Bundle, missing: Missing) -> tuple[Speed | None, Floors]:
    """Return the peak speed of this GPU and the floors from it; neither without torch and onnx."""

    def measure_limits() -> tuple[Speed, int]:
        from torch_greedy import set_up

        set_up()
        return measure_speed(), step_weights(bundle.path)

    result = missing.attempt("the floors", measure_limits)
    if result is None:
        return None, lambda batch, src, precision: None
    speed, weights = result
    step = bundle.manifest.graphs["step"]
    return speed, lambda *request: speed.floor(*step_load(step, weights, *request), request[2])


def finish(results: dict[str, Any], file: Path | None, fault: str) -> int:
    """Print what is not available, write the results, and return the exit code."""
    for name, why in results["not available"].items():
        print(f"not available: {name}: {why}")
    if file is None:
        print(json.dumps(results, indent=1))
    write(results, file)
    if fault:
        print(f"nothing was measured: {fault}", file=sys.stderr)
    return 3 if fault else 0


def write(results: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
