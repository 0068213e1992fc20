"""`edge-attn translate` has a defined result for each line: damaged, compressed, cut, or of a standard stream."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import pytest
from paths import EMBEDDED_BUNDLE

import edge_attn
from edge_attn.errors import InputError
from edge_attn.runtimes.commands import line_io
from edge_attn.runtimes.commands.translate import _format, translate_file
from edge_attn.runtimes.tasks.translation import Translation
from edge_attn.text.lines import LONGEST_LINE

BAD = {
    b"a \xff cat": "line 2: not UTF-8 at byte 3; convert the text to UTF-8",
    b"a \0 cat": "line 2: contains a NUL byte; the input is not text",
    b"\xed\xa0\xbd": "line 2: not UTF-8 at byte 1",  # half of a character
    b"a" * (3 * LONGEST_LINE): f"line 2: more than {LONGEST_LINE} bytes; put one sentence or one pair on a line",
}


@pytest.fixture
def pipe(toy_bundle, monkeypatch, capsys):
    """Translate bytes from standard input, a real pipe, and return the lines of standard output."""

    def run(data: bytes, **arguments: object) -> str:
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        with io.TextIOWrapper(os.fdopen(reader, "rb")) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            try:
                translate_file(toy_bundle, **arguments)
            except InputError as error:
                return f"{capsys.readouterr().out}InputError: {error}"
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:6].hex())
@pytest.mark.parametrize("window", [1, 1024])
def test_bad_line_is_skipped_on_request(translate, tmp_path, monkeypatch, line, window):
    monkeypatch.setattr(line_io, "WINDOW", window)
    data = b"a cat\n" + line + b"\nthe king\n"
    options = ["--on-error", "skip", "--alignments", tmp_path / "aligned"]
    result = translate(data, *options)
    assert result.stdout == "un chat\n\nle roi\n"
    assert result.stderr == f"warning: {BAD[line]}" + result.stderr[len(f"warning: {BAD[line]}") :]
    assert (tmp_path / "aligned").read_text() == "0-0 1-1\n\n0-0 1-1\n"
    rows = [json.loads(row) for row in translate(data, *options, "--format", "jsonl").stdout.splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3]
    assert BAD[line] in rows[1]["error"]
    assert (rows[1]["source"], rows[1]["translations"]) == (None, [])
    moses = translate(data, *options, "--format", "moses").stdout.splitlines()
    assert [row.split(" ||| ")[0] for row in moses] == ["0", "2"]
    assert translate(data, *options, "--n-best", 2).stdout.split("\n")[2:5] == ["", "", "le roi"]


def test_bad_line_of_a_file_stops_by_default(translate):
    error = "line 2: not UTF-8"
    assert translate(b"a cat\n\xff\nthe king\n", code=4, error=error).stdout == "un chat\n"
    assert translate(b"a cat\n\xff\nthe king\n", "--on-error", "stop", code=4, error=error).stdout == "un chat\n"


def test_bad_lines_of_standard_input_fail_at_its_end(pipe, tmp_path):
    data = b"a cat\n\xff\nthe king\n\0\n"
    error = "InputError: 2 lines were skipped; the first: line 2: not UTF-8 at byte 1; convert the text to UTF-8"
    assert pipe(data) == f"un chat\n\nle roi\n\n{error}"
    assert pipe(data, output=tmp_path / "out") == error
    assert (tmp_path / "out").read_text() == "un chat\n\nle roi\n\n"
    assert pipe(data, on_error="skip") == "un chat\n\nle roi\n\n"
    assert pipe(data, on_error="stop").startswith("un chat\nInputError: line 2: not UTF-8")


def test_prefixes_stay_with_their_lines_when_one_is_skipped(translate, tmp_path):
    (tmp_path / "prefixes").write_text("un\nle\nle\n")
    result = translate(b"a cat\n\xff\nthe king\n", "--on-error", "skip", "--prefix", tmp_path / "prefixes")
    assert result.stdout == "un chat\n\nle roi\n"


@pytest.mark.parametrize(
    ("data", "output"),
    [
        (b"\xef\xbb\xbfa cat\n\xef\xbb\xbfthe king\n", "un chat\nle roi\n"),  # two files, joined by cat
        ("a\u00a0cat\n".encode(), "un chat\n"),
        ("\u00a0\n".encode(), "\n"),
    ],
)
def test_byte_order_marks_and_spaces_are_read(translate, data, output):
    assert translate(data).stdout == output


def test_compressed_input_is_translated(translate, pipe):
    data = gzip.compress(b"a cat\n") + gzip.compress(b"the king")
    assert translate(data).stdout == pipe(data) == "un chat\nle roi\n"
    error = "cannot be read: Compressed file ended before the end-of-stream marker was reached"
    translate(gzip.compress(b"a cat\nthe king\n", 0)[:-9], code=4, error=error)
    translate(b"\xfd7zXZ\0", code=4, error="is compressed by xz; decompress it, or compress it by gzip instead")


def test_dash_is_a_standard_stream(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pipe(b"a cat\n", input=Path("-"), output=Path("-")) == "un chat\n"
    assert list(Path().iterdir()) == []


def test_translation_that_max_length_ends_is_named(translate):
    result = translate(b"a cat\n\nthis dog sees a tree\n", "--beam", 1, "--max-length", 3)
    assert result.stderr == "warning: line 3: translation stopped at 3 tokens (--max-length)\n"
    rows = translate(b"this dog sees a tree\n", "--beam", 1, "--max-length", 3, "--format", "jsonl").stdout
    assert not json.loads(rows)["translations"][0]["finished"]


@pytest.mark.parametrize("format", ["text", "moses"])
def test_generated_line_breaks_stay_on_one_line(format):
    """Bytes of a model with byte pieces can be line feeds."""
    translation = Translation("a\nb\r\0c", -1.0, -1.0, ("a",), ("x",))
    assert _format(translation, "x", 1, 1, format).count("\n") == 1
    assert "a b  c" in _format(translation, "x", 1, 1, format)


@pytest.fixture(scope="module")
def embedded_model():
    return edge_attn.load(EMBEDDED_BUNDLE)


ODD = ["a \ud83d cat", "\udcff", "\ude00\ud83d", "a \0 cat", "\ufeffa cat", "a\u200bcat"]


@pytest.mark.parametrize("sentence", ODD)
def test_half_a_character_is_unknown_and_no_sentence_is_lost(embedded_model, sentence):
    first, odd, last = embedded_model.translate(["I am cold.", sentence, "Where is the station?"], beam=1)
    assert [first.text, last.text] == [
        translation.text for translation in embedded_model.translate(["I am cold.", "Where is the station?"], beam=1)
    ]
    assert isinstance(odd.text, str)
    [score] = embedded_model.score([(sentence, sentence)])
    assert score.log_prob < 0


def test_sentences_of_a_line_are_translated_by_themselves(translate, tmp_path):
    """The toy model has no marks; the splitter has, and the marks are unknown words of it."""
    options = ["--split-sentences", "--alignments", tmp_path / "aligned"]
    single = [translate(line).stdout for line in (b"The king.", b"A cat.")]
    result = translate(b"The king.  A cat.\n\nA cat.\n", *options)
    assert result.stdout == f"{single[0].strip()}  {single[1].strip()}\n\n{single[1]}"
    lines = (tmp_path / "aligned").read_text().splitlines()
    assert lines[1] == ""
    assert len({link.split("-")[1] for link in lines[0].split()}) == len(result.stdout.splitlines()[0].split())
    sources = {int(link.split("-")[0]) for link in lines[0].split()}
    assert max(sources) >= 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--n-best", 2], "--split-sentences joins one translation of each sentence"),
        (["--prefix", "input"], "--split-sentences and --prefix exclude each other"),
    ],
)
def test_sentences_are_not_split_with_other_results(translate, tmp_path, monkeypatch, options, error):
    monkeypatch.chdir(tmp_path)
    translate(b"a cat\n", "--split-sentences", *options, code=2, error=error)


def test_words_are_aligned_on_request(embedded_model, edge_attn_cli, tmp_path):
    (tmp_path / "input").write_text("Where is the station?\n\n")
    (tmp_path / "pairs.tsv").write_text("Where is the station?\tO\u00f9 est la gare ?\n")
    options = ["--words", "--alignments", tmp_path / "aligned"]
    result = edge_attn_cli("translate", EMBEDDED_BUNDLE, "--input", tmp_path / "input", *options)
    words = result.stdout.splitlines()[0].split()
    links = [tuple(map(int, link.split("-"))) for link in (tmp_path / "aligned").read_text().splitlines()[0].split()]
    assert [j for _, j in links] == list(range(len(words)))
    assert all(0 <= i < 4 for i, _ in links)
    assert {j: i for i, j in links}[words.index("gare")] == 3
    output = edge_attn_cli("align", EMBEDDED_BUNDLE, tmp_path / "pairs.tsv", "--words").stdout.split()
    assert [link.split("-")[1] for link in output] == ["0", "1", "2", "3", "4"]
    assert output[3] == "3-3"
