"""The one command for a machine with a GPU, as far as a machine without one can go."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run.py")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("run_on_a_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_without_a_gpu_it_ends_with_3_and_its_files(tmp_path, gpu):
    if gpu is not None:
        pytest.skip(f"there is a GPU here, {gpu}: what this tests takes minutes there")
    folder = tmp_path / "found"
    found = subprocess.run([sys.executable, SCRIPT, folder], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 3, found.stdout + found.stderr
    assert "no NVIDIA GPU answers" in found.stderr
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
    assert all(done["as it should"] for done in steps.values())
    assert steps["tests"]["passed"] == steps["tests"]["failed"] == 0
    assert "needs an NVIDIA GPU" in steps["tests"]["skipped"]


@pytest.fixture(scope="module")
def gpu() -> str | None:
    sys.path.insert(0, str(SCRIPT.parents[1] / "tools"))
    try:
        return importlib.import_module("gpu_machine").gpu_name()
    finally:
        del sys.path[0]


def python(script, code: str, **options):
    return script.Step("tried", "tried.txt", (sys.executable, "-c", code), **options)


def test_a_step_that_fails_says_so_with_its_last_words(script, tmp_path):
    (tmp_path / "tried.old").touch()
    done = script.carry_out(python(script, "import sys; print(1); print(2, file=sys.stderr); sys.exit(5)"), tmp_path, 1)
    assert (done["exit code"], done["as it should"], done["last words"]) == (5, False, ["1", "2"])
    assert done["command"].startswith("python -c ")
    assert [path.name for path in tmp_path.iterdir()] == ["tried.txt"]


def test_a_step_that_takes_too_long_is_ended_with_all_that_it_started(script, tmp_path):
    code = "import subprocess as s; p = s.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    done = script.carry_out(python(script, code), tmp_path, 1.5 / 60)
    assert done["exit code"] == script.TOO_LONG
    assert done["seconds"] < 30
    state = Path("/proc", (tmp_path / "tried.txt").read_text().strip(), "stat")
    end = time.monotonic() + 10
    while is_alive(state):  # it was told to end, which takes it a moment
        assert time.monotonic() < end
        time.sleep(0.01)


def is_alive(state: Path) -> bool:
    try:
        return state.read_text().split()[2] != "Z"
    except OSError:
        return False


def test_the_benchmark_goes_on_without_what_ends_its_process(script, tmp_path):
    code = """
import os, sys
for name in ("torch eager fp32", "trt-rtx fp16", "trt fp16"):
    print("...", name, flush=True)
    if name.startswith("tr") and name.split()[0] not in sys.argv:
        os.kill(os.getpid(), 9)
print("done", sys.argv[1:])
"""
    done = script.all_contenders(python(script, code), tmp_path, 1)
    assert (done["exit code"], done["as it should"]) == (0, False)
    assert done["ended its process"] == {
        "trt-rtx": ["... torch eager fp32", "... trt-rtx fp16"],
        "trt": ["... torch eager fp32", "... trt-rtx fp16", "... trt fp16"],
    }
    assert (tmp_path / "tried.txt").read_text().endswith("done ['--skip', 'trt-rtx', '--skip', 'trt']\n")


def test_a_process_that_ends_before_any_contender_is_not_tried_again(script, tmp_path):
    code = "import os; print('... the floors', flush=True); os.kill(os.getpid(), 9)"
    done = script.all_contenders(python(script, code), tmp_path, 1)
    assert done["exit code"] < 0
    assert done["ended its process"] == {}


REPORT = """<testsuites><testsuite>
<testcase/><testcase><failure/></testcase><testcase><error/></testcase>
<testcase><skipped message="a"/></testcase><testcase><skipped message="a"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("report", "on_gpu", "good", "counts"),
    [
        (REPORT, True, True, (1, 2, {"a": 2})),
        (REPORT.replace("<testcase/>", ""), True, False, (0, 2, {"a": 2})),
        (REPORT.replace("<testcase/>", ""), False, True, (0, 2, {"a": 2})),
        (None, True, False, (0, 0, {})),
    ],
)
def test_tests_that_were_all_skipped_on_a_gpu_show_nothing(script, tmp_path, report, on_gpu, good, counts):
    code = f"import pathlib; {report!r} and pathlib.Path({str(tmp_path)!r}, 'tests.xml').write_text({report!r})"
    done = script.counted(python(script, code, on_gpu=on_gpu), tmp_path, 1)
    assert done["as it should"] == good
    assert (done["passed"], done["failed"], done["skipped"]) == counts


def test_the_benchmarks_contenders_are_known_by_name(script, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed: a device needs none")
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1] / "tools"))
    bench = importlib.import_module("bench_gpu")
    assert sorted(script.CONTENDERS) == sorted(bench.OURS + bench.TORCH)


@pytest.mark.parametrize(
    ("given", "said"), [([__file__], "FOLDER must be a folder"), ([".", "none.tsv"], "there is no")]
)
def test_what_is_not_there_is_said_first(given, said):
    done = subprocess.run([sys.executable, SCRIPT, *given], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
