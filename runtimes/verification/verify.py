"""`edge-attn verify`: does the deployed model say what the reference said?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import InputError, TooLargeError, UsageError
from edge_attn.parity import golden
from edge_attn.parity.golden import Golden
from edge_attn.parity.results import LevelResult
from edge_attn.parity.tolerances import LEVELS, RUN_BY_VERIFY, bounds
from edge_attn.registry import SERVICES, resolve
from edge_attn.runtimes.base import DEFAULT, open_runtime
from edge_attn.runtimes.verification import levels as ladder
from edge_attn.runtimes.verification.report import Report
from edge_attn.spec import Runtime
from edge_attn.text import corpus


def verify(
    bundle: Path,
    runtime: str = "ort-cpu",
    levels: Sequence[str] = (),
    overrides: Mapping[str, float] | None = None,
    reference: Path | None = None,
    sentences: Path | None = None,
    options: RuntimeOptions = DEFAULT,
) -> Report:
    """Holds `bundle` on `runtime` to its golden data, or to the live torch model of the checkpoint `reference`.

    Raises:
        BundleError, UsageError, NotTestedError: nothing could be compared.
    """
    opened = Bundle.open(bundle)
    running = open_runtime(opened, runtime, options)
    if reference is None:
        if sentences is not None:
            raise UsageError("--input needs --reference: golden data exists for the bundle's own sentences only")
        said = golden.load(opened.read)
    else:
        lines = corpus.read_sentences(sentences) if sentences is not None else golden.load(opened.read).sentences
        record = resolve("service", SERVICES, "record reference")
        folded = bool(opened.manifest.provenance.get("folded"))  # bundles of before were not, and do not say so
        said = record(reference, lines, opened.manifest.max_source, _size(running, "candidates"), folded)
    return check(opened, running, said, levels, overrides or {}, str(reference) if reference else "golden data")


def check_on(bundle: Bundle, runtime: str, said: Golden) -> Report:
    """`check` of a bundle that may not be written yet."""
    return check(bundle, open_runtime(bundle, runtime), said)


def check(
    bundle: Bundle,
    runtime: Runtime,
    said: Golden,
    levels: Sequence[str] = (),
    overrides: Mapping[str, float] | None = None,
    against: str = "golden data",
) -> Report:
    """The levels asked for (by default L1, L2, L3 and L5) of `runtime` against `said`.

    A level that asks for more than the runtime's engines were built for is not tested; the others are.
    """
    for name in levels:
        if name not in LEVELS:
            raise UsageError(f"unknown level {name!r}; known: {', '.join(LEVELS)}")
    manifest = bundle.manifest
    stricter = manifest.tolerances if runtime.precision == manifest.precision else {}
    limits = bounds(runtime.precision, stricter, overrides or {})
    _refuse_another_model(runtime, said, against)
    asked = tuple(levels) or RUN_BY_VERIFY
    made = {name: LevelResult(name) for name in LEVELS}
    for name in asked:
        if name not in RUN_BY_VERIFY:
            made[name] = LevelResult(name, "not tested", f"verify runs {', '.join(RUN_BY_VERIFY)}")
    with np.errstate(all="ignore"):  # what a broken runtime says is a finding, not a warning
        for names, run in (
            (("L1", "L2"), lambda: ladder.graph_and_step(runtime, said, limits)),
            (("L3",), lambda: [ladder.sentence(runtime, said, bundle.text(), manifest.max_source, limits)]),
            (("L5",), lambda: [ladder.device(runtime, said, limits)]),
        ):
            if any(name in asked for name in names):
                made.update({level.name: level for level in _tried(names, run) if level.name in asked})
    return Report(
        bundle=str(bundle.path),
        runtime=runtime.name,
        provider=runtime.provider,
        precision=runtime.precision,
        against=against,
        sentences=len(said.sentences),
        overrides=dict(overrides or {}),
        levels=[made[name] for name in LEVELS],
    )


def _tried(names: Sequence[str], run: Callable[[], Sequence[LevelResult]]) -> Sequence[LevelResult]:
    try:
        return run()
    except TooLargeError as error:
        return [LevelResult(name, "not tested", str(error)) for name in names]


def _refuse_another_model(runtime: Runtime, said: Golden, against: str) -> None:
    """Numbers that are no numbers of this bundle's model cannot be compared with its own."""
    given = {tensor.name for tensor in runtime.graphs["encoder"].outputs}
    given |= {tensor.name for tensor in runtime.graphs["step"].outputs if tensor.name == "alignment"}
    recorded = {name.removeprefix("encoder.") for name in said.arrays if name.startswith("encoder.")}
    recorded |= {"alignment"} if "steps.alignment" in said.arrays else set()
    source = next(tensor for tensor in runtime.graphs["encoder"].inputs if tensor.name == "source")
    tokens = max(map(max, said.sources)), int(said.arrays["steps.top_ids"].max())
    sizes = source.values[1] + 1, _size(runtime, "log_probs")
    if given != recorded or tokens[0] >= sizes[0] or tokens[1] >= sizes[1]:
        raise InputError(
            f"{against} is of another model than this bundle: it has {', '.join(sorted(recorded))} and tokens up to "
            f"{tokens[0]} -> {tokens[1]}, the bundle has {', '.join(sorted(given))} and vocabularies of "
            f"{sizes[0]} -> {sizes[1]} entries"
        )


def _size(runtime: Runtime, output: str) -> int:
    """Entries of the last axis of one of the step's outputs."""
    return int(next(tensor for tensor in runtime.graphs["step"].outputs if tensor.name == output).shape[2])
