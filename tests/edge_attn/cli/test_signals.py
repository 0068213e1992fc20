"""SIGTERM and SIGHUP clean up like Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from edge_attn.cli.signals import Stopped, exit_code

ENDLESS = b"a b c d e f g h\n"


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_signal_leaves_no_partial_output(start_edge_attn, toy_bundle, tmp_path, name, code):
    before = (  # a test run under nohup would pass on that SIGHUP is ignored
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "signal.signal(signal.SIGTERM, signal.SIG_DFL); signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    )
    arguments = ("translate", toy_bundle, "--output", tmp_path / "out.txt")
    streams = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start_edge_attn(*arguments, before=before, **streams) as process:
        try:
            process.stdin.write(ENDLESS)
            process.stdin.flush()
            deadline = time.monotonic() + 30
            while not list(tmp_path.iterdir()):
                assert time.monotonic() < deadline, "no output was begun"
                time.sleep(0.05)
            process.send_signal(signal.Signals[name])
            process.send_signal(signal.Signals[name] if name != "SIGINT" else signal.SIGCONT)  # as a closed terminal
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, errors) == (code, b"")
    assert list(tmp_path.iterdir()) == []


def test_ignored_signal_stays_ignored(run_edge_attn):
    """As under nohup."""
    before = "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    check = "\nimport atexit; atexit.register(lambda: print(signal.getsignal(signal.SIGHUP).name, flush=True))"
    assert b"SIG_IGN" in run_edge_attn("--version", before=before + check).stdout


def test_signals_are_handled_like_an_interruption():
    assert exit_code(Stopped(signal.SIGTERM)) == 143
    assert exit_code(KeyboardInterrupt()) == 130
    with pytest.raises(KeyboardInterrupt):
        raise Stopped(signal.SIGHUP)
