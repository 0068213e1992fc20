"""`edge-attn translate` answers each line at once and in order, and names invalid lines."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from edge_attn.runtimes.commands import line_io
from edge_attn.text.lines import LONGEST_LINE


def test_standard_input_is_translated_in_order(run_edge_attn, toy_bundle):
    result = run_edge_attn("translate", toy_bundle, input=b"the old king\na cat\n\nevery dog sees a tree\n")
    assert result.stdout.decode() == "le roi vieux\nun chat\n\nchaque chien voit un arbre\n"
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("lines", "output"),
    [
        (b"", ""),
        (b"\n", "\n"),
        (b"a cat", "un chat\n"),
        (b"a cat\r\nthe dog\r\n", "un chat\nle chien\n"),
        (b"\n  \na cat\n\t\n\n", "\n\nun chat\n\n\n"),
        (b"\xef\xbb\xbfa cat\n", "un chat\n"),
        ("the \u2028 cat\n".encode(), "le chat\n"),
    ],
)
def test_each_line_has_one_line_of_output(translate, lines, output):
    assert translate(lines).stdout == output


def test_unknown_characters_are_translated(translate):
    result = translate("a \u2603 cat\n\U00013080\n".encode())
    assert len(result.stdout.split("\n")) == 3


def test_input_is_longer_than_a_window(translate, monkeypatch):
    monkeypatch.setattr(line_io, "WINDOW", 7)
    lines = ["a cat", "the old king", "", "this dog sees a tree"] * 11
    translations = ["un chat", "le roi vieux", "", "ce chien voit un arbre"] * 11
    assert translate("\n".join(lines).encode()).stdout == "\n".join([*translations, ""])


def test_n_best_text_has_n_lines_per_input_line(translate):
    lines = translate(b"a cat\n\nthe king\n", "--n-best", 3).stdout.split("\n")
    assert len(lines) == 3 * 3 + 1
    assert (lines[0], lines[3:6], lines[6]) == ("un chat", ["", "", ""], "le roi")


def test_jsonl_contains_tokens_scores_and_alignments(translate):
    output = translate(b"a cat\n\n", "--format", "jsonl", "--n-best", 2).stdout
    items = [json.loads(line) for line in output.split("\n")[:-1]]
    assert [(item["line"], item["source"]) for item in items] == [(1, "a cat"), (2, "")]
    assert items[0]["source_tokens"] == ["a", "cat", "</s>"]
    first, second = items[0]["translations"]
    assert (first["text"], first["tokens"], first["alignment"], first["finished"]) == (
        "un chat",
        ["un", "chat"],
        "0-0 1-1",
        True,
    )
    assert first["score"] == pytest.approx(first["log_prob"] / 3)
    assert first["score"] >= second["score"]
    assert [t["text"] for t in items[1]["translations"]] == [""]


def test_moses_format_has_four_fields(translate):
    lines = translate(b"a cat\nthe king\n", "--format", "moses", "--n-best", 2).stdout.split("\n")[:-1]
    fields = [line.split(" ||| ") for line in lines]
    assert [field[0] for field in fields] == ["0", "0", "1", "1"]
    assert fields[0][1] == "un chat"
    assert fields[0][2].startswith("LogProb= -")
    assert float(fields[0][3]) >= float(fields[1][3])


def test_alignments_have_one_line_per_input_line(translate, tmp_path):
    translate(b"a red cat\n\nthe king", "--alignments", tmp_path / "aligned")
    assert (tmp_path / "aligned").read_text() == "0-0 2-1 1-2\n\n0-0 1-1\n"


def test_output_is_a_file_without_leftovers(translate, tmp_path):
    assert translate(b"a cat\n", "--output", tmp_path / "out").stdout == ""
    assert (tmp_path / "out").read_bytes() == b"un chat\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input", "out"]


def test_output_is_replaced_only_on_success(translate, tmp_path):
    (tmp_path / "out").write_text("before")
    (tmp_path / "link").symlink_to("out")
    translate(b"a cat\n\xff", "--output", tmp_path / "out", code=4, error="line 2")
    assert (tmp_path / "out").read_text() == "before"
    translate(b"a cat\n", "--output", tmp_path / "link")
    assert (tmp_path / "out").read_text() == "un chat\n"
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input", "link", "out"]


def test_pipe_is_written_and_not_replaced(translate, tmp_path):
    """The same holds for devices such as /dev/stdout."""
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        translate(b"a cat\n", "--output", tmp_path / "fifo")
        assert os.read(reader, 100) == b"un chat\n"
    finally:
        os.close(reader)
    assert (tmp_path / "fifo").is_fifo()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"a \xff cat", "line 3: not UTF-8 at byte 3; convert the text to UTF-8"),
        (b"a \0 cat", "line 3: contains a NUL byte; the input is not text"),
        (b"a" * (LONGEST_LINE + 1), f"line 3: more than {LONGEST_LINE} bytes; put one sentence or one pair on a line"),
        (b"a" * (3 * LONGEST_LINE), f"line 3: more than {LONGEST_LINE} bytes"),
    ],
)
@pytest.mark.parametrize("after", [b"", b"\na dog\n"])
def test_invalid_line_is_named_after_earlier_lines_are_answered(translate, tmp_path, line, error, after):
    lines = b"a cat\nthe king\n" + line + after
    assert translate(lines, code=4, error=error).stdout == "un chat\nle roi\n"
    translate(lines, "--output", tmp_path / "out", "--alignments", tmp_path / "aligned", code=4, error=error)
    assert [path.name for path in tmp_path.iterdir()] == ["input"]


def test_long_line_is_truncated_with_a_warning(translate):
    result = translate(b"a cat\n" + b"this dog sees a tree and " * 4200 + b"\nthe king\n")
    lines = result.stdout.split("\n")
    assert (lines[0], lines[2]) == ("un chat", "le roi")
    assert lines[1].startswith("ce chien voit un ")
    assert result.stderr == "warning: line 2: only the first 19 of 25200 tokens were translated\n"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--beam", 0], "--beam must be at least 1, got 0"),
        (["--beam", 2, "--n-best", 3], "--n-best must be between 1 and the beam (--beam 2), got 3"),
        (["--beam", 16], "a beam of 16 needs 17 candidates a step, this bundle has 16; use --beam 15 or less"),
        (["--max-length", 0], "--max-length must be at least 1"),
        (["--length-penalty", "nan"], "--length-penalty must be between 0 and 10, got nan"),
        (["--runtime", "tvm"], "'tvm' is not one of ort-cpu, ort-cuda, "),
        (["--runtime", "torch"], "the runtime torch runs a checkpoint"),
    ],
)
def test_invalid_option_is_a_usage_error(translate, tmp_path, options, error):
    assert translate(b"a cat\n", "--output", tmp_path / "out", *options, code=2, error=error).stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--format", "xml"], ["--threads", "0"], ["--beam", "four"], ["--nonsense"]])
def test_error_of_click_is_a_usage_error(translate, options):
    assert translate(b"a cat\n", *options, code=2).stdout == ""


def test_unreadable_and_unwritable_files_are_named(edge_attn_cli, toy_bundle, translate, tmp_path):
    absent, folder, file = tmp_path / "absent", tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("")
    edge_attn_cli("translate", toy_bundle, "--input", absent, code=4, error=f"{absent} cannot be read: No such file")
    edge_attn_cli("translate", toy_bundle, "--input", folder, code=4, error=f"{folder} cannot be read: Is a directory")
    for option in ("--output", "--alignments"):
        for path in (file / "out", folder):
            translate(b"a cat\n", option, path, code=4, error=f"{path} cannot be written: ")
        translate(b"a cat\n", option, tmp_path / "new" / option / "out")
        assert (tmp_path / "new" / option / "out").read_text().count("\n") == 1
        translate(b"a cat\n", option, toy_bundle, code=4, error="is a bundle, and is not overwritten")
    edge_attn_cli("translate", absent, code=4, error=f"{absent} is not a bundle: there is no such file or folder")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")  # noqa: PTH110
def test_full_disk_names_the_file(translate, tmp_path):
    translate(b"a cat\n", "--output", "/dev/full", code=4, error="/dev/full cannot be written: No space left")
    translate(b"a cat\n", "--alignments", "/dev/full", code=4, error="/dev/full cannot be written: No space left")
    options = ["--output", tmp_path / "out", "--alignments", "/dev/full"]
    translate(b"a cat\n", *options, code=4, error="/dev/full cannot be written")
    assert not (tmp_path / "out").exists()


def test_missing_runtime_exits_with_3(run_edge_attn, toy_bundle):
    result = run_edge_attn("translate", toy_bundle, input=b"a cat\n", absent=("onnxruntime",))
    assert result.returncode == 3
    assert result.stderr == b"edge-attn: onnxruntime is not installed; run: pip install 'edge-attn[cpu]'\n"


def test_closed_standard_input_is_an_error(run_edge_attn, toy_bundle):
    result = run_edge_attn("translate", toy_bundle, before="sys.stdin = None")
    assert result.returncode == 4
    assert result.stderr == b"edge-attn: standard input is closed; give a file with --input\n"


def test_closed_standard_output_is_an_error(run_edge_attn, toy_bundle):
    result = run_edge_attn("translate", toy_bundle, input=b"a cat\n", before="sys.stdout = None")
    assert (result.returncode, result.stderr) == (
        4,
        b"edge-attn: standard output is closed; give a file with --output\n",
    )


def test_line_without_translation_is_named(translate):
    options = ["--min-length", 100, "--no-repeat-ngram", 1]
    warning = "warning: line 2 has no translation; the options exclude every token, or the model returns NaN\n"
    result = translate(b"\na cat\n", *options)
    assert (result.stdout, result.stderr) == ("\n\n", warning)
    result = translate(b"\na cat\n", *options, "--format", "jsonl")
    content = json.loads(result.stdout.splitlines()[1], parse_constant=pytest.fail)
    [hypothesis] = content["translations"]
    assert (hypothesis["text"], hypothesis["score"], hypothesis["log_prob"]) == ("", "nan", "nan")
    assert result.stderr == warning


def test_checkpoint_needs_torch(run_edge_attn, toy_checkpoint):
    result = run_edge_attn("translate", toy_checkpoint, input=b"a cat\n", absent=("torch",))
    assert result.returncode == 3
    assert result.stderr == b"edge-attn: torch is not installed; run: pip install 'edge-attn[export]'\n"


def test_bundle_needs_neither_torch_nor_onnx(run_edge_attn, toy_bundle):
    result = run_edge_attn("translate", toy_bundle, input=b"a cat\n", absent=("torch", "onnx", "onnxscript"))
    assert (result.returncode, result.stdout, result.stderr) == (0, b"un chat\n", b"")


@pytest.mark.usefixtures("needs_torch")
def test_checkpoint_runs_on_torch(edge_attn_cli, toy_checkpoint, tmp_path):
    (tmp_path / "input").write_text("a cat\n")
    result = edge_attn_cli("translate", toy_checkpoint, "--input", tmp_path / "input")
    assert result.stdout == "un chat\n"
    assert result.stderr == (
        f"warning: {toy_checkpoint} is a checkpoint: torch runs it; for a device: edge-attn export {toy_checkpoint} "
        "--out BUNDLE\n"
    )


def test_output_is_utf_8_in_every_locale(run_edge_attn, toy_bundle):
    env = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    options = ["translate", toy_bundle, "--format", "jsonl"]
    result = run_edge_attn(*options, input="a c\u00e2t \u2603\n".encode(), env=env)
    assert (result.returncode, result.stderr) == (0, b"")
    assert json.loads(result.stdout)["source"] == "a c\u00e2t \u2603"


def test_closed_pipe_exits_with_141(start_edge_attn, toy_bundle):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start_edge_attn("translate", toy_bundle, "--beam", 1, **pipes) as process:
        try:
            process.stdin.write(b"a cat\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"un chat\n"
            process.stdout.close()  # head -1
            process.stdin.write(b"a dog\n")
            process.stdin.close()
            assert process.stderr.read() == b""
            assert process.wait(30) == 141
        finally:
            process.kill()


def read_until(descriptor: int, end: bytes, seconds: float = 60) -> bytes:
    """Read from `descriptor` up to `end`."""
    output, deadline = b"", time.monotonic() + seconds
    while end not in output:
        ready = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]
        assert ready, f"timeout after {output!r}"
        output += os.read(descriptor, 4096)
    return output


def test_line_from_a_pipe_is_answered_at_once(start_edge_attn, toy_bundle):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start_edge_attn("translate", toy_bundle, **pipes) as process:
        try:
            for line, expected in ((b"a cat\n", b"un chat\n"), (b"the king\n", b"le roi\n"), (b"\n", b"\n")):
                process.stdin.write(line)
                process.stdin.flush()
                assert read_until(process.stdout.fileno(), b"\n") == expected
            process.stdin.close()
            assert process.wait(30) == 0
            assert process.stderr.read() == b""  # no progress bar, because this is not a terminal
        finally:
            process.kill()


def test_incomplete_line_waits_for_its_end(start_edge_attn, toy_bundle):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with start_edge_attn("translate", toy_bundle, **pipes) as process:
        try:
            for part in (b"a cat\nthe", b" king"):
                process.stdin.write(part)
                process.stdin.flush()
                read_until(process.stdout.fileno(), b"\n") if b"\n" in part else time.sleep(0.2)
            process.stdin.close()
            assert process.stdout.read() == b"le roi\n"
        finally:
            process.kill()


def test_line_from_a_terminal_is_answered_at_once(start_edge_attn, toy_bundle):
    terminal, inside = pty.openpty()
    streams = {"stdin": inside, "stdout": inside, "stderr": inside, "start_new_session": True}
    with start_edge_attn("translate", toy_bundle, **streams) as process:
        try:
            os.close(inside)
            for line, answer in ((b"a cat\n", b"un chat\r\n"), (b"the king\n", b"le roi\r\n")):
                os.write(terminal, line)
                echo = line.replace(b"\n", b"\r\n")
                assert read_until(terminal, answer) == echo + answer  # and no progress bar
            os.write(terminal, b"\x04")
            assert process.wait(30) == 0
        finally:
            process.kill()
            os.close(terminal)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_only_on_a_terminal(start_edge_attn, toy_bundle, tmp_path, shown):
    (tmp_path / "input").write_text("a cat\n")
    options = ["translate", toy_bundle, "--input", tmp_path / "input", "--output", tmp_path / "out"]
    if shown:
        reader, writer = pty.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # a bar needs a width
    else:
        reader, writer = os.pipe()
    with start_edge_attn(*options, stderr=writer) as process:
        try:
            os.close(writer)
            output = read_until(reader, b"/1 [") if shown else os.read(reader, 100)
            assert shown or output == b""
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(reader)


def test_interruption_leaves_no_file_and_exits_with_130(start_edge_attn, toy_bundle, tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    before = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    options = ["translate", toy_bundle, "--alignments", tmp_path / "aligned"]
    with start_edge_attn(*options, before=before, **pipes) as process:
        try:
            process.stdin.write(b"a cat\n")
            process.stdin.flush()
            read_until(process.stdout.fileno(), b"\n")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert process.stderr.read() == b""
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []


def peak_memory(start_edge_attn, bundle, path, output) -> float:
    """Return the peak resident memory of a translation in MB. ru_maxrss would include the process before exec."""
    before = (
        "import atexit, re\n"
        "status = lambda: open('/proc/self/status').read()\n"
        "atexit.register(lambda: print(re.search(r'VmHWM:\\s*(\\d+) kB', status())[1], file=sys.stderr))\n"
    )
    options = ["translate", bundle, "--beam", 1, "--threads", 1, "--input", path, "--output", output]
    with start_edge_attn(*options, before=before, stderr=subprocess.PIPE) as process:
        try:
            errors = process.communicate(timeout=600)[1]
        finally:
            process.kill()
    assert process.returncode == 0, errors
    return int(errors) / 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_does_not_grow_with_the_input(start_edge_attn, toy_bundle, toy_pairs, tmp_path):
    sources = [line.split("\t")[0] for line in toy_pairs.read_text(encoding="utf-8").splitlines()]
    peaks = []
    for count in (20_000, 100_000):
        path = tmp_path / f"{count}.txt"
        path.write_text("".join(f"{sources[i * 7 % len(sources)]}\n" for i in range(count)))
        peaks.append(peak_memory(start_edge_attn, toy_bundle, path, tmp_path / f"{count}.out"))
        assert (tmp_path / f"{count}.out").read_bytes().count(b"\n") == count
    assert peaks[1] - peaks[0] <= 20, peaks
    assert peaks[0] < 300, f"{peaks} MB are more than the toy model can use: the measurement is wrong"


def test_sentences_of_the_command_line_are_translated(edge_attn_cli, toy_bundle):
    result = edge_attn_cli("translate", toy_bundle, "the red king", "", "a black cat\na child", "-b", 1)
    assert result.stdout.splitlines()[:2] == ["le roi rouge", ""]
    assert len(result.stdout.splitlines()) == 4


def test_sentences_and_an_input_file_exclude_each_other(edge_attn_cli, toy_bundle, toy_pairs):
    error = "--input and sentences exclude each other"
    edge_attn_cli("translate", toy_bundle, "the red king", "--input", toy_pairs, code=2, error=error)


def test_sentence_that_is_not_utf_8_is_refused(edge_attn_cli, toy_bundle):
    edge_attn_cli("translate", toy_bundle, "\udcff", code=4, error="line 1: not UTF-8 at byte 1")
