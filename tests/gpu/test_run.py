"""Tests of tests/gpu/run.py, as far as a machine without a GPU runs it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu_machine import gpu_name

SCRIPT = Path(__file__).with_name("run.py")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("run_on_a_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_script_without_gpu_returns_3_and_its_files(tmp_path):
    if gpu_name() is not None:
        pytest.skip(f"there is a GPU, {gpu_name()}: the steps take minutes with one")
    folder = tmp_path / "results"
    result = subprocess.run([sys.executable, SCRIPT, folder], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 3, result.stdout + result.stderr
    assert "there is no NVIDIA GPU" in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == [
        *("benchmark.json", "benchmark.txt", "doctor.json", "machine.json", "summary.json", "tests.txt", "tests.xml")
    ]
    doctor, machine, summary, benchmark = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("doctor", "machine", "summary", "benchmark")
    )
    assert doctor["checks"]
    assert machine["recorded"]
    assert benchmark["rows"] == []
    assert {"date", "gpu", "python", "versions"} <= summary.keys()
    steps = summary["steps"]
    assert {name: done["exit code"] for name, done in steps.items() if name != "doctor"} == {
        **{"machine": 0, "tests": 0, "benchmark": 3},
    }
    assert all(done["succeeded"] for done in steps.values())
    assert steps["tests"]["passed"] == steps["tests"]["failed"] == 0
    assert "needs an NVIDIA GPU" in steps["tests"]["skipped"]


def python(script, code: str, **options):
    return script.Step("example", "example.txt", (sys.executable, "-c", code), **options)


def test_failed_step_reports_its_last_lines(script, tmp_path):
    (tmp_path / "example.old").touch()
    done = script.run_step(python(script, "import sys; print(1); print(2, file=sys.stderr); sys.exit(5)"), tmp_path, 1)
    assert (done["exit code"], done["succeeded"], done["last lines"]) == (5, False, ["1", "2"])
    assert done["command"].startswith("python -c ")
    assert [path.name for path in tmp_path.iterdir()] == ["example.txt"]


def test_step_over_its_time_limit_is_killed_with_children(script, tmp_path):
    code = "import subprocess as s; p = s.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    done = script.run_step(python(script, code), tmp_path, 1.5 / 60)
    assert done["exit code"] == script.TIMED_OUT
    assert done["seconds"] < 30
    state = Path("/proc", (tmp_path / "example.txt").read_text().strip(), "stat")
    end = time.monotonic() + 10
    while is_alive(state):  # a killed process takes a moment to end
        assert time.monotonic() < end
        time.sleep(0.01)


def is_alive(state: Path) -> bool:
    try:
        return state.read_text().split()[2] != "Z"
    except OSError:
        return False


def test_benchmark_repeats_without_a_crashing_contender(script, tmp_path):
    code = """
import os, sys
for name in ("torch eager fp32", "trt-rtx fp16", "trt fp16"):
    print("...", name, flush=True)
    if name.startswith("tr") and name.split()[0] not in sys.argv:
        os.kill(os.getpid(), 9)
print("done", sys.argv[1:])
"""
    done = script.run_benchmark(python(script, code), tmp_path, 1)
    assert (done["exit code"], done["succeeded"]) == (0, False)
    assert done["crashed"] == {
        "trt-rtx": ["... torch eager fp32", "... trt-rtx fp16"],
        "trt": ["... torch eager fp32", "... trt-rtx fp16", "... trt fp16"],
    }
    assert (tmp_path / "example.txt").read_text().endswith("done ['--skip', 'trt-rtx', '--skip', 'trt']\n")


def test_crash_before_any_contender_is_not_repeated(script, tmp_path):
    code = "import os; print('... the floors', flush=True); os.kill(os.getpid(), 9)"
    done = script.run_benchmark(python(script, code), tmp_path, 1)
    assert done["exit code"] < 0
    assert done["crashed"] == {}


REPORT = """<testsuites><testsuite>
<testcase/><testcase><failure/></testcase><testcase><error/></testcase>
<testcase><skipped message="a"/></testcase><testcase><skipped message="a"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("report", "on_gpu", "succeeded", "counts"),
    [
        (REPORT, True, True, (1, 2, {"a": 2})),
        (REPORT.replace("<testcase/>", ""), True, False, (0, 2, {"a": 2})),
        (REPORT.replace("<testcase/>", ""), False, True, (0, 2, {"a": 2})),
        (None, True, False, (0, 0, {})),
    ],
)
def test_step_with_only_skipped_tests_fails_on_a_gpu(script, tmp_path, report, on_gpu, succeeded, counts):
    code = f"import pathlib; {report!r} and pathlib.Path({str(tmp_path)!r}, 'tests.xml').write_text({report!r})"
    done = script.run_tests(python(script, code, on_gpu=on_gpu), tmp_path, 1)
    assert done["succeeded"] == succeeded
    assert (done["passed"], done["failed"], done["skipped"]) == counts


def test_contenders_are_those_of_the_benchmark(script):
    pytest.importorskip("torch", reason="torch is not installed: a device needs none")
    import bench_gpu as bench

    assert sorted(script.CONTENDERS) == sorted(bench.OURS + bench.TORCH)


@pytest.mark.parametrize(
    ("arguments", "error"), [([__file__], "FOLDER must be a folder"), ([".", "none.tsv"], "there is no")]
)
def test_missing_path_fails_first(arguments, error):
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert error in done.stderr
