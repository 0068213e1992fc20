"""`edge-attn doctor` on recorded machines (tests/data/machines), and on machines where nothing can be read."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from machines import DOCKER, MACHINES, NAMES, PIP, REBOOT, checks, recorded

from edge_attn import __version__
from edge_attn.runtimes.doctor.check import doctor
from edge_attn.runtimes.doctor.findings import FINDINGS
from edge_attn.runtimes.doctor.machine import Machine
from edge_attn.runtimes.doctor.repairs import FAULT, NOTE, OK, REPAIRS

# ---- recorded machines

HEALTHY = {
    "orin-jetpack-6.2": {
        "board": "Developer Kit Super, JetPack 6 (L4T 36.4.3)",
        "system": "Ubuntu 22.04.5 LTS on aarch64; Python 3.10.12",
        "gpu": "Orin, compute capability 8.7, 7.4 GiB shared with the CPU, driver 540.4.0",
        "cuda": "CUDA 12.6; libcudart 12.6",
        "tensorrt": "10.3.0 (/usr/lib/python3.10/dist-packages/tensorrt/__init__.py)",
        "onnxruntime": "onnxruntime 1.23.2",
        "providers": "a graph runs on CPUExecutionProvider",
        "memory": "5.9 GiB available of 7.4 GiB, swap 3.7 GiB",
        "cache": "/home/user/.cache/edge-attn: 92.0 GiB free on its disk",
        "runtimes": "trt, ort-cpu",
    },
    "orin-jetpack-7.2": {
        "board": "JetPack 7 (L4T 39.2.0)",
        "system": "Python 3.12.3",
        "gpu": "Orin, compute capability 8.7",
        "cuda": "CUDA 13.2; libcudart 13.2",
        "tensorrt": "10.16.2.10",
        "memory": "swap none",
        "runtimes": "trt, ort-cpu",
    },
    "thor-jetpack-7.2": {
        "board": "NVIDIA Jetson AGX Thor Developer Kit, JetPack 7 (L4T",
        "gpu": "NVIDIA Thor, compute capability 11.0",
        "tensorrt": "10.16.2.10",
        "memory": "118.5 GiB available of 122.9 GiB",
        "runtimes": "trt, ort-cpu",
    },
    "x86-gpu": {
        "board": "no Jetson",
        "gpu": "Tesla T4, compute capability 7.5, 16.0 GiB, driver 580.126.20",
        "tensorrt": "10.16.1.11",
        "providers": "CPUExecutionProvider, CUDAExecutionProvider",
        "runtimes": "trt, ort-cuda, ort-cpu",
    },
    "x86-gpu-driver-610": {"gpu": "Tesla T4, compute capability 7.5, 16.0 GiB, driver 610.43.02"},
    "x86-no-gpu": {
        "board": "no Jetson",
        "gpu": "no GPU that CUDA can use",
        "tensorrt-rtx": "1.7.1.116",
        "runtimes": "ready: ort-cpu",
    },
    "x86-no-gpu-onnxruntime-gpu": {"providers": "not on CUDAExecutionProvider: libcublasLt.so.13"},
}
"""Machines without a fault, and a part of their findings."""

SWAP = "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"
FAULTY = {
    "orin-container-without-gpu": {
        "gpu": ("no GPU that CUDA can use", DOCKER),
        "tensorrt": ("libnvdla_compiler.so", DOCKER),
    },
    "orin-jetpack-5.1": {"board": ("JetPack 5 (L4T 35.4.1)", "sdkmanager")},
    "orin-no-swap": {"memory": ("2.9 GiB available of 7.4 GiB, swap none", SWAP)},
    "orin-onnxruntime-gpu": {
        "providers": (
            "no kernel image",
            f"{PIP} uninstall -y onnxruntime onnxruntime-gpu && {PIP} install 'edge-attn[cpu]'",
        )
    },
    "orin-other-python": {
        "tensorrt": (
            "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py is not on the path of /home/user/.venv/bin/python",
            "/usr/bin/python3 -m venv --system-site-packages .venv && "
            f".venv/bin/pip install 'edge_attn-{__version__}-py3-none-any.whl[cpu,optimize]'",
        )
    },
    "orin-too-little-memory": {"memory": ("0.9 GiB available", "sudo systemctl isolate multi-user.target")},
    "orin-user-not-in-render": {
        "gpu": ("no GPU that CUDA can use", f"sudo usermod -aG video,render $USER && {REBOOT}")
    },
    "orin-venv-without-system-packages": {
        "tensorrt": (
            "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py is not on the path",
            '/usr/bin/python3 -m venv --system-site-packages "/home/user/.venv"',
        )
    },
    "orin-wheel-hides-tensorrt": {
        "tensorrt": (
            "10.13.2.6",
            f"{PIP} uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs",
        )
    },
    "orin-without-bindings": {"tensorrt": ("not installed", "sudo apt update && sudo apt install python3-libnvinfer")},
    "orin-without-dla-compiler": {
        "tensorrt": ("libnvdla_compiler.so", "sudo apt update && sudo apt install nvidia-l4t-dla-compiler")
    },
    "orin-without-tensorrt": {
        "cuda": ("no libcudart", "sudo apt update && sudo apt install cuda-cudart-13-2"),
        "tensorrt": ("not installed", "sudo apt update && sudo apt install python3-libnvinfer"),
    },
    "x86-gpu-driver-mismatch": {"gpu": ("Driver/library version mismatch", REBOOT)},
    "x86-gpu-hangs": {
        "gpu": ("nvidia-smi: no answer", REBOOT),
        "onnxruntime": ("no answer within 60 s", "CUDA_VISIBLE_DEVICES= edge-attn doctor"),
        "runtimes": ("none is ready", "CUDA_VISIBLE_DEVICES= edge-attn doctor"),
    },
    "x86-gpu-mixed-onnxruntime": {
        "onnxruntime": (
            "onnxruntime 1.31.1, onnxruntime-gpu 1.31.1",
            f"{PIP} uninstall -y onnxruntime onnxruntime-gpu && {PIP} install 'edge-attn[gpu]'",
        )
    },
    "x86-gpu-old-driver": {
        "cuda": ("supports CUDA 12.4; libcudart 13.0", f"{PIP} install nvidia-cuda-runtime-cu12"),
        "tensorrt": (
            "10.16.1.11",
            f"{PIP} uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs && "
            f"{PIP} install tensorrt-cu12",
        ),
        "providers": ("driver version is insufficient", f"sudo ubuntu-drivers install && {REBOOT}"),
    },
    "x86-gpu-without-cublas": {
        "providers": ("libcublasLt.so.13: cannot open", f"{PIP} install --upgrade 'onnxruntime-gpu[cuda,cudnn]'")
    },
    "x86-gpu-without-driver": {"gpu": ("no GPU that CUDA can use", f"sudo ubuntu-drivers install && {REBOOT}")},
    "x86-no-gpu-bare": {
        "onnxruntime": ("not installed", f"{PIP} install 'edge-attn[cpu]'"),
        "runtimes": ("none is ready", f"{PIP} install 'edge-attn[cpu]'"),
    },
}
"""Machines with faults: a part of each finding, and the command."""


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_machine_has_no_fault(name):
    report = doctor(recorded(name))
    assert (report.faults, report.exit_code) == ([], 0)
    results = checks(report)
    for check, words in HEALTHY[name].items():
        assert words in results[check].finding
    assert str(report).endswith("\nno fault")


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_machine_has_its_commands(name):
    report = doctor(recorded(name))
    assert {check.name: check.command for check in report.faults} == {
        check: command for check, (_, command) in FAULTY[name].items()
    }
    results = checks(report)
    for check, (words, command) in FAULTY[name].items():
        assert words in results[check].finding
        assert f"run: {command}\n" in str(report)
    assert report.exit_code == 3


def test_every_recorded_machine_is_in_a_table():
    assert sorted([*HEALTHY, *FAULTY]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_recorded_machine_names_its_source(name):
    content = json.loads((MACHINES / f"{name}.json").read_text(encoding="utf-8"))
    assert content["source"]
    assert all(content["source"])
    if "like" not in content and not content["recorded"]:
        assert "not recorded" in content["source"][0]


@pytest.mark.parametrize("name", NAMES)
def test_every_check_has_a_finding_and_every_fault_a_command(name):
    report = doctor(recorded(name))
    assert [check.name for check in report.checks] == list(FINDINGS)
    for check in report.checks:
        assert check.status in (OK, NOTE, FAULT)
        assert check.finding
        assert check.command or check.status != "fault"
    content = json.loads(report.json())
    assert report.json().endswith("}\n")
    assert content["verdict"] == ("fault" if report.exit_code else "ok")
    keys = {"name", "status", "found", "advice", "command"}  # codespell:ignore found
    assert all(set(check) == keys for check in content["checks"])


def test_every_row_has_a_status_and_every_fault_a_command():
    assert list(REPAIRS) == list(FINDINGS)
    for rows in REPAIRS.values():
        for status, _, _, command in rows:
            assert status in (OK, NOTE, FAULT)
            assert command or status != FAULT


@pytest.mark.parametrize(
    ("release", "jetpack", "is_old"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 33958178", "JetPack 5 (L4T 35.4.1)", True),
        ("# R36 (release), REVISION: 3.0, GCID: 36191598", "JetPack 6 (L4T 36.3.0)", True),
        ("# R36 (release), REVISION: 4.0, GCID: 1", "JetPack 6 (L4T 36.4.0)", False),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464", "JetPack 7 (L4T 38.2.0)", False),
        ("# R39 (release), REVISION: 2.1, GCID: 46758480", "JetPack 7 (L4T 39.2.1)", False),
        ("# R40 (release), REVISION: 1.0, GCID: 1", "JetPack unknown (L4T 40.1.0)", False),
    ],
)
def test_old_l4t_release_is_a_fault(release, jetpack, is_old):
    result = checks(doctor(recorded("orin-jetpack-6.2", files={"/etc/nv_tegra_release": [release]})))["board"]
    assert result.finding.endswith(jetpack)
    assert result.status == ("fault" if is_old else "ok")


# ---- missing parts

PARTS = [field.name for field in dataclasses.fields(Machine)]


def refuse(*_: object) -> Any:
    raise PermissionError("refused by this test")


@pytest.mark.parametrize("name", ["orin-jetpack-6.2", "x86-gpu", "x86-no-gpu"])
@pytest.mark.parametrize("broken", [*([part] for part in PARTS), PARTS], ids=lambda parts: "+".join(parts))
def test_failing_part_raises_nothing(name, broken):
    report = doctor(dataclasses.replace(recorded(name), **dict.fromkeys(broken, refuse)))
    assert [check.name for check in report.checks] == list(FINDINGS)
    assert "PermissionError: refused by this test" in str(report)
    assert report.exit_code == 3


@pytest.mark.parametrize(
    "answer", [{}, {"error": "no answer within 60 s"}, {"error": "Python died with exit code -11"}]
)
@pytest.mark.parametrize("probe", ["cuda", "tensorrt", "tensorrt_rtx", "onnxruntime"])
@pytest.mark.parametrize("name", ["orin-jetpack-6.2", "orin-jetpack-7.2", "x86-gpu", "x86-no-gpu"])
def test_empty_probe_fails_no_check(name, probe, answer):
    machine = recorded(name)
    answers = {probe: answer}
    report = doctor(
        dataclasses.replace(machine, probe=lambda row: answers[row] if row in answers else machine.probe(row))
    )
    assert "check failed" not in str(report)
    if "error" in answer and probe != "cuda" and (name, probe) != ("x86-no-gpu", "tensorrt"):
        assert report.exit_code == 3


@pytest.mark.parametrize("text", ["", "\x00\xff\n", "MemAvailable:  kB\nDriver Version: \n# R (release)"])
@pytest.mark.parametrize("name", ["orin-jetpack-6.2", "x86-gpu"])
def test_empty_or_noisy_files_fail_no_check(name, text):
    silent = dataclasses.replace(recorded(name), read_text=lambda _: text, run=lambda *_: (1, text))
    assert "check failed" not in str(doctor(silent))
