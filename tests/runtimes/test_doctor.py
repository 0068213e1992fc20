"""`edge-attn doctor` on recorded machines (tests/data/machines), on this one, and on one where nothing can be read."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from edge_attn import __version__
from runtimes import doctor_probes, machine
from runtimes.doctor import CHECKS, Report, doctor
from runtimes.doctor_check import STATUSES, Check
from runtimes.doctor_facts import board
from runtimes.machine import Machine, Usage, here

MACHINES = Path(__file__).resolve().parent.parent / "data" / "machines"
NAMES = sorted(path.stem for path in MACHINES.glob("*.json"))
KINDS = ("files", "commands", "probes", "usage")


def answers(name: str) -> dict[str, Any]:
    """What the file holds; what it says is taken over what the machine that it is `like` says."""
    own: dict[str, Any] = json.loads((MACHINES / f"{name}.json").read_text(encoding="utf-8"))
    base = answers(own["like"]) if "like" in own else {}
    merged = {kind: {**base.get(kind, {}), **own.get(kind, {})} for kind in KINDS}
    return {**merged, "paths": own.get("paths", base.get("paths", []))}


def recorded(name: str) -> Machine:
    found = answers(name)

    def glob(pattern: str) -> list[str]:
        return [path for path in found["paths"] if PurePosixPath(path).match(pattern)]

    def run(*command: str) -> tuple[int, str]:
        code, *lines = found["commands"][command[0]]
        return code, "\n".join(lines)

    return Machine(
        lambda path: "\n".join(found["files"].get(path, [])),
        glob,
        run,
        found["probes"].__getitem__,
        lambda: Usage(**found["usage"]),
    )


def checks(report: Report) -> dict[str, Check]:
    return {check.name: check for check in report.checks}


# ---- recorded machines

HEALTHY = {
    "orin-jetpack-6.2": {
        "board": "Developer Kit Super, JetPack 6.2 (L4T 36.4.3)",
        "system": "Ubuntu 22.04.5 LTS on aarch64; Python 3.10.12",
        "gpu": "Orin, compute capability 8.7, 7.4 GiB shared with the CPU, driver 540.4.0",
        "cuda": "CUDA 12.6; libcudart 12.6",
        "tensorrt": "10.3.0 (/usr/lib/python3.10/dist-packages/tensorrt/__init__.py)",
        "onnxruntime": "onnxruntime 1.23.2",
        "providers": "a graph runs on CPUExecutionProvider",
        "memory": "5.9 GiB available of 7.4 GiB, swap 3.7 GiB: enough for building an engine",
        "cache": "2 engines, 31.5 MB",
        "runtimes": "ort-cpu, trt",
    },
    "orin-jetpack-7.2": {
        "board": "JetPack 7.2 (L4T 39.2.0)",
        "system": "Python 3.12.3",
        "gpu": "Orin, compute capability 8.7",
        "cuda": "CUDA 13.2; libcudart 13.2",
        "tensorrt": "10.16.2.10",
        "memory": "swap none",
        "runtimes": "ort-cpu, trt",
    },
    "thor-jetpack-7.2": {
        "board": "NVIDIA Jetson AGX Thor Developer Kit, JetPack 7.2",
        "gpu": "NVIDIA Thor, compute capability 11.0",
        "tensorrt": "10.16.2.10",
        "memory": "118.5 GiB available of 122.9 GiB",
        "runtimes": "ort-cpu, trt",
    },
    "x86-gpu": {
        "board": "no Jetson",
        "gpu": "Tesla T4, compute capability 7.5, 16.0 GiB, driver 580.126.20",
        "tensorrt": "10.16.1.11",
        "providers": "CPUExecutionProvider, CUDAExecutionProvider",
        "runtimes": "ort-cpu, ort-cuda, trt",
    },
    "x86-no-gpu": {
        "board": "no Jetson",
        "gpu": "only the CPU runs bundles here",
        "tensorrt-rtx": "1.7.1.116",
        "runtimes": "parts of ort-cpu",
    },
    "x86-no-gpu-onnxruntime-gpu": {"providers": "not on CUDAExecutionProvider: libcublasLt.so.13"},
}
"""No fault; what some of their checks find."""

SWAP = "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"
LEND = "sudo docker run --rm -it --runtime nvidia --entrypoint edge-attn IMAGE doctor"
FAULTY = {
    "orin-container-without-gpu": {
        "gpu": (
            "no GPU in this container",
            LEND,
        ),
        "tensorrt": (
            "libnvdla_compiler.so",
            LEND,
        ),
    },
    "orin-jetpack-5.1": {"board": ("JetPack 5.1.2 (L4T 35.4.1)", "sdkmanager")},
    "orin-no-swap": {"memory": ("2.9 GiB available of 7.4 GiB, swap none", SWAP)},
    "orin-onnxruntime-gpu": {
        "providers": ("no kernel image", "pip uninstall -y onnxruntime-gpu && pip install onnxruntime")
    },
    "orin-other-python": {
        "tensorrt": (
            "is for the system's Python 3.10, and this is /home/user/.venv/bin/python",
            "/usr/bin/python3.10 -m venv --system-site-packages .venv && "
            f".venv/bin/pip install 'edge_attn-{__version__}-py3-none-any.whl[cpu,optimize]'",
        )
    },
    "orin-too-little-memory": {"memory": ("0.9 GiB available", "sudo systemctl isolate multi-user.target")},
    "orin-user-not-in-render": {
        "gpu": ("this user may not open the GPU", "sudo usermod -aG video,render $USER && newgrp render")
    },
    "orin-venv-without-system-packages": {
        "tensorrt": (
            "10.3.0.30-1+cuda12.5 in /usr/lib/python3.10/dist-packages is hidden",
            "/usr/bin/python3.10 -m venv --system-site-packages /home/user/.venv",
        )
    },
    "orin-wheel-hides-tensorrt": {
        "tensorrt": (
            "10.13.2.6",
            "pip uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs",
        )
    },
    "orin-without-bindings": {
        "tensorrt": ("without its Python bindings", "sudo apt update && sudo apt install python3-libnvinfer")
    },
    "orin-without-dla-compiler": {
        "tensorrt": ("libnvdla_compiler.so", "sudo apt update && sudo apt install nvidia-l4t-dla-compiler")
    },
    "orin-without-tensorrt": {
        "cuda": ("no libcudart", "sudo apt update && sudo apt install cuda-cudart-13-2"),
        "tensorrt": ("not installed", "sudo apt update && sudo apt install python3-libnvinfer"),
    },
    "x86-gpu-driver-mismatch": {"gpu": ("Driver/library version mismatch", "sudo reboot")},
    "x86-gpu-hangs": {
        "gpu": ("the GPU hangs", "sudo reboot"),
        "onnxruntime": ("no answer within 60 s", "CUDA_VISIBLE_DEVICES= edge-attn doctor"),
        "runtimes": ("none is here", "CUDA_VISIBLE_DEVICES= edge-attn doctor"),
    },
    "x86-gpu-mixed-onnxruntime": {
        "onnxruntime": (
            "onnxruntime 1.31.1, onnxruntime-gpu 1.31.1",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
        )
    },
    "x86-gpu-old-driver": {
        "cuda": ("good for CUDA 12.4; libcudart 13.0", "pip install 'nvidia-cuda-runtime-cu12<13'"),
        "tensorrt": (
            "10.16.1.11",
            "pip uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs && "
            "pip install tensorrt-cu12",
        ),
        "providers": ("driver version is insufficient", "sudo ubuntu-drivers install && sudo reboot"),
    },
    "x86-gpu-without-cublas": {
        "providers": ("libcublasLt.so.13: cannot open", "pip install 'onnxruntime-gpu[cuda,cudnn]'")
    },
    "x86-gpu-without-driver": {
        "gpu": ("an NVIDIA card without a driver", "sudo ubuntu-drivers install && sudo reboot")
    },
    "x86-no-gpu-bare": {
        "onnxruntime": ("not installed", "pip install 'edge-attn[cpu]'"),
        "runtimes": ("none is here", "pip install 'edge-attn[cpu]'"),
    },
}
"""Each of their faults: what is found, and the command."""


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_machine_has_no_fault(name):
    report = doctor(recorded(name))
    assert (report.faults, report.exit_code) == ([], 0)
    found = checks(report)
    for check, words in HEALTHY[name].items():
        assert words in found[check].found
    assert str(report).endswith("\nno fault")


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_machine_has_these_faults_and_their_commands(name):
    report = doctor(recorded(name))
    assert {check.name: check.command for check in report.faults} == {
        check: command for check, (_, command) in FAULTY[name].items()
    }
    found = checks(report)
    for check, (words, command) in FAULTY[name].items():
        assert words in found[check].found
        assert f"run: {command}\n" in str(report)
    assert report.exit_code == 3


def test_every_recorded_machine_is_in_a_table():
    assert sorted([*HEALTHY, *FAULTY]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_machine_says_where_it_comes_from(name):
    content = json.loads((MACHINES / f"{name}.json").read_text(encoding="utf-8"))
    assert content["source"]
    assert all(content["source"])
    if "like" not in content and not content["recorded"]:
        assert "not recorded" in content["source"][0]


@pytest.mark.parametrize("name", NAMES)
def test_every_machine_gets_every_check_and_every_fault_a_command(name):
    report = doctor(recorded(name))
    assert [check.name for check in report.checks] == list(CHECKS)
    for check in report.checks:
        assert check.status in STATUSES
        assert check.found
        assert check.command or check.status != "fault"
    content = json.loads(report.json())
    assert report.json().endswith("}\n")
    assert content["verdict"] == ("fault" if report.exit_code else "ok")
    assert [set(check) for check in content["checks"]] == [{"name", "status", "found", "advice", "command"}] * len(
        CHECKS
    )


def test_a_fault_without_a_command_cannot_be_made():
    with pytest.raises(ValueError, match="has no command"):
        Check("gpu", "fault", "it is gone")
    with pytest.raises(ValueError, match="status must be one of"):
        Check("gpu", "bad", "it is gone")


@pytest.mark.parametrize(
    ("line", "jetpack"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 33958178", "5"),
        ("# R36 (release), REVISION: 3.0, GCID: 36191598", "6.0"),
        ("# R36 (release), REVISION: 4.0, GCID: 1", "6.1"),
        ("# R36 (release), REVISION: 4.3, GCID: 38968081", "6.2"),
        ("# R36 (release), REVISION: 4.7, GCID: 1", "6.2.1"),
        ("# R36 (release), REVISION: 5.0, GCID: 1", "6.2.2"),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464", "7.0"),
        ("# R38 (release), REVISION: 4.0, GCID: 1", "7.1"),
        ("# R39 (release), REVISION: 2.0, GCID: 45755727", "7.2"),
        ("# R39 (release), REVISION: 2.1, GCID: 46758480", "7.2.1"),
        ("# R40 (release), REVISION: 1.0, GCID: 1", ""),
    ],
)
def test_the_jetpack_of_a_release(line, jetpack):
    """Where the package nvidia-jetpack is not installed, L4T says which it is."""
    files = {"/etc/nv_tegra_release": line}
    bare = dataclasses.replace(recorded("x86-no-gpu"), read_text=lambda path: files.get(path, ""))
    found = board(bare)
    assert found is not None
    assert found.jetpack == jetpack


def test_a_container_s_limit_counts_as_memory():
    whole = recorded("x86-gpu")
    files = {"/sys/fs/cgroup/memory.max": "2147483648", "/sys/fs/cgroup/memory.current": "1073741824"}
    limited = dataclasses.replace(whole, read_text=lambda path: files.get(path) or whole.read_text(path))
    check = checks(doctor(limited))["memory"]
    assert check.status == "fault"
    assert check.found.startswith("1.0 GiB available (the container's limit)")


def test_two_onnxruntimes_in_two_folders_do_not_collide():
    whole = recorded("x86-gpu")
    python = whole.probe("python")
    packages = [*python["packages"], ["onnxruntime", "1.20.0", "/usr/lib/python3/dist-packages"]]
    probes = {"python": {**python, "packages": packages}}
    check = checks(doctor(dataclasses.replace(whole, probe=lambda name: probes.get(name) or whole.probe(name))))
    assert check["onnxruntime"].status == "note"
    assert "is the one that loads" in check["onnxruntime"].advice


CONDA = {"prefix": "/opt/conda", "base_prefix": "/opt/conda", "executable": "/opt/conda/bin/python"}
NVDLA = {"error": "ImportError: libnvdla_compiler.so: cannot open shared object file"}
OLD = {"version": "8.6.2", "file": "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py"}
REINSTALL = "sudo apt update && sudo apt install --reinstall libnvinfer10 python3-libnvinfer"


@pytest.mark.parametrize(
    ("name", "probes", "check", "command"),
    [
        (
            "orin-venv-without-system-packages",
            {"python": CONDA},
            "tensorrt",
            "/usr/bin/python3.10 -m venv --system-site-packages .venv && "
            f".venv/bin/pip install 'edge_attn-{__version__}-py3-none-any.whl[cpu,optimize]'",
        ),
        ("orin-jetpack-7.2", {"tensorrt": NVDLA}, "tensorrt", REINSTALL),
        ("orin-jetpack-6.2", {"tensorrt": {"error": "ImportError: libnvinfer.so.10"}}, "tensorrt", REINSTALL),
        ("x86-gpu", {"tensorrt": {"error": "it broke"}}, "tensorrt", "pip install --force-reinstall tensorrt"),
        ("x86-gpu", {"tensorrt": OLD}, "tensorrt", "pip install --upgrade 'edge-attn[trt]'"),
        (
            "x86-gpu",
            {"tensorrt_rtx": {"error": "it broke"}},
            "tensorrt-rtx",
            "pip install --force-reinstall --only-binary=:all: tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
        ),
        (
            "x86-gpu",
            {"onnxruntime": {"error": "it broke"}},
            "onnxruntime",
            "pip uninstall -y onnxruntime-gpu && pip install onnxruntime-gpu",
        ),
        (
            "x86-no-gpu",
            {"onnxruntime": {"version": "1", "file": "f", "runs": [], "reasons": {"CPUExecutionProvider": "no"}}},
            "providers",
            "pip uninstall -y onnxruntime && pip install onnxruntime",
        ),
    ],
)
def test_further_faults(name, probes, check, command):
    whole = recorded(name)
    changed = dataclasses.replace(whole, probe=lambda asked: {**kept(whole, asked, probes), **probes.get(asked, {})})
    found = checks(doctor(changed))[check]
    assert (found.status, found.command) == ("fault", command)


def kept(whole: Machine, asked: str, probes: dict[str, Any]) -> dict[str, Any]:
    """Of a probe that is replaced, only this Python is kept."""
    return whole.probe(asked) if asked == "python" or asked not in probes else {}


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (100, "unset CUDA_VISIBLE_DEVICES"),
        (802, "sudo systemctl start nvidia-fabricmanager"),
        (803, "sudo reboot"),
        (0, "sudo ubuntu-drivers install && sudo reboot"),
    ],
)
def test_a_driver_whose_cuda_fails(code, command):
    whole = recorded("x86-gpu")
    probes = {"cuda": {"devices": [], "runtimes": [], "error": "it failed", "code": code}}
    check = checks(doctor(dataclasses.replace(whole, probe=lambda name: probes.get(name) or whole.probe(name))))["gpu"]
    assert (check.status, check.command) == ("fault", command)


# ---- whatever is missing

SEAM = [field.name for field in dataclasses.fields(Machine)]


def refuse(*_: object) -> Any:
    raise PermissionError("refused by this test")


@pytest.mark.parametrize("name", ["orin-jetpack-6.2", "x86-gpu", "x86-no-gpu"])
@pytest.mark.parametrize("broken", [*([part] for part in SEAM), SEAM], ids=lambda parts: "+".join(parts))
def test_nothing_is_raised_whatever_fails(name, broken):
    report = doctor(dataclasses.replace(recorded(name), **dict.fromkeys(broken, refuse)))
    assert [check.name for check in report.checks] == list(CHECKS)
    assert "PermissionError: refused by this test" in str(report)
    assert report.exit_code == 3


@pytest.mark.parametrize(
    "answer", [{}, {"error": "no answer within 60 s"}, {"error": "Python died with exit code -11"}]
)
@pytest.mark.parametrize("probe", ["cuda", "tensorrt", "tensorrt_rtx", "onnxruntime"])
@pytest.mark.parametrize("name", ["orin-jetpack-6.2", "orin-jetpack-7.2", "x86-gpu", "x86-no-gpu"])
def test_no_check_breaks_where_a_probe_finds_nothing(name, probe, answer):
    whole = recorded(name)
    report = doctor(dataclasses.replace(whole, probe=lambda asked: answer if asked == probe else whole.probe(asked)))
    assert "could not be made" not in str(report)
    if "error" in answer and probe != "cuda":
        assert report.exit_code == 3


@pytest.mark.parametrize("text", ["", "\x00\xff\n", "MemAvailable:  kB\nDriver Version: \n# R (release)"])
@pytest.mark.parametrize("name", ["orin-jetpack-6.2", "x86-gpu"])
def test_no_check_breaks_where_every_file_and_command_is_empty_or_noise(name, text):
    silent = dataclasses.replace(recorded(name), read_text=lambda _: text, run=lambda *_: (1, text))
    assert "could not be made" not in str(doctor(silent))


# ---- this machine


def test_this_machine_is_examined_within_three_seconds():
    times = []
    for _ in range(2):  # the first may have to read libraries from the disk
        start = time.perf_counter()
        report = doctor()
        times.append(time.perf_counter() - start)
    assert min(times) < 3
    assert "could not be made" not in str(report)
    assert checks(report)["runtimes"].status == "ok"
    assert "ort-cpu" in checks(report)["runtimes"].found


def test_the_command_prints_the_report_and_has_its_exit_code(edge_attn_cli):
    code = doctor().exit_code
    assert json.loads(edge_attn_cli("doctor", "--json", code=code).stdout)["verdict"] == ("fault" if code else "ok")
    assert "runtimes" in edge_attn_cli("doctor", code=code).stdout


def test_commands_that_are_absent_or_take_too_long(tmp_path):
    assert machine.run("no-such-command-here") == (machine.NOT_FOUND, "")
    assert machine.run(sys.executable, "-c", "print('said'); raise SystemExit(3)") == (3, "said")
    code = (
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "child.wait()"
    )
    start = time.perf_counter()
    assert machine.run(sys.executable, "-c", code, timeout=1) == (machine.TOO_SLOW, "")
    assert time.perf_counter() - start < 5
    child = int((tmp_path / "pid").read_text())
    for _ in range(50):  # the kernel ends it when it gets to it
        try:
            os.kill(child, signal.SIG_DFL)
        except ProcessLookupError:
            break
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("what the command had started still runs")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("__version__ = '10.3.0'\nprint('noise')\nimport sys\nprint('{', file=sys.stderr)", {"version": "10.3.0"}),
        ("raise ImportError('libnvinfer.so.10: cannot open')", {"error": "ImportError: libnvinfer.so.10: cannot open"}),
        ("import os\nos.abort()", {"error": "Python died with exit code -6"}),
        ("import time\ntime.sleep(60)", {"error": "no answer within 2 s"}),
    ],
)
def test_a_library_that_fails_as_it_loads_is_a_finding(source, expected, tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    found = machine.probe("tensorrt", timeout=2)
    assert {name: found[name] for name in expected} == expected


def test_a_probe_runs_here_where_no_process_can_be_started(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.3.0'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(machine, "run", lambda *_, timeout: (machine.NOT_FOUND, ""))
    try:
        assert machine.probe("tensorrt")["version"] == "10.3.0"
    finally:
        sys.modules.pop("tensorrt", None)


def test_a_module_that_is_absent_starts_nothing(monkeypatch):
    monkeypatch.setattr(doctor_probes, "is_there", lambda module: False)
    monkeypatch.setattr(machine, "run", refuse)
    assert machine.probe("tensorrt") == {}


FAKE = """
import os
__version__ = "1.0"
def get_available_providers():
    return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
class InferenceSession:
    def __init__(self, graph, providers):
        self.providers = providers
        BODY
    def get_providers(self):
        return self.providers
    def run(self, names, inputs):
        return [inputs["x"] * 2]
"""
FALLS_BACK = (
    "if len(providers) > 1: os.write(2, b'[E:onnxruntime] Failed to load library libonnxruntime_providers_cuda.so "
    "with error: libcublasLt.so.12: cannot open shared object file\\n\\n[W:onnxruntime] Failed to create\\n')\n"
    "        self.providers = ['CPUExecutionProvider']"
)
NO_KERNEL = (
    "if len(providers) > 1: raise RuntimeError('CUDA failure 209: no kernel image is available for execution on the "
    "device ; GPU=0 ; file=x.cu')"
)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (FALLS_BACK, "libcublasLt.so.12: cannot open shared object file"),
        (NO_KERNEL, "CUDA failure 209: no kernel image is available for execution on the device"),
        ("self.run = lambda *_: [[3.0]] if len(providers) > 1 else [[2.0]]", "1 + 1 gave 3.0"),
        ("pass", None),
    ],
)
def test_a_provider_counts_only_if_it_runs_a_graph(body, reason, tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text(FAKE.replace("BODY", body))
    monkeypatch.syspath_prepend(tmp_path)
    found = machine.probe("onnxruntime")
    assert found["listed"][1] == "CUDAExecutionProvider"
    if reason is None:
        assert found["runs"] == ["CPUExecutionProvider", "CUDAExecutionProvider"]
    else:
        assert found["runs"] == ["CPUExecutionProvider"]
        assert found["reasons"] == {"CUDAExecutionProvider": reason}


def test_what_is_left_of_an_uninstalled_onnxruntime_is_a_finding(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "onnxruntime" / "__init__.py").write_text("")
    assert "has no InferenceSession" in machine.probe("onnxruntime")["error"]


def test_onnx_runtime_runs_the_graph_that_it_is_tried_with():
    found = here().probe("onnxruntime")
    assert "CPUExecutionProvider" in found["runs"]
    assert found["version"]


def test_the_graph_is_onnx(needs_torch):
    onnx = pytest.importorskip("onnx", reason="torch is not installed: a device needs none, nor onnx")
    model = onnx.load_model_from_string(doctor_probes.GRAPH)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Add"]


def test_the_folder_of_engines_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine.usage().engines == 0
    assert machine.usage().writable
    (tmp_path / "edge-attn" / "engines").mkdir(parents=True)
    (tmp_path / "edge-attn" / "engines" / "a.engine").write_bytes(bytes(1000))
    (tmp_path / "edge-attn" / "engines" / "a.json").write_bytes(bytes(24))
    found = machine.usage()
    assert (found.folder, found.engines, found.size) == (str(tmp_path / "edge-attn"), 1, 1024)
    assert found.free > 0
