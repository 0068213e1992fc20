"""`edge-attn translate`: translation of lines as they arrive, in order and in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_attn.bundle.output_file import is_stream
from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import InputError, UsageError
from edge_attn.runtimes.commands.arguments import open_model
from edge_attn.runtimes.commands.bad_lines import BadLines
from edge_attn.runtimes.commands.line_io import (
    json_line,
    json_number,
    line_bar,
    open_output,
    open_sentences,
    read_windows,
    warn,
)
from edge_attn.runtimes.tasks.alignment import check_attention
from edge_attn.runtimes.tasks.sentence_splitting import join_translations
from edge_attn.runtimes.tasks.sentence_splitting import split_sentences as split
from edge_attn.runtimes.tasks.translation import Translation, Translator
from edge_attn.runtimes.tasks.unk_replacement import check_replacement, read_phrase_table
from edge_attn.text.corpus import check_text_file
from edge_attn.text.lines import STANDARD_STREAM, open_binary, scan_lines
from edge_attn.text.pipeline import Text


def translate_file(
    bundle: Path,
    input: Path | None = None,
    output: Path | None = None,
    config: SearchConfig | None = None,
    format: str = "text",
    alignments: Path | None = None,
    replace_unknown: bool = False,
    phrase_table: Path | None = None,
    prefix: Path | None = None,
    suppress: Sequence[str] = (),
    runtime: str = "ort-cpu",
    options: RuntimeOptions = DEFAULT,
    sentences: Sequence[str] = (),
    on_error: str | None = None,
    words: bool = False,
    split_sentences: bool = False,
    language: str = "en",
) -> int:
    """Translate lines, and return their number. Lines that have arrived are answered before more input is awaited.

    Args:
        bundle: a bundle, or a checkpoint, which runs on torch.
        input: input file, one sentence per line; None is standard input.
        output: output file; None is standard output.
        config: search options.
        format: `text` has one line for each hypothesis, `jsonl` one object for each input line, `moses` the n-best
            format of Moses.
        alignments: output file of token alignments in Pharaoh format, one line for each input line.
        replace_unknown: replace each unknown word by the source word that it attends to most.
        phrase_table: file of replacements for `replace_unknown`, one `source<TAB>target` per line.
        prefix: file with the beginning of each translation, one per line.
        suppress: entries of the target vocabulary that are never generated.
        runtime: runtime of a bundle.
        options: options of the runtime.
        sentences: lines to translate instead of those of `input`.
        on_error: `stop` or `skip` at a line that is not text; None is the default of `BadLines`.
        words: align words, separated by white space, instead of tokens.
        split_sentences: translate each sentence of a line by itself, and join the translations.
        language: language of the input, by which sentences are split.

    Raises:
        InputError: a line is not text, a prefix contains an unknown token, or a file cannot be read or written. The
            lines before it are answered first, and all others if bad lines are skipped.
        UsageError: an option does not fit the model or another option, one file is both `output` and `alignments`, or
            there are both `sentences` and an `input`.
        MissingExtraError: sentences are split, and sentencex is not installed.
    """
    input, output = (None if path == STANDARD_STREAM else path for path in (input, output))
    _check_distinct(output, alignments)
    if sentences and input is not None:
        raise UsageError("`input` and sentences exclude each other; remove one of them")
    for path in (input, prefix, phrase_table):
        if path is not None:
            check_text_file(path)
    bad_lines = BadLines(on_error, is_stream=input is None and not sentences)
    translator = open_model(bundle, runtime, options)
    config = translator.validate_config(config or SearchConfig(), suppress)
    if alignments or words:
        check_attention(translator.runtime, "an alignment")
    if split_sentences:
        _check_splitting(config, prefix, words and translator.text.kind == "characters")
    table = None if phrase_table is None else read_phrase_table(phrase_table)
    replacements = check_replacement(translator.runtime, replace_unknown, table)
    count = 0
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_sentences(sentences) if sentences else open_binary(input))
        prefixes = stack.enter_context(_open_prefixes(prefix, translator, config)) if prefix else None
        writer = stack.enter_context(open_output(output))
        alignment_writer = stack.enter_context(open_output(alignments)) if alignments else None
        aligned = alignment_writer is not None or format == "jsonl"
        shown = stack.enter_context(line_bar(input, hidden=source.isatty()))
        lines = read_windows(source, str(input or "standard input"), bad_lines.stop)
        text = translator.text if words else None
        translated = _translate_windows(
            translator, lines, config, aligned, replacements, prefixes, shown, language if split_sentences else None
        )
        for window in translated:
            for line, translation in window:
                count += 1
                if isinstance(line, InputError):
                    bad_lines.report(line)
                    writer.write(_format_error(line, count, config.returned, format))
                else:
                    _warn_about(translation, count)
                    writer.write(_format(translation, line, count, config.returned, format, text))
                if alignment_writer is not None:
                    alignment_writer.write(_links(translation, text) + "\n")
            writer.flush()
        if prefixes is not None and _has_next(prefixes):
            raise InputError(f"{prefix} has more lines than the input, which has {count}")
    bad_lines.raise_errors()
    return count


def _check_splitting(config: SearchConfig, prefix: Path | None, words_of_characters: bool) -> None:
    if config.returned > 1:
        raise UsageError("`split_sentences` joins one translation of each sentence; ask for one a line")
    if prefix is not None:
        raise UsageError("`split_sentences` and `prefix` exclude each other: a prefix belongs to one sentence")
    if words_of_characters:
        raise UsageError("`split_sentences` and `words` exclude each other for a model of characters")
    split("", "en")  # is the library here


def _check_distinct(output: Path | None, alignments: Path | None) -> None:
    if alignments == STANDARD_STREAM and output is None:
        raise UsageError("standard output cannot contain both the translations and the alignments; give `output`")
    if alignments and output and output.resolve() == alignments.resolve() and not is_stream(output):
        raise UsageError(
            f"{output} cannot contain both the translations and the alignments; use another file for one of them"
        )


def _translate_windows(
    translator: Translator,
    windows: Iterator[list[str | InputError]],
    config: SearchConfig,
    aligned: bool,
    replacements: Mapping[str, str] | None,
    prefixes: Iterator[list[int]] | None,
    shown: Any,
    language: str | None = None,
) -> Iterator[list[tuple[str | InputError, Translation]]]:
    """Yield lists of lines and their translations, as lines arrive. That of a bad line is empty.

    Args:
        translator: the model.
        windows: lists of lines, or of the errors of bad ones.
        config: search options.
        aligned: compute the attention weights too.
        replacements: replacements of unknown words; None leaves unknown words in the text.
        prefixes: target tokens that each translation begins with.
        shown: bar that counts the translated lines.
        language: language by which lines are split into sentences; None translates each line as one sentence.

    Raises:
        InputError: a line is not text, or has no valid prefix. The lines before it are yielded first.
    """
    count = 0
    for lines in windows:
        window_prefixes, error = (None, None) if prefixes is None else _take(prefixes, len(lines), count)
        if window_prefixes is not None:
            lines = lines[: len(window_prefixes)]
        sentences = ["" if isinstance(line, InputError) else line for line in lines]
        parts = [([line], []) if language is None else split(line, language) for line in sentences]
        numbers = [i for i, (part, _) in enumerate(parts) for _ in part]  # line of each sentence
        results: list[Translation] = [Translation("", 0.0, 0.0, (), ())] * len(numbers)
        for i, translation in translator.translate_batches(
            [sentence for part, _ in parts for sentence in part],
            config,
            aligned,
            phrase_table=replacements,
            prefixes=window_prefixes,
        ):
            results[i] = translation
            shown.update(1 / len(parts[numbers[i]][0]))
        remaining = iter(results)
        translations = [
            join_translations([next(remaining) for _ in part] or [Translation("", 0.0, 0.0, (), ())], separators)
            for part, separators in parts
        ]
        yield [(line, translations[i]) for i, line in enumerate(lines)]
        count += len(lines)
        if error is not None:
            raise error


def _warn_about(translation: Translation, number: int) -> None:
    if translation.cut:
        tokens = len(translation.source_tokens) - 1
        warn(f"line {number}: only the first {tokens} of {translation.source_length} tokens were translated")
    if math.isnan(translation.score):
        warn(f"line {number} has no translation; the options exclude every token, or the model returns NaN")
    elif not translation.finished:
        warn(f"line {number}: translation stopped at {len(translation.tokens)} tokens (--max-length)")


def _links(translation: Translation, text: Text | None) -> str:
    """Return the links of tokens or, with the tokenizers, of words."""
    return translation.pharaoh() if text is None else translation.word_pharaoh(text)


def _format(
    translation: Translation, line: str, number: int, n_best: int, format: str, text: Text | None = None
) -> str:
    """Return the output for line `number` of the input, counted from 1. `text` aligns words instead of tokens."""
    hypotheses = translation.n_best or (translation,)
    if format == "jsonl":
        translations = [
            {
                "text": h.text,
                "score": json_number(h.score),
                "log_prob": json_number(h.log_prob),
                "tokens": h.tokens,
                "alignment": _links(h, text),
                "finished": h.finished,
            }
            for h in hypotheses
        ]
        tokens = translation.source_tokens
        return json_line({"line": number, "source": line, "source_tokens": tokens, "translations": translations})
    if format == "moses":  # counts lines from 0
        return "".join(
            f"{number - 1} ||| {_on_one_line(h.text)} ||| LogProb= {h.log_prob:.6f} ||| {h.score:.6f}\n"
            for h in hypotheses
        )
    missing = n_best - len(hypotheses)
    return "".join(f"{_on_one_line(h.text)}\n" for h in hypotheses) + "\n" * missing


def _format_error(error: InputError, number: int, n_best: int, format: str) -> str:
    """Return the output for a bad line: the error in jsonl, empty lines in a text, nothing in an n-best list."""
    if format == "jsonl":
        return json_line({"line": number, "source": None, "error": str(error), "translations": []})
    return "" if format == "moses" else "\n" * n_best


def _on_one_line(text: str) -> str:
    """Return the text without line breaks and NUL, which a model with byte pieces can generate."""
    return text.translate({ord(character): " " for character in "\n\r\0"})


@contextlib.contextmanager
def _open_prefixes(path: Path, translator: Translator, config: SearchConfig) -> Iterator[Iterator[list[int]]]:
    """Open a file of prefixes, and yield an iterator over the tokens of each line, which reads them on demand."""

    def parse(line: str, where: str) -> list[int]:
        try:
            return translator.prefix(line, config)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    with contextlib.closing(scan_lines(path, parse)) as lines:
        yield (line for line in lines if not isinstance(line, InputError))  # a bad line is raised


def _take(prefixes: Iterator[list[int]], count: int, line: int) -> tuple[list[list[int]], InputError | None]:
    """Return the next `count` prefixes, or those before an error and the error. `line` lines were read before."""
    taken: list[list[int]] = []
    try:
        for tokens in itertools.islice(prefixes, count):
            taken.append(tokens)
    except InputError as error:
        return taken, error
    return taken, InputError(f"line {line + len(taken) + 1} has no prefix") if len(taken) < count else None


def _has_next(prefixes: Iterator[list[int]]) -> bool:
    """Return whether there is another prefix, valid or not."""
    try:
        return next(prefixes, None) is not None
    except InputError:
        return True
