"""`edge-attn translate`: lines in, translations out, in order, as they come, in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import select
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import InputError, UsageError
from edge_attn.runtimes.base import DEFAULT
from edge_attn.runtimes.commands.line_io import (
    _decode,
    _direct,
    _open_input,
    json_number,
    open_output,
    output_errors,
    standard_output,
)
from edge_attn.runtimes.tasks.alignment import check_attention
from edge_attn.runtimes.tasks.translation import Translation, Translator
from edge_attn.runtimes.tasks.unk_replacement import check_replacement, read_phrase_table
from edge_attn.text.corpus import LONGEST_LINE

WINDOW = 1024
"""Lines read ahead, at most, so that sentences of like length share a batch."""
FORMATS = ("text", "jsonl", "moses")


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
) -> int:
    """Translates each line of `input` (standard input) into `output` (standard output); gives the number of lines.

    A line that has come is answered before the next is waited for, so a terminal or a pipe gets its answer at once.
    Each line of the file `prefix` is what the translation of that line begins with; `suppress` are entries of the
    target vocabulary that never come.

    Raises:
        InputError: a line that is not text, or a prefix that the model cannot say, named by its number; the lines
            before it are answered. A phrase table that cannot be read.
        UsageError: unknown words are to be replaced or alignments written, and the model has no attention; an option
            that the model cannot serve; one file for translations and alignments.
    """
    if output and alignments and output.resolve() == alignments.resolve() and not _direct(output):
        raise UsageError(f"{output} cannot hold both the translations and the alignments; give another file for one")
    translator = Translator.open(bundle, runtime, options)
    config = translator.validate_config(config or SearchConfig(), suppress)
    if alignments:
        check_attention(translator.runtime, "an alignment")
    phrases = check_replacement(
        translator.runtime, replace_unknown, None if phrase_table is None else read_phrase_table(phrase_table)
    )
    count = 0
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_open_input(input))
        begun = stack.enter_context(_prefixes(prefix, translator, config)) if prefix else None
        target = stack.enter_context(open_output(output)) if output else standard_output()
        aligned = stack.enter_context(open_output(alignments)) if alignments else None
        want = aligned is not None or format == "jsonl"
        bar = stack.enter_context(tqdm(unit=" lines", disable=True if source.isatty() else None, file=sys.stderr))
        for window in _windows(source):
            lines = [line for line in window if isinstance(line, str)]
            errors = [line for line in window if isinstance(line, InputError)]
            prefixes: list[list[int]] | None = None
            if begun is not None:
                prefixes, missing = _take(begun, len(lines), count)
                lines, errors = lines[: len(prefixes)], missing + errors
            found = dict(translator.translate_iter(lines, config, want, phrase_table=phrases, prefixes=prefixes))
            for i, line in enumerate(lines):
                translation = found.pop(i)
                if translation.cut:
                    print(
                        f"warning: line {count + 1} has more than {translator.max_source} tokens; "
                        f"only the first were translated",
                        file=sys.stderr,
                    )
                if math.isnan(translation.score):
                    print(
                        f"warning: line {count + 1} has no translation; the options leave nothing that can follow, or "
                        f"the model gives no number",
                        file=sys.stderr,
                    )
                with output_errors(output):
                    target.write(_show(translation, line, count, config.returned, format))
                if aligned is not None:
                    with output_errors(alignments):
                        aligned.write(translation.pharaoh() + "\n")
                count += 1
            with output_errors(output):
                target.flush()
            bar.update(len(lines))
            for error in errors:
                raise error
        if begun is not None and next(begun, None) is not None:
            raise InputError(f"{prefix} has more lines than the input, which has {count}")
    return count


def _show(translation: Translation, line: str, index: int, n_best: int, format: str) -> str:
    hypotheses = translation.n_best or (translation,)
    if format == "jsonl":
        shown = [
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
        content = {"line": index + 1, "source": line, "source_tokens": translation.source_tokens, "translations": shown}
        return json.dumps(content, ensure_ascii=False) + "\n"
    if format == "moses":
        return "".join(f"{index} ||| {h.text} ||| LogProb= {h.log_prob:.6f} ||| {h.score:.6f}\n" for h in hypotheses)
    texts = [h.text for h in hypotheses]
    return "".join(f"{text}\n" for text in texts + [""] * (n_best - len(texts)))


def _windows(source: BinaryIO) -> Iterator[list[str | InputError]]:
    """Lists of lines: at most WINDOW, and no more than can be had without waiting. One that is no text ends them."""
    number, lines, rest, ended = 0, [], b"", False
    while not ended:
        chunk = os.read(source.fileno(), 1 << 16)
        ended = not chunk
        *whole, rest = (rest + chunk).split(b"\n")
        if ended and rest:
            whole.append(rest)
        for raw in whole:
            number += 1
            lines.append(_decode(raw, number))
            if isinstance(lines[-1], InputError):
                yield lines
                return
            if len(lines) == WINDOW:
                yield lines
                lines = []
        if len(rest) > LONGEST_LINE:
            yield [*lines, _decode(rest, number + 1)]
            return
        if lines and (ended or not _ready(source)):
            yield lines
            lines = []


@contextlib.contextmanager
def _prefixes(path: Path, translator: Translator, config: SearchConfig) -> Iterator[Iterator[list[int] | InputError]]:
    """The tokens of each line of `path`, read as they are asked for. One that is no prefix ends them."""

    def each(file: BinaryIO) -> Iterator[list[int] | InputError]:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 2), b""), 1):
            line = _decode(raw.removesuffix(b"\n"), number)
            try:
                if isinstance(line, InputError):
                    raise line
                yield translator.prefix(line, config)
            except InputError as error:
                yield InputError(f"{path}: {error}" if error is line else f"{path}: line {number}: {error}")
                return

    with _open_input(path) as file:
        yield each(file)


def _take(
    prefixes: Iterator[list[int] | InputError], wanted: int, before: int
) -> tuple[list[list[int]], list[InputError]]:
    """The next prefixes up to the number `wanted`, and what keeps the others away."""
    taken: list[list[int]] = []
    for prefix in itertools.islice(prefixes, wanted):
        if isinstance(prefix, InputError):
            return taken, [prefix]
        taken.append(prefix)
    missing = [InputError(f"line {before + len(taken) + 1} has no prefix")] if len(taken) < wanted else []
    return taken, missing


def _ready(source: BinaryIO) -> bool:
    return bool(select.select([source.fileno()], [], [], 0)[0])
