"""Diagnosis of a failed verification: the first cause, and the command that narrows it down."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from edge_attn.parity.results import LevelResult, Measurement

LONGEST_SOURCE = 100
"""Largest number of characters of the quoted source."""


def cause(levels: Sequence[LevelResult], inputs: Sequence[str] = ()) -> str:
    """Return a sentence on what holds and where the first difference is, or why a level was not tested; else "".

    Args:
        levels: results, in the order in which the compared parts depend on each other.
        inputs: the compared inputs, of which the differing one is quoted.
    """
    measurements = [measurement for level in levels for measurement in level.measurements]
    failed = [measurement for measurement in measurements if not measurement.ok]
    if not failed:
        reasons = [f"{level.name}: {level.reason}" for level in levels if level.status == "not tested"]
        empty = [f"{level.name} measured nothing" for level in levels if level.status == "fails"]
        return "; ".join(empty + reasons)
    first = next((m for m in failed if m.part == failed[0].part and m.place), failed[0])
    part, failing_parts = _part(first), {_part(m) for m in failed}
    parts = list(dict.fromkeys(map(_part, measurements)))
    holding = [name for name in parts[: parts.index(part)] if name not in failing_parts]
    before = f"{_list(holding)} {'holds' if len(holding) == 1 else 'hold'}; " if holding else ""
    where = f" at {first.where}" if first.where else ""
    flip = next(
        (m for level in levels if level.name == first.level for m in level.mismatches if _is_at(m, first)), None
    )
    if flip is not None and flip.reference_piece:
        figure = f"{flip.candidate_piece!r} instead of {flip.reference_piece!r}"
    else:
        figure = f"{first.name} is {first.value:.3g} (at most {first.bound:.3g})"
    source = inputs[first.sentence] if 0 <= first.sentence < len(inputs) else ""
    quoted = f"; source: {shorten(source, LONGEST_SOURCE)}" if source else ""
    return f"{before}{part} departs{where}: {figure}{quoted}"


def shorten(text: str, limit: int) -> str:
    """Return the beginning of a text on one line."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _is_at(mismatch: object, measurement: Measurement) -> bool:
    """Return whether a mismatch is the one that a measurement of tokens names."""
    place = (getattr(mismatch, "sentence", None), f"step {getattr(mismatch, 'step', None)}")
    where = measurement.name.partition(" ")[2]
    return getattr(mismatch, "where", None) == where and place == (measurement.sentence, measurement.place)


def _part(measurement: Measurement) -> str:
    return f"the {measurement.part}" if measurement.part else measurement.level


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def next_command(bundle: str, runtime: str, precision: str, against: str) -> str:
    """Return the command that tells which part is at fault: the runtime, the precision, the bundle or the golden data.

    Args:
        bundle: path of the bundle that fails.
        runtime: runtime on which it fails.
        precision: precision in which it fails.
        against: `golden data`, or the checkpoint that it was compared with.
    """
    path = shlex.quote(bundle)
    if precision != "fp32":
        return f"edge-attn verify {path} --runtime {runtime}  # does it hold in fp32?"
    if runtime != "ort-cpu":
        return f"edge-attn verify {path}  # does it hold on the CPU of this machine?"
    if against == "golden data":
        return f"edge-attn verify {path} --reference CHECKPOINT  # with torch: is the bundle that of its checkpoint?"
    return f"edge-attn export {shlex.quote(against)} --out NEW.zip  # the bundle is not that of this checkpoint"


def worst(level: LevelResult) -> Measurement | None:
    """Return the measurement that comes closest to its bound, or exceeds it most; None without measurements."""
    return max(level.measurements, key=_ratio, default=None)


def _ratio(measurement: Measurement) -> float:
    value, bound = measurement.value, measurement.bound
    if math.isnan(value):
        return math.inf
    if bound == 0:
        return 0.0 if value <= 0 else math.inf
    return value / bound
