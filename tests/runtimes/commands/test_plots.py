"""Plots are well-formed SVG that shows every token and every score."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

import edge_attn
from edge_attn.errors import InputError
from edge_attn.runtimes.commands.corpus_scores import CorpusScore, Evaluation, LengthBin
from edge_attn.runtimes.commands.plots import alignment_svg, length_svg, write_svg
from edge_attn.runtimes.tasks.translation import Translation


def texts(svg: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_alignments_show_every_token_and_weight(toy_bundle):
    translations = edge_attn.load(toy_bundle).translate(["every good cat calls a child", "", "the king"])
    svg = alignment_svg(translations)
    labels = texts(svg)
    for translation in translations:
        for token in (*translation.source_tokens[:-1], *translation.tokens):
            assert token in labels
    assert labels.count("end") == 2 * 2  # a row and a column each; the empty translation has no matrix
    assert "chaque chat bon appelle un enfant" in labels
    cells = ElementTree.fromstring(svg).findall("{*}rect")[1:]
    assert len(cells) == 7 * 7 + 3 * 3
    weights = np.array([float(cell.get("fill-opacity")) for cell in cells])
    np.testing.assert_allclose(weights[:49].reshape(7, 7), translations[0].alignment, atol=6e-4)


def test_markup_and_control_characters_stay_well_formed():
    tokens = ("<b>&\"'", "\u2581word", "\x01\x0b\ud800\ufffe", "\U0001f600")
    translation = Translation(" ".join(tokens), -1.0, -1.0, tokens, (*tokens, "</s>"), np.full((5, 5), 0.2))
    labels = texts(alignment_svg([translation]))
    assert labels.count("<b>&\"'") == 2
    assert labels.count("_word") == 2
    assert labels.count(r"\x01\x0b\ud800\ufffe") == 2
    assert labels.count("\U0001f600") == 2


def test_unfinished_translation_has_no_end_row():
    translation = Translation("a", -1.0, -1.0, ("a",), ("b", "</s>"), np.full((1, 2), 0.5), finished=False)
    assert texts(alignment_svg([translation])) == ["a", "b", "end", "a"]


def test_plot_without_alignments_is_empty():
    assert texts(alignment_svg([Translation("a", -1.0, -1.0, ("a",), ("b", "</s>"))])) == []
    assert texts(alignment_svg([])) == []


def evaluation(model: str, *bins: tuple[int, int, float]) -> Evaluation:
    """Return an evaluation with bins of (first length, last length, BLEU)."""
    scores = [CorpusScore(100, bleu, bleu - 3, bleu + 3, 50.0, 0.1) for _, _, bleu in bins]
    length_bins = [LengthBin(first, last, 40, score) for (first, last, _), score in zip(bins, scores, strict=True)]
    return Evaluation(model, "numpy", 4, scores[0], tuple(length_bins), (), 1.0, 0)


def test_length_plot_has_a_line_per_model_and_a_point_per_bin():
    evaluations = [
        evaluation("runs/with <attention>", (1, 5, 40.0), (6, 10, 42.5)),
        evaluation("without", (1, 5, 38.0), (6, 10, 20.0)),
    ]
    svg = length_svg(evaluations)
    root = ElementTree.fromstring(svg)
    assert [len(line.get("points").split()) for line in root.findall("{*}polyline")] == [2, 2]
    assert len(root.findall("{*}circle")) == 4
    labels = texts(svg)
    for words in ("with <attention>", "without", "1-5", "6-10", "100 pairs", "40 joined", "0", "50"):
        assert words in labels
    heights = [float(circle.get("cy")) for circle in root.findall("{*}circle")]
    assert heights[1] < heights[0] < heights[2] < heights[3]  # better scores are drawn higher


def test_models_with_different_bins_share_a_plot():
    one, other = evaluation("one", (1, 5, 40.0)), evaluation("other", (1, 5, 30.0), (6, 10, 20.0))
    for evaluations in ([one, other], [other, one]):
        assert texts(length_svg(evaluations)).count("6-10") == 1


def test_length_plot_without_bins_names_the_model():
    empty = Evaluation("model", "numpy", 4, CorpusScore(1, 0.0, 0.0, 0.0, 0.0, 0.0), (), (), 1.0, 0)
    assert "model" in texts(length_svg([empty]))


def test_unwritable_plot_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: "):
        write_svg(tmp_path / "file" / "a.svg", "")
