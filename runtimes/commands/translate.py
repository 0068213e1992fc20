"""`edge-attn translate`: translation of lines as they arrive, in order and in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from edge_attn.bundle.output_file import is_stream
from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import InputError, UsageError
from edge_attn.runtimes.commands.arguments import open_model
from edge_attn.runtimes.commands.line_io import (
    json_line,
    json_number,
    line_bar,
    open_input,
    open_output,
    open_sentences,
    read_windows,
    warn,
)
from edge_attn.runtimes.tasks.alignment import check_attention
from edge_attn.runtimes.tasks.translation import Translation, Translator
from edge_attn.runtimes.tasks.unk_replacement import check_replacement, read_phrase_table
from edge_attn.text.corpus import LONGEST_LINE, check_text_file, decode_line


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

    Raises:
        InputError: a line is not text, a prefix contains an unknown token, or a file cannot be read or written. The
            lines before it are answered first.
        UsageError: an option does not fit the model, one file is both `output` and `alignments`, or there are both
            `sentences` and an `input`.
    """
    _check_distinct(output, alignments)
    if sentences and input is not None:
        raise UsageError("`input` and sentences exclude each other; remove one of them")
    for path in (input, prefix, phrase_table):
        if path is not None:
            check_text_file(path)
    translator = open_model(bundle, runtime, options)
    config = translator.validate_config(config or SearchConfig(), suppress)
    if alignments:
        check_attention(translator.runtime, "an alignment")
    table = None if phrase_table is None else read_phrase_table(phrase_table)
    replacements = check_replacement(translator.runtime, replace_unknown, table)
    count = 0
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_sentences(sentences) if sentences else open_input(input))
        prefixes = stack.enter_context(_open_prefixes(prefix, translator, config)) if prefix else None
        writer = stack.enter_context(open_output(output))
        alignment_writer = stack.enter_context(open_output(alignments)) if alignments else None
        aligned = alignment_writer is not None or format == "jsonl"
        shown = stack.enter_context(line_bar(input, hidden=source.isatty()))
        for window in _translate_windows(translator, source, config, aligned, replacements, prefixes, shown):
            for line, translation in window:
                count += 1
                _warn_about(translation, count, translator.max_source)
                writer.write(_format(translation, line, count, config.returned, format))
                if alignment_writer is not None:
                    alignment_writer.write(translation.pharaoh() + "\n")
            writer.flush()
        if prefixes is not None and _has_next(prefixes):
            raise InputError(f"{prefix} has more lines than the input, which has {count}")
    return count


def _check_distinct(output: Path | None, alignments: Path | None) -> None:
    if output and alignments and output.resolve() == alignments.resolve() and not is_stream(output):
        raise UsageError(
            f"{output} cannot contain both the translations and the alignments; use another file for one of them"
        )


def _translate_windows(
    translator: Translator,
    source: BinaryIO,
    config: SearchConfig,
    aligned: bool,
    replacements: Mapping[str, str] | None,
    prefixes: Iterator[list[int]] | None,
    shown: Any,
) -> Iterator[list[tuple[str, Translation]]]:
    """Yield lists of lines and their translations, as lines arrive.

    Args:
        translator: the model.
        source: input, one sentence per line.
        config: search options.
        aligned: compute the attention weights too.
        replacements: replacements of unknown words; None leaves unknown words in the text.
        prefixes: target tokens that each translation begins with.
        shown: bar that counts the translated lines.

    Raises:
        InputError: a line is not text, or has no valid prefix. The lines before it are yielded first.
    """
    count = 0
    for lines in read_windows(source):
        window_prefixes, error = (None, None) if prefixes is None else _take(prefixes, len(lines), count)
        if window_prefixes is not None:
            lines = lines[: len(window_prefixes)]
        translations: dict[int, Translation] = {}
        for i, translation in translator.translate_batches(
            lines, config, aligned, phrase_table=replacements, prefixes=window_prefixes
        ):
            translations[i] = translation
            shown.update()
        yield [(line, translations[i]) for i, line in enumerate(lines)]
        count += len(lines)
        if error is not None:
            raise error


def _warn_about(translation: Translation, number: int, max_source: int) -> None:
    if translation.cut:
        warn(f"line {number} has more than {max_source} tokens; it was truncated before translation")
    if math.isnan(translation.score):
        warn(f"line {number} has no translation; the options exclude every token, or the model returns NaN")


def _format(translation: Translation, line: str, number: int, n_best: int, format: str) -> str:
    """Return the output for line `number` of the input, counted from 1."""
    hypotheses = translation.n_best or (translation,)
    if format == "jsonl":
        translations = [
            {
                "text": h.text,
                "score": json_number(h.score),
                "log_prob": json_number(h.log_prob),
                "tokens": h.tokens,
                "alignment": h.pharaoh(),
                "finished": h.finished,
            }
            for h in hypotheses
        ]
        tokens = translation.source_tokens
        return json_line({"line": number, "source": line, "source_tokens": tokens, "translations": translations})
    if format == "moses":  # counts lines from 0
        return "".join(
            f"{number - 1} ||| {h.text} ||| LogProb= {h.log_prob:.6f} ||| {h.score:.6f}\n" for h in hypotheses
        )
    missing = n_best - len(hypotheses)
    return "".join(f"{h.text}\n" for h in hypotheses) + "\n" * missing


@contextlib.contextmanager
def _open_prefixes(path: Path, translator: Translator, config: SearchConfig) -> Iterator[Iterator[list[int]]]:
    """Open a file of prefixes, and yield an iterator over the tokens of each line, which reads them on demand."""
    with open_input(path) as file:

        def tokens() -> Iterator[list[int]]:
            for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 2), b""), 1):
                where = f"{path}: line {number}"
                line = decode_line(raw, where, number == 1)
                try:
                    prefix = translator.prefix(line, config)
                except InputError as error:
                    raise InputError(f"{where}: {error}") from error
                yield prefix

        yield tokens()


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
