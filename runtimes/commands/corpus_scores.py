"""Results of `edge-attn evaluate`, as values that print themselves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class CorpusScore:
    """BLEU, chrF and exact matches of one set of sentences."""

    sentences: int
    bleu: float
    low: float
    """Lower end of BLEU's 95 % bootstrap interval."""
    high: float
    """Upper end of BLEU's 95 % bootstrap interval."""
    chrf: float
    exact: float
    """Share of translations that equal their reference."""


@dataclass(frozen=True)
class LengthBin:
    """Score of the sentences whose source has `first` to `last` words."""

    first: int
    last: int
    joined: int
    """Number of sentences that are joined from shorter neighbors."""
    score: CorpusScore

    def __str__(self) -> str:
        score = self.score
        return (
            f"{f'{self.first}-{self.last}':>12}  {score.sentences:>9}  {self.joined:>14}  {score.bleu:>5.2f}  "
            f"{score.low:>5.2f} to {score.high:>5.2f}  {score.chrf:>6.2f}"
        )


@dataclass(frozen=True)
class Comparison:
    """Differences of a model from the first one on the same sentences, with the p-values of a paired bootstrap test.

    The p-value is the probability of a difference of this size between two models of equal quality.
    """

    bleu: float
    """BLEU of this model less that of the first one."""
    bleu_p: float
    chrf: float
    chrf_p: float
    resamples: int
    """Number of bootstrap samples of the test."""

    def __str__(self) -> str:
        return (
            f"difference from the first model: BLEU {self.bleu:+.2f} (p = {self.bleu_p:.4f})  "
            f"chrF {self.chrf:+.2f} (p = {self.chrf_p:.4f}), paired bootstrap test with {self.resamples} samples"
        )


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one corpus."""

    model: str
    provider: str
    beam: int
    total: CorpusScore
    bins: tuple[LengthBin, ...]
    signatures: tuple[str, ...]
    """Signatures of sacrebleu, which name its version and options."""
    seconds: float
    """Translation time."""
    cut: int
    """Number of sources that were truncated to the longest input of the model."""
    options: dict[str, Any] = field(default_factory=dict)
    """Search options other than `beam` that differ from their default."""
    references: str = "first"
    """References of a source that its translation was compared with: first or all."""
    reference_count: int = 0
    """Number of these references."""
    unused_references: int = 0
    """Number of references in the corpus that were not used."""
    comparison: Comparison | None = None
    """Comparison with the first model; None for the first model itself."""

    def __str__(self) -> str:
        total = self.total
        references = "first reference" if self.references == "first" else f"all {self.reference_count} references"
        lines = [
            f"{self.model} ({self.provider}), beam {self.beam}, {total.sentences} distinct sources, {references}",
            f"BLEU {total.bleu:.2f} (95 % interval {total.low:.2f} to {total.high:.2f})  chrF {total.chrf:.2f}  "
            f"exact match {100 * total.exact:.2f} %  in {self.seconds:.1f} s",
        ]
        if self.options:
            lines.append("options " + ", ".join(f"{name} {value}" for name, value in self.options.items()))
        lines += [f"signature {signature}" for signature in self.signatures]
        if self.comparison:
            lines.append(str(self.comparison))
        if self.unused_references:
            lines.append(f"{self.unused_references} further references were not used; --references all uses them")
        if self.cut:
            lines.append(f"{self.cut} of the sources are longer than the model reads, and were truncated")
        if self.bins:
            lines.append("source words  sentences  of them joined   BLEU  95 % interval    chrF")
            lines += map(str, self.bins)
        return "\n".join(lines)


@dataclass(frozen=True)
class EvaluationReport:
    """Evaluations of one or two models on the same corpus."""

    evaluations: tuple[Evaluation, ...]

    def json(self) -> str:
        """Return a JSON list with one object for each model."""
        return json.dumps([asdict(evaluation) for evaluation in self.evaluations], indent=1, sort_keys=True) + "\n"

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.evaluations))
