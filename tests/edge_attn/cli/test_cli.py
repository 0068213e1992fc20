"""The command line: its verbs, its exit codes, and how little it loads to say what it can do."""

from __future__ import annotations

import os
import resource
import signal
import statistics
import subprocess
import sys

import pytest

from edge_attn import __version__, cli, errors
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import EdgeAttnError

VERBS = (
    *("train", "export", "translate", "verify", "evaluate", "inspect", "demo", "score", "align", "optimize"),
    *("doctor", "cache"),
)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_verb_has_its_help(edge_attn_cli, verb, option):
    said = edge_attn_cli(verb, option).stdout
    assert said.startswith(f"Usage: cli {verb} ")
    assert "Options:" in said


def test_the_help_lists_every_verb(edge_attn_cli):
    said = edge_attn_cli("--help").stdout
    assert sorted(cli.cli.commands) == sorted(VERBS)
    assert all(f"\n  {verb} " in said for verb in VERBS)


def test_the_version_is_the_packages(edge_attn_cli):
    assert edge_attn_cli("--version").stdout == f"edge-attn, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["tranlsate"], ["translate"], ["--nonsense"], ["verify", "a", "b"]])
def test_what_makes_no_sense_is_usage(edge_attn_cli, arguments):
    found = edge_attn_cli(*arguments, code=2)
    assert "Error: " in found.stderr
    assert found.stdout == ""


@pytest.mark.parametrize("minutes", ["nan", "inf", "0", "-1", "soon"])
def test_minutes_of_a_build_that_are_none_are_usage(edge_attn_cli, toy_bundle, minutes):
    pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")
    found = edge_attn_cli("optimize", toy_bundle, "--target", "trt", "--max-build-minutes", minutes, code=2)
    assert "--max-build-minutes" in found.stderr


FAILURES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EdgeAttnError)]
CODES = {
    "ParityError": 1,
    "UsageError": 2,
    "NotTestedError": 3,
    "MissingExtraError": 3,
    "InputError": 4,
    "ConfigError": 4,
    "BundleError": 4,
    "CheckpointError": 4,
    "ExportError": 4,
    "TooLargeError": 4,
}


@pytest.mark.parametrize("kind", [kind for kind in FAILURES if kind is not EdgeAttnError])
def test_an_error_of_ours_is_one_sentence_and_its_code(edge_attn_cli, monkeypatch, kind):
    error = kind("package", "extra") if kind.__name__ == "MissingExtraError" else kind("a sentence")

    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(cli, "_verb", fail)
    found = edge_attn_cli("inspect", "bundle", code=CODES[kind.__name__], said=str(error))
    assert found.stderr == f"edge-attn: {error}\n"


def run_main(before: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys\nfrom edge_attn import cli\n{before}\nsys.argv = ['edge-attn', 'inspect', 'bundle']\ncli.main()"
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("error", ["ZeroDivisionError('ours')", "cli.EdgeAttnError('ours')"])
def test_a_fault_of_ours_has_its_traceback_and_its_code(error):
    done = run_main(f"def fail(name): raise {error}\ncli._verb = fail")
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "ours" in done.stderr
    assert done.stderr.endswith("edge-attn: this is a fault of edge-attn, not of your input; please report it\n")


def test_an_interruption_is_no_verdict():
    done = run_main("def stop(name): raise KeyboardInterrupt\ncli._verb = stop")
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")


def test_a_name_that_is_no_utf_8_is_printed_all_the_same(run_edge_attn, toy_bundle, tmp_path):
    path = os.fsencode(tmp_path / "b") + b"\xff.zip"
    with open(path, "wb") as file:  # noqa: PTH123 - a path of bytes
        file.write(toy_bundle.read_bytes())
    done = run_edge_attn("inspect", os.fsdecode(path))
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"b\\udcff.zip: seq2seq" in done.stdout


def test_files_named_like_our_folders_disturb_nothing(run_edge_attn, toy_bundle, tmp_path):
    """A user's own runtimes/, export.py or tests/, in the working folder or on PYTHONPATH."""
    for folder in ("runtimes", "tests"):
        (tmp_path / folder).mkdir()
    for name in ("runtimes/__init__.py", "runtimes/inspect.py", "export.py", "tests/__init__.py"):
        (tmp_path / name).write_text("raise SystemExit('a file of the user was run')")
    for where in ({"cwd": tmp_path}, {"env": {"PYTHONPATH": str(tmp_path)}}):
        done = run_edge_attn("inspect", toy_bundle, **where)
        assert (done.returncode, done.stderr) == (0, b"")
        done = run_edge_attn("export", "a", "--out", tmp_path / "b", **where)
        assert done.returncode in (3, 4), done.stderr  # 3 where torch is not installed
        assert b"a file of the user" not in done.stderr


def test_running_it_as_a_module_is_the_same(tmp_path):
    (tmp_path / "export.py").write_text("raise SystemExit('a file of the user was run')")
    run = [sys.executable, "-m", "edge_attn.cli"]
    done = subprocess.run([*run, "--version"], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"edge-attn, version {__version__}\n")
    export = [*run, "export", "a", "--out", "b"]
    done = subprocess.run(export, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    assert done.returncode in (3, 4), done.stderr


def seconds(code: str, *arguments: str) -> float:
    """Of processor time, because others may be at work on this machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = [sys.executable, "-I", "-c", code, *arguments]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_is_as_fast_as_click():
    """At most half as long again; the best of some tries, because a busy machine slows the one or the other."""
    console_script = "import sys; from edge_attn.cli import main; sys.exit(main())"
    ratio = 0.0
    for _ in range(5):
        ours, clicks = [], []
        for _ in range(7):
            clicks.append(seconds("import click"))
            ours.append(seconds(console_script, "--help"))
        ratio = statistics.median(ours) / statistics.median(clicks)
        if ratio <= 1.5:
            return
    pytest.fail(f"edge-attn --help takes {ratio:.2f} times as long as import click")


def test_the_options_of_a_runtime_reach_it_as_one(edge_attn_cli, monkeypatch, tmp_path):
    seen = {}

    def verb(*arguments, **options):
        seen.update(options)
        return 0

    monkeypatch.setattr(cli, "_verb", lambda name: verb)
    given = ("--threads", 2, "--precision", "fp16", "--allow-fallback", "--cache-dir", tmp_path)
    edge_attn_cli("translate", "bundle", "--runtime", "trt", *given)
    assert seen["runtime"] == "trt"
    assert seen["options"] == RuntimeOptions(2, "fp16", True, tmp_path)
    edge_attn_cli("translate", "bundle")
    assert (seen["runtime"], seen["options"]) == ("ort-cpu", RuntimeOptions())


def test_the_cache_is_listed_and_cleared_where_it_is(edge_attn_cli, tmp_path):
    for action in ("list", "clear"):
        assert edge_attn_cli("cache", action, "--cache-dir", tmp_path).stdout.strip()


class Machine:
    exit_code = 3

    def json(self) -> str:
        return "{}\n"

    def __str__(self) -> str:
        return "a machine"


def test_the_doctor_is_printed_and_has_the_last_word(edge_attn_cli, monkeypatch):
    monkeypatch.setattr(cli, "_verb", lambda name: Machine)
    assert edge_attn_cli("doctor", code=3).stdout == "a machine\n"
    assert edge_attn_cli("doctor", "--json", code=3).stdout == "{}\n"


@pytest.mark.parametrize("verb", ["translate", "verify", "inspect"])
def test_a_name_that_no_file_can_have_is_bad_input(edge_attn_cli, verb):
    edge_attn_cli(verb, "b" * 300, code=4, said="cannot be read: File name too long")
