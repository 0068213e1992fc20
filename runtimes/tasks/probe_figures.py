"""Figures of the probes of an encoder-decoder model: each entry, length, batch size and beam against golden data."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from edge_attn.decoding.decoder import ENCODER, STEP
from edge_attn.parity.decoder_probes import STEPS, ProbeOutputs, Probes, probe_level, probed_outputs, run_probes
from edge_attn.parity.figures import Figure
from edge_attn.parity.golden import Golden
from edge_attn.parity.metrics import absolute_difference, largest
from edge_attn.spec import Runtime
from edge_attn.text.pipeline import Text


class _Differences:
    """Largest difference of each recorded row of one output, with the run in which it was."""

    def __init__(self, expected: np.ndarray) -> None:
        self._expected = expected.astype(np.float64)  # (rows, PROJECTIONS)
        self.rows = np.zeros(len(expected))
        self.places = [""] * len(expected)

    @property
    def scale(self) -> float:
        """Root mean square of the reference's values."""
        finite = self._expected[np.isfinite(self._expected)]
        return float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0

    def add(self, outputs: ProbeOutputs, name: str) -> None:
        """Add the rows of one run."""
        difference = absolute_difference(outputs.values[name], self._expected[outputs.rows]).max(1)
        for row in np.flatnonzero(~(difference <= self.rows[outputs.rows])):
            index = outputs.rows[row]
            if not np.isnan(self.rows[index]):
                self.rows[index], self.places[index] = difference[row], outputs.place


def probe_figures(runtime: Runtime, golden: Golden, text: Text) -> Iterator[Figure]:
    """Yield the largest difference of each output over all probes, with the entry that differs; none without probes.

    Args:
        runtime: the runtime to verify.
        golden: results of the reference.
        text: tokenizers of the bundle.
    """
    probes = golden.probes
    if probes is None:
        return
    differences = {
        (graph, name): _Differences(golden.arrays[f"probes.{graph}.{name}"])
        for graph in (ENCODER, STEP)
        for name in probed_outputs(runtime.graphs[graph])
    }
    candidates, candidates_place = 0.0, ""
    for outputs in run_probes(runtime, probes):
        for name in outputs.values:
            differences[outputs.graph, name].add(outputs, name)
        if not outputs.candidates <= candidates and not np.isnan(candidates):
            candidates, candidates_place = outputs.candidates, outputs.place
    for (graph, name), difference in differences.items():
        place = functools.partial(_place, probes, text, graph, difference)
        level = probe_level(name)
        scale = difference.scale if level == "L1" else 1.0
        yield Figure(level, f"probe {name}", largest(difference.rows), scale, graph, place)
    yield Figure("L2", "candidates", candidates, part=STEP, place=lambda _: (-1, candidates_place))


def _place(probes: Probes, text: Text, graph: str, difference: _Differences, bound: float) -> tuple[int, str]:
    """Return no sentence, and the entry with the largest difference, its run, and how many others are outside.

    Args:
        probes: token sequences.
        text: tokenizers of the bundle.
        graph: name of the graph.
        difference: differences of one output.
        bound: largest accepted difference.
    """
    outside = ~(difference.rows <= bound)
    if graph == STEP:  # what follows a difference differs too
        paths = outside[: probes.paths.size].reshape(-1, STEPS)
        walk = outside[probes.paths.size :]
        outside = np.concatenate([(paths & (np.cumsum(paths, 1) == 1)).reshape(-1), walk & (np.cumsum(walk) == 1)])
    rows = np.flatnonzero(outside) if outside.any() else np.arange(len(outside))
    worst = int(rows[np.argmax(np.nan_to_num(difference.rows[rows], nan=np.inf))])
    if graph == STEP:
        token, side, piece = int(probes.fed()[worst]), "target", text.target.pieces
    elif worst < len(probes.entries):
        token, side, piece = int(probes.entries[worst]), "source", text.source.pieces
    else:
        return -1, f"a source of {len(probes.sources[worst - len(probes.entries)])} tokens ({difference.places[worst]})"
    more = f" and {outside.sum() - 1} more" if outside.sum() > 1 else ""
    return -1, f"{side} entry {token} {piece([token])[0]!r}{more} ({difference.places[worst]})"
