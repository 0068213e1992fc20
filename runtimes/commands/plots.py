"""Plots as SVG: attention weights of translations, and BLEU by source length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from edge_attn.bundle.output_file import check_output_file, is_stream, write_output_file
from edge_attn.errors import UsageError
from edge_attn.runtimes.commands.corpus_scores import Evaluation
from edge_attn.runtimes.tasks.translation import Translation
from edge_attn.runtimes.xml_text import xml_text

CELL, LABEL, GAP = 22, 90, 36
"""Pixels of a matrix cell, of the space for its labels, and between matrices."""
COLORS = ("#1f5fa8", "#c2571a", "#3c8d40", "#7a4fa3")
STYLE = "<style>text{font:13px sans-serif;fill:#222}.small{font-size:11px}.title{font-weight:bold}</style>"


def alignment_svg(translations: Sequence[Translation]) -> str:
    """Draw one matrix for each translation: columns are source tokens, rows target tokens, darker is more weight."""
    parts, top, width = [], GAP, 0
    for translation in translations:
        if translation.alignment is None:
            continue
        source = [*translation.source_tokens[:-1], "end"]
        target = [*translation.tokens, "end"][: len(translation.alignment)]
        parts.append(f'<text class="title" x="10" y="{top - 12}">{_text(translation.text)}</text>')
        left, first_row = LABEL, top + LABEL
        for i, token in enumerate(source):
            x, y = left + i * CELL + CELL / 2 + 4, first_row - 6
            parts.append(f'<text x="{x}" y="{y}" transform="rotate(-60 {x} {y})">{_token(token)}</text>')
        for j, token in enumerate(target):
            y = first_row + j * CELL
            parts.append(f'<text x="{left - 6}" y="{y + CELL - 7}" text-anchor="end">{_token(token)}</text>')
            for i in range(len(source)):
                weight = float(translation.alignment[j, i])
                parts.append(
                    f'<rect x="{left + i * CELL}" y="{y}" width="{CELL}" height="{CELL}" fill="{COLORS[0]}" '
                    f'fill-opacity="{weight:.3f}" stroke="#ccc" stroke-width="0.5">'
                    f"<title>{_token(token)} / {_token(source[i])}: {weight:.3f}</title></rect>"
                )
        width = max(width, left + len(source) * CELL + 60, 12 + 8 * len(translation.text))
        top = first_row + len(target) * CELL + GAP + 10
    return _svg(width, top, parts)


def length_svg(evaluations: Sequence[Evaluation]) -> str:
    """Draw BLEU by source length with 95 % intervals, one line for each model."""
    left, top, height, step = 60, 40, 300, 90
    all_bins = [b for evaluation in evaluations for b in evaluation.bins]
    lengths = sorted({(b.first, b.last) for b in all_bins})
    ceiling = 10 * int(max([10.0] + [b.score.high for b in all_bins]) / 10 + 1)

    def y(bleu: float) -> float:
        return round(top + height * (1 - max(bleu, 0.0) / ceiling), 1)

    right = left + step * len(lengths)
    parts = ['<text class="title" x="10" y="20">BLEU by number of source words, with 95 % intervals</text>']
    for tick in range(0, ceiling + 1, 10):
        parts.append(f'<line x1="{left}" y1="{y(tick)}" x2="{right}" y2="{y(tick)}" stroke="#ddd"/>')
        parts.append(f'<text class="small" x="{left - 8}" y="{y(tick) + 4}" text-anchor="end">{tick}</text>')
    for k, (first, last) in enumerate(lengths):
        x = left + step * k + step // 2
        parts.append(f'<text x="{x}" y="{top + height + 20}" text-anchor="middle">{first}-{last}</text>')
        shown = next(b for b in all_bins if b.first == first)
        counts = [f"{shown.score.sentences} pairs", f"{shown.joined} joined"]
        for row, count in enumerate(counts if shown.joined else counts[:1]):
            below = top + height + 36 + 14 * row
            parts.append(f'<text class="small" x="{x}" y="{below}" text-anchor="middle">{count}</text>')
    for n, evaluation in enumerate(evaluations):
        color, points = COLORS[n % len(COLORS)], []
        for b in evaluation.bins:
            x = left + step * lengths.index((b.first, b.last)) + step // 2 + 6 * n
            points.append(f"{x},{y(b.score.bleu)}")
            parts.append(f'<line x1="{x}" y1="{y(b.score.low)}" x2="{x}" y2="{y(b.score.high)}" stroke="{color}"/>')
            parts.append(f'<circle cx="{x}" cy="{y(b.score.bleu)}" r="4" fill="{color}"/>')
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="2"/>')
        name = _text(Path(evaluation.model).name)
        parts.append(f'<text x="{right + 10}" y="{top + 20 + 20 * n}" style="fill:{color}">{name}</text>')
    return _svg(right + 220, top + height + 64, parts)


def check_picture(path: Path) -> None:
    """Check that a plot can be written to `path`, before the work.

    Raises:
        UsageError: its name has the suffix of another format.
        InputError: it cannot be written.
    """
    if path.suffix.lower() not in (".svg", "") and not is_stream(path):
        raise UsageError(f"`picture` is written as SVG, got the suffix {path.suffix!r}; name it {path.stem}.svg")
    check_output_file(path)


def write_svg(path: Path, svg: str) -> None:
    """Write an SVG file.

    Raises:
        InputError: the file cannot be written.
    """
    write_output_file(path, svg)


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, STYLE, background, *parts, "</svg>"]) + "\n"


def _token(token: str) -> str:
    return _text(token.replace("\u2581", "_"))


def _text(text: str) -> str:
    """Escape markup, and the characters that XML cannot contain."""
    return escape(xml_text(text))
