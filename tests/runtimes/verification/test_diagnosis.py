"""Diagnosis: the parts that hold, the first part that departs, and the command that narrows it down."""

from __future__ import annotations

import math

import pytest

from edge_attn.parity.results import LevelResult, Measurement, TokenMismatch
from edge_attn.runtimes.verification.diagnosis import cause, next_command, worst

LINES = ["I am cold.", "I am here."]


def levels(encoder: float = 0.0, step: float = 0.0, search: float = 0.0, text: float = 0.0) -> list[LevelResult]:
    """Return L1 to L3 with these values, of which 0 holds."""
    flip = TokenMismatch(1, "greedy", 3, 7, 8, math.inf, 0.0, LINES[1], "Je", "▁suis", "▁serai", "Je suis", "Je serai")
    results = [
        LevelResult("L1", measurements=[Measurement("L1", "max_abs keys", encoder, 0.1, "encoder", 0, "position 4")]),
        LevelResult("L2", measurements=[Measurement("L2", "log_prob", step, 0.1, "step", 1, "step 2")]),
        LevelResult(
            "L3",
            measurements=[
                Measurement("L3", "tokens greedy", search, 0.0, "greedy search", 1, "step 3"),
                Measurement("L3", "text", text, 0.0, "text processing"),
            ],
            mismatches=[flip] if search else [],
        ),
    ]
    return [result.conclude() for result in results]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ""),
        (
            {"encoder": 0.5, "step": 0.5, "search": 1.0},
            "the encoder departs at sentence 0, position 4: max_abs keys is 0.5 (at most 0.1); source: I am cold.",
        ),
        (
            {"step": math.nan, "search": 1.0},
            "the encoder holds; the step departs at sentence 1, step 2: log_prob is nan (at most 0.1); "
            "source: I am here.",
        ),
        (
            {"search": 0.5},
            "the encoder and the step hold; the greedy search departs at sentence 1, step 3: '▁serai' instead of "
            "'▁suis'; source: I am here.",
        ),
        (
            {"text": 0.5},
            "the encoder, the step and the greedy search hold; the text processing departs: text is 0.5 (at most 0)",
        ),
    ],
)
def test_cause_names_what_holds_and_the_first_departure(values, expected):
    assert cause(levels(**values), LINES) == expected


def test_cause_of_an_untested_level_is_its_reason():
    assert cause([LevelResult("L4", "not tested", "verify runs L1")]) == "L4: verify runs L1"
    assert cause([LevelResult("L1").conclude()]) == "L1 measured nothing"


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (("trt", "fp16", "golden data"), "edge-attn verify 'a b' --runtime trt"),
        (("trt", "fp32", "golden data"), "edge-attn verify 'a b'"),
        (("ort-cpu", "fp32", "golden data"), "edge-attn verify 'a b' --reference CHECKPOINT"),
        (("ort-cpu", "fp32", "dates"), "edge-attn export dates --out NEW.zip"),
    ],
)
def test_next_command_separates_runtime_precision_and_bundle(where, expected):
    assert next_command("a b", *where).partition("  #")[0] == expected


def test_worst_figure_is_relative_to_its_bound():
    figures = {"a": (1.0, 10.0), "b": (0.5, 1.0), "c": (0.0, 0.0)}
    level = LevelResult("L1", measurements=[Measurement("L1", name, *pair) for name, pair in figures.items()])
    assert worst(level).name == "b"
    level.measurements.append(Measurement("L1", "d", 1e-9, 0.0))
    assert worst(level).name == "d"
    level.measurements[-1] = Measurement("L1", "e", math.nan, 1.0)
    assert worst(level).name == "e"
    assert worst(LevelResult("L1")) is None


def test_long_source_is_shortened_to_one_line():
    text = cause(levels(step=1.0), ["", "a\nlong " * 99])
    assert text.partition("; source: ")[2] == ("a long " * 99)[:99] + "…"
