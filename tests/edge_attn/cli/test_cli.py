"""The commands, their exit codes, and the import time of `--help`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.shell_completion import ShellComplete

from edge_attn import __version__, cli, errors
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import EdgeAttnError
from edge_attn.registry import PRECISIONS, RUNTIMES, TARGETS, VERBS

COMMANDS = (
    *("init", "train", "export", "translate", "score", "align", "evaluate"),
    *("verify", "inspect", "optimize", "doctor", "cache", "demo"),
)
INSPECT = "edge_attn.runtimes.commands.inspect"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_command_has_help(edge_attn_cli, command, option):
    text = edge_attn_cli(command, option).stdout
    assert text.startswith(f"Usage: cli {command} ")
    assert "Options:" in text


def test_help_lists_every_command(edge_attn_cli):
    text = edge_attn_cli("--help").stdout
    assert sorted(cli.cli.commands) == sorted(COMMANDS)
    assert all(f"\n  {command} " in text for command in COMMANDS)


def test_table_of_verbs_has_the_commands_only():
    assert sorted({verb.split()[0] for verb in VERBS}) == sorted(COMMANDS)


def test_version_is_that_of_the_package(edge_attn_cli):
    lines = edge_attn_cli("--version").stdout.splitlines()
    assert lines[:2] == [
        f"edge-attn, version {__version__}",
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    ]
    assert f"numpy {importlib.metadata.version('numpy')}" in lines
    assert f"sentencepiece {importlib.metadata.version('sentencepiece')}" in lines


@pytest.mark.parametrize("arguments", [["no-such-command"], ["translate"], ["--nonsense"], ["verify", "a", "b"]])
def test_invalid_command_line_is_a_usage_error(edge_attn_cli, arguments):
    assert edge_attn_cli(*arguments, code=2, error="--help").stdout == ""


@pytest.mark.parametrize("minutes", ["nan", "inf", "0", "-1", "soon"])
def test_invalid_build_minutes_are_a_usage_error(edge_attn_cli, toy_bundle, minutes):
    pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")
    result = edge_attn_cli("optimize", toy_bundle, "--target", "trt", "--max-build-minutes", minutes, code=2)
    assert "--max-build-minutes" in result.stderr


def test_override_without_number_is_a_usage_error(edge_attn_cli, toy_bundle):
    result = edge_attn_cli("verify", toy_bundle, "--override", "L1.max_abs=loose", code=2)
    assert result.stderr == "edge-attn: --override takes LEVEL.NAME=VALUE with a number, got 'L1.max_abs=loose'\n"


def leaves(group: click.Group, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield the names and the command of each command that is no group."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*names, name))
        else:
            yield (*names, name), command


LEAVES = dict(leaves(cli.cli))
CLOSED = {"runtime": RUNTIMES, "precision": PRECISIONS, "target": TARGETS}
"""Names of options that take one of a table."""


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_option_with_a_list_of_values_is_a_choice(names):
    options = {parameter.name: parameter.type for parameter in LEAVES[names].params}
    for name in options.keys() & CLOSED.keys():
        assert isinstance(options[name], click.Choice)
        assert list(options[name].choices) == list(CLOSED[name])


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        (["tr"], "tr", {"train", "translate"}),
        (["translate", "--runtime"], "ort", {"ort-cpu", "ort-cuda"}),
        (["translate", "--precision"], "fp", {"fp32", "fp16"}),
        (["optimize", "--target"], "", set(TARGETS)),
        (["verify", "--level"], "L", {"L1", "L2", "L3", "L5"}),
        (["score", "--format"], "", {"text", "jsonl"}),
        (["translate", "--length-penalty-kind"], "w", {"wu"}),
    ],
)
def test_shell_completes_values(words, incomplete, expected):
    complete = ShellComplete(cli.cli, {}, "edge-attn", "_EDGE_ATTN_COMPLETE")
    arguments = words if len(words) > 1 else []
    assert {item.value for item in complete.get_completions(arguments, incomplete)} == expected


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["translate", "b", "--runtime", "cuda"],
            "'cuda' is not one of ort-cpu, ort-cuda, trt, trt-rtx, torch; did you ",
        ),
        (["verify", "b", "--precision", "float16"], "did you mean 'fp16'?"),
        (["optimize", "b", "--target", "tensorrt"], "did you mean 'trt'?"),
        (["translate", "b", "--format", "json"], "did you mean 'jsonl'?"),
        (["optimizes"], "No such command 'optimizes'. Did you mean 'optimize'? See: "),
        (["--vers"], "Did you mean one of: '--verbose', '--version'? See: "),
        (["translate", "b", "--beem", "3"], "No such option '--beem'. Did you mean one of: '--beam', '--seed'? See: "),
        (["optimize", "b"], "Missing option '--target'. Choose from: ort-cuda, trt. See: "),
        (["export", "c"], "Missing option '--out'. See: "),
        (["score", "b"], "Missing argument 'TSV'. See: "),
        (["translate", "b", "--beam", "many"], "'many' is not a valid integer. See: "),
    ],
)
def test_usage_error_is_one_line_with_the_way_out(edge_attn_cli, arguments, error):
    stderr = edge_attn_cli(*arguments, code=2, error=error).stderr
    verb = f" {arguments[0]}" if arguments[0] in COMMANDS else ""
    assert stderr.endswith(f" See: cli{verb} --help\n")


def test_parameter_in_an_error_is_printed_as_its_option(edge_attn_cli, monkeypatch):
    def fail(**options: object) -> None:
        raise errors.InputError("`n_best` and `as_json`, not `unknown`")

    monkeypatch.setattr("edge_attn.runtimes.commands.translate.translate_file", fail)
    assert edge_attn_cli("translate", "b", code=4).stderr == "edge-attn: --n-best and `as_json`, not `unknown`\n"


def test_command_without_arguments_prints_the_help(edge_attn_cli):
    assert "Commands:" in edge_attn_cli(code=2).stderr


@pytest.mark.parametrize("group", [(), ("cache",)])
def test_summary_of_each_command_is_complete(edge_attn_cli, group):
    """Long summaries are cut by click: each fits into 80 columns."""
    summaries = edge_attn_cli(*group, "--help").stdout.partition("Commands:\n")[2]
    assert summaries
    assert "..." not in summaries


def test_environment_sets_the_default_of_an_option(edge_attn_cli, monkeypatch):
    received: dict[str, object] = {}
    monkeypatch.setattr(
        "edge_attn.runtimes.commands.translate.translate_file", lambda **options: received.update(options)
    )
    monkeypatch.setenv("EDGE_ATTN_TRANSLATE_FORMAT", "jsonl")
    monkeypatch.setenv("EDGE_ATTN_TRANSLATE_THREADS", "3")
    monkeypatch.setenv("EDGE_ATTN_TRANSLATE_ALLOW_FALLBACK", "1")
    edge_attn_cli("translate", "bundle")
    assert (received["format"], received["options"]) == ("jsonl", RuntimeOptions(3, "fp32", True))
    edge_attn_cli("translate", "bundle", "--format", "moses")
    assert received["format"] == "moses"
    monkeypatch.setenv("EDGE_ATTN_TRANSLATE_FORMAT", "xml")
    edge_attn_cli("translate", "bundle", code=2, error="'xml' is not one of text, jsonl, moses")


def test_short_options_are_those_of_the_long_ones(edge_attn_cli, monkeypatch, tmp_path):
    received: dict[str, object] = {}
    monkeypatch.setattr(
        "edge_attn.runtimes.commands.translate.translate_file", lambda **options: received.update(options)
    )
    edge_attn_cli("translate", "bundle", "-i", tmp_path / "in", "-o", tmp_path / "out", "-b", 5, "-n", 2)
    assert (received["input"], received["output"]) == (tmp_path / "in", tmp_path / "out")
    assert received["config"] == SearchConfig(beam=5, n_best=2)


ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EdgeAttnError)]
EXIT_CODES = {
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


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind is not EdgeAttnError])
def test_error_is_one_line_and_its_exit_code(edge_attn_cli, monkeypatch, kind):
    error = kind("package", "extra") if kind.__name__ == "MissingExtraError" else kind("a sentence")

    def fail(bundle: object) -> None:
        raise error

    monkeypatch.setattr(f"{INSPECT}.inspect", fail)
    result = edge_attn_cli("inspect", "bundle", code=EXIT_CODES[kind.__name__])
    assert result.stderr == f"edge-attn: {error}\n"


def run_with_failing_inspect(error: str) -> subprocess.CompletedProcess[str]:
    """Run `edge-attn inspect bundle` in a process where the verb raises `error`."""
    code = f"""
import sys
from edge_attn import cli, errors
from {INSPECT.rpartition(".")[0]} import inspect
def fail(bundle): raise {error}
inspect.inspect = fail
sys.argv = ["edge-attn", "inspect", "bundle"]
cli.main()
"""
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("error", ["ZeroDivisionError('a bug')", "errors.EdgeAttnError('a bug')"])
def test_bug_prints_a_traceback_and_exits_with_70(error):
    result = run_with_failing_inspect(error)
    assert result.returncode == 70
    assert "Traceback" in result.stderr
    assert "a bug" in result.stderr
    assert result.stderr.endswith(
        "edge-attn: this is a bug in edge-attn, not an error in your input; please report it\n"
    )


def test_interruption_exits_with_130():
    result = run_with_failing_inspect("KeyboardInterrupt")
    assert (result.returncode, result.stderr) == (128 + signal.SIGINT, "")


def test_path_that_is_not_utf_8_is_printed(run_edge_attn, toy_bundle, tmp_path):
    path = os.fsencode(tmp_path / "b") + b"\xff.zip"
    with open(path, "wb") as file:  # noqa: PTH123 - a path of bytes
        file.write(toy_bundle.read_bytes())
    result = run_edge_attn("inspect", os.fsdecode(path))
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"b\\udcff.zip: translation" in result.stdout


def test_user_files_named_like_ours_are_not_imported(run_edge_attn, toy_bundle, tmp_path):
    """A user may have runtimes/, export.py or tests/ in the working folder or on PYTHONPATH."""
    for folder in ("runtimes", "tests"):
        (tmp_path / folder).mkdir()
    for name in ("runtimes/__init__.py", "runtimes/inspect.py", "export.py", "tests/__init__.py"):
        (tmp_path / name).write_text("raise SystemExit('a file of the user was run')")
    for location in ({"cwd": tmp_path}, {"env": {"PYTHONPATH": str(tmp_path)}}):
        result = run_edge_attn("inspect", toy_bundle, **location)
        assert (result.returncode, result.stderr) == (0, b"")
        result = run_edge_attn("export", "a", "--out", tmp_path / "b", **location)
        assert result.returncode in (3, 4), result.stderr  # 3 where torch is not installed
        assert b"a file of the user" not in result.stderr


@pytest.mark.parametrize("module", ["edge_attn", "edge_attn.cli"])
def test_package_runs_as_a_module(tmp_path, module):
    (tmp_path / "export.py").write_text("raise SystemExit('a file of the user was run')")
    command = [sys.executable, "-m", module]
    settings = {"capture_output": True, "text": True, "check": False, "cwd": tmp_path, "timeout": 60}
    result = subprocess.run([*command, "--version"], **settings)
    assert result.returncode == 0
    assert result.stdout.startswith(f"edge-attn, version {__version__}\n")
    result = subprocess.run([*command, "export", "a", "--out", "b"], **settings)
    assert result.returncode in (3, 4), result.stderr


def cpu_seconds(code: str, *arguments: str) -> float:
    """Return the processor time of a Python process, which other load on the machine changes little."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-I", "-c", code, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_takes_little_more_than_import_click():
    """Thirteen commands with their options take 1.6 times as long.

    The best of five attempts counts, because a busy machine may slow down one side.
    """
    console_script = "import sys; from edge_attn.cli import main; sys.exit(main())"
    ratio = 0.0
    for _ in range(5):
        help_seconds, click_seconds = [], []
        for _ in range(7):
            click_seconds.append(cpu_seconds("import click"))
            help_seconds.append(cpu_seconds(console_script, "--help"))
        ratio = statistics.median(help_seconds) / statistics.median(click_seconds)
        if ratio <= 1.75:
            return
    pytest.fail(f"edge-attn --help takes {ratio:.2f} times as long as import click")


def test_runtime_options_reach_the_verb_as_one_value(edge_attn_cli, monkeypatch, tmp_path):
    received = {}
    monkeypatch.setattr(
        "edge_attn.runtimes.commands.translate.translate_file", lambda **options: received.update(options)
    )
    options = ("--threads", 2, "--precision", "fp16", "--allow-fallback", "--cache-dir", tmp_path)
    edge_attn_cli("translate", "bundle", "--runtime", "trt", *options)
    assert received["runtime"] == "trt"
    assert received["options"] == RuntimeOptions(2, "fp16", True, tmp_path)
    edge_attn_cli("translate", "bundle")
    assert (received["runtime"], received["options"]) == ("ort-cpu", RuntimeOptions())


def test_cache_dir_is_listed_and_cleared(edge_attn_cli, tmp_path):
    for action in ("list", "clear"):
        assert edge_attn_cli("cache", action, "--cache-dir", tmp_path).stdout.strip()


class DoctorReport:
    exit_code = 3

    def json(self) -> str:
        return "{}\n"

    def __str__(self) -> str:
        return "a machine"


def test_doctor_prints_its_report_and_exits_with_its_code(edge_attn_cli, monkeypatch):
    monkeypatch.setattr("edge_attn.runtimes.doctor.check.doctor", DoctorReport)
    assert edge_attn_cli("doctor", code=3).stdout == "a machine\n"
    assert edge_attn_cli("doctor", "--json", code=3).stdout == "{}\n"


@pytest.mark.parametrize("command", ["translate", "verify", "inspect"])
def test_too_long_file_name_is_bad_input(edge_attn_cli, command):
    result = edge_attn_cli(command, "b" * 300, code=4)
    assert result.stderr.startswith("edge-attn: ")
    assert result.stderr.endswith("cannot be read: File name too long\n")


class OutOfMemoryError(RuntimeError):
    """An error with the name of torch's on a GPU."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory"),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB"),
    ],
)
def test_too_little_memory_is_one_line(edge_attn_cli, monkeypatch, toy_bundle, error):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("edge_attn.runtimes.commands.inspect.inspect", fail)
    edge_attn_cli("inspect", toy_bundle, code=4, error=f"the memory of this machine is too small: {error}")


def test_other_runtime_errors_are_bugs(edge_attn_cli, monkeypatch, toy_bundle):
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("edge_attn.runtimes.commands.inspect.inspect", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        edge_attn_cli("inspect", toy_bundle)
