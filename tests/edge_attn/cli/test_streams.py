"""Standard streams that are closed, full or without a reader give a result or one sentence, never a traceback."""

from __future__ import annotations

import os
import subprocess

import pytest

SENTENCE = b"a b\n"


@pytest.fixture
def sentences(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(SENTENCE)
    return path


def closing(*descriptors: int):
    """Return a function that closes descriptors in the new process, as `2>&-` in a shell."""
    return lambda: [os.close(descriptor) for descriptor in descriptors]


@pytest.fixture
def translation(run_edge_attn, toy_bundle):
    return run_edge_attn("translate", toy_bundle, input=SENTENCE).stdout


def test_closed_standard_error_changes_nothing(run_edge_attn, toy_bundle, sentences, translation):
    result = run_edge_attn("translate", toy_bundle, "--input", sentences, preexec_fn=closing(2))
    assert (result.returncode, result.stdout) == (0, translation)


def test_closed_standard_error_receives_nothing_of_an_error(run_edge_attn, sentences):
    result = run_edge_attn("translate", "no-bundle", "--input", sentences, preexec_fn=closing(2))
    assert (result.returncode, result.stdout) == (4, b"")


def test_all_streams_closed_write_the_file_only(run_edge_attn, toy_bundle, sentences, translation, tmp_path):
    output = tmp_path / "out.txt"
    arguments = ("translate", toy_bundle, "--input", sentences, "--output", output)
    assert run_edge_attn(*arguments, preexec_fn=closing(0, 1, 2)).returncode == 0
    assert output.read_bytes() == translation


@pytest.mark.parametrize(
    ("descriptor", "error"),
    [(0, b"standard input is closed; give a file"), (1, b"standard output is closed; give a file")],
)
def test_closed_stream_of_the_text_is_bad_input(run_edge_attn, toy_bundle, descriptor, error):
    result = run_edge_attn("translate", toy_bundle, input=SENTENCE, preexec_fn=closing(descriptor))
    assert result.returncode == 4
    assert error in result.stderr
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize("command", [["inspect"], ["verify", "--level", "L1"], ["translate"], ["--help"]])
def test_full_standard_output_is_bad_input(run_edge_attn, toy_bundle, command):
    arguments = command if command == ["--help"] else [*command, toy_bundle]
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        result = run_edge_attn(*arguments, input=SENTENCE, stdout=full)
    assert result.returncode == 4
    assert result.stderr == b"edge-attn: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize(("command", "code"), [(["--nonsense"], 2), (["inspect", "no-bundle"], 4)])
def test_full_standard_error_leaves_the_exit_code(run_edge_attn, command, code):
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        assert run_edge_attn(*command, stderr=full).returncode == code


@pytest.mark.parametrize("command", [["inspect"], ["--help"]])
def test_output_without_a_reader_exits_like_a_closed_pipe(run_edge_attn, toy_bundle, command):
    read_end, write_end = os.pipe()
    os.close(read_end)
    arguments = command if command == ["--help"] else [*command, toy_bundle]
    with os.fdopen(write_end, "wb") as pipe:
        result = run_edge_attn(*arguments, stdout=pipe)
    assert (result.returncode, result.stderr) == (141, b"")


def test_standard_error_without_a_reader_changes_nothing(run_edge_attn, toy_bundle, translation):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as pipe:
        result = run_edge_attn("translate", toy_bundle, input=SENTENCE, stderr=pipe)
        assert (result.returncode, result.stdout) == (0, translation)
        assert run_edge_attn("translate", "no-bundle", stderr=pipe).returncode == 4


def test_error_with_terminal_codes_is_one_plain_line(run_edge_attn):
    result = run_edge_attn("inspect", "no\x1b[31m\nbundle", stdout=subprocess.DEVNULL)
    assert (result.returncode, result.stderr.count(b"\n")) == (4, 1)
    assert rb"no\x1b[31m\nbundle is not a bundle" in result.stderr
