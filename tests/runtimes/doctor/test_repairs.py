"""The repair table of `edge-attn doctor`, on recorded machines with changed answers."""

from __future__ import annotations

from typing import Any

import pytest
from machines import DOCKER, PIP, REBOOT, answers, checks, python, recorded

from edge_attn import __version__
from edge_attn.runtimes.doctor.check import Check, doctor


def check(machine: str, name: str, **changes: Any) -> Check:
    return checks(doctor(recorded(machine, **changes)))[name]


def without_cuda(error: str) -> dict[str, Any]:
    """Return the probe of CUDA without a device, with this error."""
    return {"cuda": {"devices": [], "runtimes": [], "error": error}}


NO_LIBCUDA = "libcuda.so.1: cannot open shared object file"


# ---- the driver

JOIN_GROUPS = f"sudo usermod -aG video,render $USER && {REBOOT}"
INSTALL_DRIVER = f"sudo ubuntu-drivers install && {REBOOT}"


@pytest.mark.parametrize(
    ("machine", "error", "status", "command"),
    [
        ("x86-gpu", "cuInit returned CUDA error 100", "fault", "unset CUDA_VISIBLE_DEVICES"),
        ("x86-gpu", "cuInit returned CUDA error 802", "fault", REBOOT),
        ("x86-gpu", NO_LIBCUDA, "fault", REBOOT),
        ("x86-gpu-without-driver", NO_LIBCUDA, "fault", INSTALL_DRIVER),
        ("x86-no-gpu", "cuInit returned CUDA error 100", "note", ""),
        ("orin-jetpack-6.2", "cuInit returned CUDA error 999", "fault", JOIN_GROUPS),
        ("orin-jetpack-6.2", NO_LIBCUDA, "fault", JOIN_GROUPS),
        ("thor-jetpack-7.2", NO_LIBCUDA, "fault", JOIN_GROUPS),
    ],
)
def test_error_of_cuda_selects_the_command(machine, error, status, command):
    """A missing device is no fault on a machine without a card."""
    result = check(machine, "gpu", probes=without_cuda(error))
    assert (result.status, result.command) == (status, command)
    assert error in result.finding
    if command in (REBOOT, JOIN_GROUPS):
        assert "see docs/jetson.md, 'If doctor does not name your problem'" in result.advice


# ---- boards


@pytest.mark.parametrize(
    ("chip", "release", "model"),
    [
        ("nvidia,tegra210", "# R32 (release), REVISION: 7.1, GCID: 1", "NVIDIA Jetson Nano Developer Kit"),
        ("nvidia,tegra194", "# R35 (release), REVISION: 4.1, GCID: 1", "NVIDIA Jetson Xavier NX"),
    ],
)
@pytest.mark.parametrize(
    "tensorrt", [{}, {"error": "it broke"}, {"version": "8.5.2", "file": "/usr/lib/python3.10/dist-packages/t"}]
)
def test_board_before_orin_has_one_fault(chip, release, model, tensorrt):
    """There is no JetPack 6 for it."""
    files = {
        "/proc/device-tree/compatible": [chip],
        "/proc/device-tree/model": [model],
        "/etc/nv_tegra_release": [release],
        "/proc/meminfo": ["MemTotal: 2000000 kB", "MemAvailable: 900000 kB", "SwapTotal: 0 kB"],
    }
    report = doctor(recorded("orin-jetpack-5.1", files=files, probes={"tensorrt": tensorrt}))
    results = checks(report)
    assert report.faults == [results["board"]]
    assert results["board"].finding.startswith(model)
    assert results["board"].advice.endswith("boards before Orin run only ort-cpu")
    assert results["runtimes"].finding == "ready: ort-cpu"


# ---- TensorRT

CONDA = {"prefix": "/opt/conda", "base_prefix": "/opt/conda", "executable": "/opt/conda/bin/python"}
SPACED = {"prefix": "/home/user/my env", "executable": "/home/user/my env/bin/python"}
NEW_VENV = (
    "/usr/bin/python3 -m venv --system-site-packages .venv && "
    f".venv/bin/pip install 'edge_attn-{__version__}-py3-none-any.whl[cpu,optimize]'"
)
NVDLA = {"error": "ImportError: libnvdla_compiler.so: cannot open shared object file"}
LIBRARY = {"error": "ImportError: libnvinfer.so.10: cannot open shared object file"}
APT = "sudo apt update && sudo apt install"
REINSTALL = f"{APT} --reinstall libnvinfer10 python3-libnvinfer"
WHEELS = tuple(
    [name, "10.13.2.6", "/home/user/.venv/lib/python3.10/site-packages"]
    for name in ("tensorrt", "tensorrt-cu13", "tensorrt-cu13-bindings")
)
OF_APT = ["tensorrt", "10.3.0", "/usr/lib/python3.10/dist-packages"]
RTX = ["tensorrt-rtx-cu13-libs", "1.7.1.116", "/home/user/.venv/lib/python3.10/site-packages"]


@pytest.mark.parametrize(
    ("machine", "probes", "name", "command"),
    [
        ("orin-venv-without-system-packages", {"python": CONDA}, "tensorrt", NEW_VENV),
        (
            "orin-venv-without-system-packages",
            {"python": SPACED},
            "tensorrt",
            '/usr/bin/python3 -m venv --system-site-packages "/home/user/my env"',
        ),
        ("orin-venv-without-system-packages", {"python": {"version": "3.11.9"}}, "tensorrt", NEW_VENV),
        ("orin-jetpack-7.2", {"tensorrt": NVDLA}, "tensorrt", REINSTALL),
        ("orin-jetpack-6.2", {"tensorrt": LIBRARY}, "tensorrt", REINSTALL),
        ("x86-gpu", {"tensorrt": {"error": "it broke"}}, "tensorrt", f"{PIP} install --force-reinstall tensorrt"),
        (
            "x86-gpu",
            {"tensorrt": {"error": "it broke"}, "python": SPACED},
            "tensorrt",
            "'/home/user/my env/bin/python' -m pip install --force-reinstall tensorrt",
        ),
        (
            "x86-gpu",
            {"tensorrt": {"error": "it broke"}, "python": {"executable": ""}},
            "tensorrt",
            "python3 -m pip install --force-reinstall tensorrt",
        ),
        (
            "x86-gpu",
            {"tensorrt_rtx": {"error": "it broke"}},
            "tensorrt-rtx",
            f"{PIP} install --force-reinstall --only-binary=:all: tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
        ),
        (
            "x86-gpu",
            {"onnxruntime": {"error": "it broke"}},
            "onnxruntime",
            f"{PIP} uninstall -y onnxruntime onnxruntime-gpu && {PIP} install 'edge-attn[gpu]'",
        ),
        (
            "x86-no-gpu",
            {"onnxruntime": {"version": "1.20", "file": "f", "runs": [], "reasons": {"CPUExecutionProvider": "no"}}},
            "runtimes",
            f"{PIP} uninstall -y onnxruntime onnxruntime-gpu && {PIP} install 'edge-attn[cpu]'",
        ),
        (
            "x86-gpu",
            {
                "onnxruntime": {
                    "version": "1.20",
                    "file": "f",
                    "runs": ["CPUExecutionProvider"],
                    "reasons": {"CUDAExecutionProvider": "no kernel image is available"},
                }
            },
            "providers",
            f"{PIP} install --upgrade 'onnxruntime-gpu[cuda,cudnn]'",
        ),
    ],
)
def test_damaged_library_gets_its_command(machine, probes, name, command):
    probes = {**probes, "python": python(machine, **probes.get("python", {}))}
    result = check(machine, name, probes=probes)
    assert (result.status, result.command) == ("fault", command)


@pytest.mark.parametrize("error", [LIBRARY, NVDLA])
@pytest.mark.parametrize(
    ("name", "container"), [("orin-jetpack-6.2", []), ("orin-jetpack-7.2", []), ("orin-jetpack-6.2", ["/.dockerenv"])]
)
def test_damaged_wheel_on_a_jetson_is_removed_first(name, container, error):
    probes = {"tensorrt": error, "python": python(name, *WHEELS, OF_APT, RTX)}
    result = check(name, "tensorrt", probes=probes, paths=[*answers(name)["paths"], *container])
    assert result.command == f"{PIP} uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-bindings"


def test_apt_package_is_not_removed_as_a_wheel():
    """Python lists apt's package too."""
    probes = {"tensorrt": LIBRARY, "python": python("orin-jetpack-6.2", OF_APT, RTX)}
    assert check("orin-jetpack-6.2", "tensorrt", probes=probes).command == REINSTALL


def test_newer_tensorrt_from_apt_is_ok():
    probes = {"tensorrt": {"version": "11.4.1", "file": "/usr/lib/python3.12/dist-packages/tensorrt/__init__.py"}}
    result = check("thor-jetpack-7.2", "tensorrt", probes=probes)
    assert (result.status, result.command) == ("ok", "")


def test_damaged_tensorrt_is_no_fault_without_a_gpu():
    report = doctor(recorded("x86-no-gpu", probes={"tensorrt": LIBRARY}))
    assert report.exit_code == 0
    result = checks(report)["tensorrt"]
    assert (result.status, result.advice) == ("note", "not used: it needs a GPU, and on a board JetPack 6.1")
    assert "libnvinfer.so.10" in result.finding


# ---- memory, cache, ONNX Runtime


def test_memory_limit_of_a_container_counts():
    files = {"/sys/fs/cgroup/memory.max": ["2147483648"], "/sys/fs/cgroup/memory.current": ["1073741824"]}
    result = check("x86-gpu", "memory", files=files)
    assert result.status == "fault"
    assert result.finding.startswith("1.0 GiB available (the container's limit)")


@pytest.mark.parametrize(
    ("name", "status", "command"),
    [
        ("orin-jetpack-6.2", "fault", "sudo systemctl isolate multi-user.target"),
        ("x86-gpu", "fault", "ps aux --sort=-rss | head"),
        ("x86-no-gpu", "ok", ""),
    ],
)
def test_unknown_memory_is_a_fault_if_engines_are_built(name, status, command):
    result = check(name, "memory", files={"/proc/meminfo": []})
    assert (result.status, result.command) == (status, command)


@pytest.mark.parametrize("name", ["orin-jetpack-6.2", "x86-gpu", "x86-no-gpu"])
def test_missing_home_folder_is_a_note(name):
    """The error's text names --cache-dir and XDG_CACHE_HOME, either of which suffices."""
    result = check(name, "cache", probes={"cache": {"error": "there is no home folder"}})
    assert (result.status, result.finding, result.command) == ("note", "there is no home folder", "")


def test_read_only_cache_gets_a_quoted_command():
    cache = {"folder": "/home/user/my cache/edge-attn", "free": 2**34, "writable": False}
    folder = '"/home/user/my cache/edge-attn"'
    command = f"sudo mkdir -p {folder} && sudo chown -R $USER {folder}"
    assert check("x86-gpu", "cache", probes={"cache": cache}).command == command


def test_two_onnxruntimes_in_two_folders_are_ok():
    probes = {"python": python("x86-gpu", ["onnxruntime", "1.20.0", "/usr/lib/python3/dist-packages"])}
    result = check("x86-gpu", "onnxruntime", probes=probes)
    assert result.status == "ok"
    assert "onnxruntime 1.20.0" in result.finding


def test_container_on_a_jetson_gets_docker_command():
    result = check("orin-jetpack-7.2", "gpu", probes=without_cuda(NO_LIBCUDA), paths=["/.dockerenv"])
    assert (result.status, result.command) == ("fault", DOCKER)


# ---- printing


def test_error_of_two_lines_is_printed_in_one():
    error = "ImportError: numpy.core.multiarray failed to import\n\n  A module that was compiled using NumPy 1.x"
    report = doctor(recorded("x86-gpu", probes={"tensorrt": {"error": error}}))
    (line,) = (line for line in str(report).splitlines() if "numpy.core" in line)
    assert line.endswith("failed to import A module that was compiled using NumPy 1.x")
    assert checks(report)["tensorrt"].finding.endswith(error)


# ---- versions that are too old


def test_old_onnxruntime_is_a_fault():
    probe = {**answers("x86-no-gpu")["probes"]["onnxruntime"], "version": "1.17.3"}
    del probe["runs"]
    results = checks(doctor(recorded("x86-no-gpu", probes={"onnxruntime": probe})))
    for name in ("onnxruntime", "runtimes"):
        check = results[name]
        assert (check.status, check.advice) == ("fault", "too old: 1.18 or later is needed")
        assert check.command == f"{PIP} install --upgrade 'edge-attn[cpu]'"


def test_old_tensorrt_is_a_fault():
    probe = {**answers("x86-gpu")["probes"]["tensorrt"], "version": "10.2.0"}
    report = doctor(recorded("x86-gpu", probes={"tensorrt": probe}))
    assert checks(report)["tensorrt"].advice == "too old: 10.3 or later is needed"
    assert "trt" not in checks(report)["runtimes"].finding.split(": ")[1].split(", ")
    assert report.exit_code == 3


def test_old_library_is_a_fault():
    libraries = {"numpy": "1.23.5", "onnx": "1.16.0", "sacrebleu": "2.5.1"}
    report = doctor(recorded("x86-no-gpu", probes={"python": python("x86-no-gpu", libraries=libraries)}))
    check = checks(report)["libraries"]
    assert check.finding == "numpy 1.23.5, onnx 1.16.0, sacrebleu 2.5.1"
    assert (check.status, check.command) == ("fault", f"{PIP} install --upgrade 'numpy>=1.24' 'onnx>=1.17'")
