"""`edge-attn doctor` on recorded machines with some of their answers changed: each fault, and its command."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from machines import LEND, PIP, REBOOT, answers, checks, python, recorded

from edge_attn import __version__
from edge_attn.errors import InputError
from edge_attn.runtimes.doctor.check import Check
from edge_attn.runtimes.doctor.doctor import doctor


def check(name: str, of: str, **changes: Any) -> Check:
    return checks(doctor(recorded(name, **changes)))[of]


def without_cuda(**found: object) -> dict[str, Any]:
    """What the probe of CUDA says where it shows no device."""
    return {"cuda": {"devices": [], "runtimes": [], **found}}


NO_LIBCUDA = without_cuda(error="libcuda.so.1: cannot open shared object file")


# ---- the driver

HEADERS = (
    "| NVIDIA-SMI 580.126.20             Driver Version: 580.126.20     CUDA Version: 13.0     |",
    "| NVIDIA-SMI 610.43.03              KMD Version: 610.43.03     CUDA UMD Version: 13.3     |",
    "| NVIDIA-SMI 700.10                 written in yet another way                            |",
)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(
    ("code", "command"),
    [
        (100, "unset CUDA_VISIBLE_DEVICES"),
        (802, "sudo systemctl start nvidia-fabricmanager"),
        (803, REBOOT),
        (0, f"sudo ubuntu-drivers install && {REBOOT}"),
    ],
)
def test_a_driver_whose_cuda_fails(header, code, command):
    probes = without_cuda(error="it failed", code=code)
    found = check("x86-gpu", "gpu", commands={"nvidia-smi": [0, header]}, probes=probes)
    assert (found.status, found.command) == ("fault", command)
    assert found.found.endswith("but it failed")


@pytest.mark.parametrize("header", HEADERS)
def test_a_container_that_was_lent_nvidia_smi_alone(header):
    found = check("x86-gpu", "gpu", commands={"nvidia-smi": [0, header]}, probes=NO_LIBCUDA, paths=["/.dockerenv"])
    assert found.status == "fault"
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in found.command


@pytest.mark.parametrize(
    ("code", "status", "command"),
    [
        (803, "fault", REBOOT),
        (999, "fault", REBOOT),
        (100, "note", ""),
    ],
)
def test_what_cuda_says_counts_without_nvidia_smi(code, status, command):
    """But that there is no device is no fault where there is no card."""
    found = check("x86-no-gpu", "gpu", probes=without_cuda(error="it failed", code=code))
    assert (found.status, found.command) == (status, command)


@pytest.mark.parametrize(
    ("system", "command"),
    [
        (["ID=ubuntu", "ID_LIKE=debian"], f"sudo ubuntu-drivers install && {REBOOT}"),
        (["ID=linuxmint", 'ID_LIKE="ubuntu debian"'], f"sudo ubuntu-drivers install && {REBOOT}"),
        (["ID=pop", 'ID_LIKE="ubuntu debian"'], f"sudo ubuntu-drivers install && {REBOOT}"),
        (["ID=debian"], f"sudo apt update && sudo apt install nvidia-driver && {REBOOT}"),
        (["ID=raspbian", "ID_LIKE=debian"], f"sudo apt update && sudo apt install nvidia-driver && {REBOOT}"),
        (["ID=fedora"], "xdg-open https://www.nvidia.com/drivers"),
        (["ID=arch"], "xdg-open https://www.nvidia.com/drivers"),
        ([], "xdg-open https://www.nvidia.com/drivers"),
    ],
)
def test_the_driver_comes_as_the_system_has_it(system, command):
    found = check("x86-gpu-without-driver", "gpu", files={"/etc/os-release": system})
    assert (found.status, found.command) == ("fault", command)


# ---- a Jetson's GPU


@pytest.mark.parametrize(
    ("name", "release", "package"),
    [
        ("orin-jetpack-6.2", None, "nvidia-l4t-cuda"),
        ("orin-jetpack-7.2", None, "nvidia-l4t-cuda-nvgpu"),
        ("thor-jetpack-7.2", None, "nvidia-l4t-cuda-openrm"),
        ("thor-jetpack-7.2", "# R38 (release), REVISION: 2.0, GCID: 41844464", "nvidia-l4t-cuda"),
        ("thor-jetpack-7.2", "", "nvidia-l4t-cuda"),
    ],
)
def test_libcuda_comes_from_the_package_of_this_l4t_and_board(name, release, package):
    files = {} if release is None else {"/etc/nv_tegra_release": [release]}
    found = check(name, "gpu", probes=NO_LIBCUDA, files=files)
    command = f"sudo apt update && sudo apt install --reinstall {package} && {REBOOT}"
    assert (found.status, found.command) == ("fault", command)


@pytest.mark.parametrize(("code", "command"), [(100, "unset CUDA_VISIBLE_DEVICES"), (999, REBOOT)])
@pytest.mark.parametrize("name", ["orin-jetpack-6.2", "thor-jetpack-7.2"])
def test_a_jetson_whose_cuda_says_why(name, code, command):
    found = check(name, "gpu", probes=without_cuda(error="it failed", code=code))
    assert (found.status, found.command) == ("fault", command)


@pytest.mark.parametrize(
    ("chip", "release", "model"),
    [
        ("nvidia,tegra210", "# R32 (release), REVISION: 7.1, GCID: 1", "NVIDIA Jetson Nano Developer Kit"),
        ("nvidia,tegra194", "# R35 (release), REVISION: 4.1, GCID: 1", "NVIDIA Jetson Xavier NX"),
    ],
)
@pytest.mark.parametrize("cuda", [answers("orin-jetpack-5.1")["probes"], NO_LIBCUDA], ids=["driver", "no driver"])
@pytest.mark.parametrize(
    "tensorrt", [{}, {"error": "it broke"}, {"version": "8.5.2", "file": "/usr/lib/python3.10/dist-packages/t"}]
)
def test_a_board_that_has_no_jetpack_6_runs_bundles_on_its_cpu(chip, release, model, cuda, tensorrt):
    files = {
        "/proc/device-tree/compatible": [chip],
        "/proc/device-tree/model": [model],
        "/etc/nv_tegra_release": [release],
        "/proc/meminfo": ["MemTotal: 2000000 kB", "MemAvailable: 900000 kB", "SwapTotal: 0 kB"],
    }
    probes = {"cuda": cuda["cuda"], "tensorrt": tensorrt}
    report = doctor(recorded("orin-jetpack-5.1", files=files, probes=probes, commands={"dpkg-query": [1]}))
    found = checks(report)
    assert report.faults == []
    assert found["board"].found.startswith(model)
    assert "no JetPack 6 for this board: only ort-cpu serves here, with Python 3.10" in found["board"].advice
    assert found["runtimes"].found == "here are the parts of ort-cpu"


# ---- TensorRT

CONDA = {"prefix": "/opt/conda", "base_prefix": "/opt/conda", "executable": "/opt/conda/bin/python"}
SPACED = {"prefix": "/home/user/my env", "executable": "/home/user/my env/bin/python"}
NVDLA = {"error": "ImportError: libnvdla_compiler.so: cannot open shared object file"}
OLD = {"version": "8.6.2", "file": "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py"}
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
    ("name", "probes", "of", "command"),
    [
        (
            "orin-venv-without-system-packages",
            {"python": CONDA},
            "tensorrt",
            "/usr/bin/python3.10 -m venv --system-site-packages .venv && "
            f".venv/bin/pip install 'edge_attn-{__version__}-py3-none-any.whl[cpu,optimize]'",
        ),
        (
            "orin-venv-without-system-packages",
            {"python": SPACED},
            "tensorrt",
            "/usr/bin/python3.10 -m venv --system-site-packages '/home/user/my env'",
        ),
        ("orin-jetpack-7.2", {"tensorrt": NVDLA}, "tensorrt", REINSTALL),
        ("orin-jetpack-6.2", {"tensorrt": LIBRARY}, "tensorrt", REINSTALL),
        ("x86-gpu", {"tensorrt": {"error": "it broke"}}, "tensorrt", f"{PIP} install --force-reinstall tensorrt"),
        ("x86-gpu", {"tensorrt": OLD}, "tensorrt", f"{PIP} install --upgrade 'edge-attn[trt]'"),
        (
            "x86-gpu",
            {"tensorrt": OLD, "python": SPACED},
            "tensorrt",
            "'/home/user/my env/bin/python' -m pip install --upgrade 'edge-attn[trt]'",
        ),
        (
            "x86-gpu",
            {"tensorrt": OLD, "python": {"executable": ""}},
            "tensorrt",
            "python3 -m pip install --upgrade 'edge-attn[trt]'",
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
            f"{PIP} uninstall -y onnxruntime-gpu && {PIP} install onnxruntime-gpu",
        ),
        (
            "x86-no-gpu",
            {"onnxruntime": {"version": "1", "file": "f", "runs": [], "reasons": {"CPUExecutionProvider": "no"}}},
            "providers",
            f"{PIP} uninstall -y onnxruntime && {PIP} install onnxruntime",
        ),
        (
            "x86-gpu",
            {
                "onnxruntime": {
                    "version": "1",
                    "file": "f",
                    "runs": ["CPUExecutionProvider"],
                    "reasons": {"CUDAExecutionProvider": "no kernel image is available"},
                }
            },
            "providers",
            f"{PIP} install --upgrade onnxruntime-gpu",
        ),
    ],
)
def test_further_faults(name, probes, of, command):
    own = {**probes, "python": python(name, **probes.get("python", {}))}
    found = check(name, of, probes=own)
    assert (found.status, found.command) == ("fault", command)


@pytest.mark.parametrize("error", [LIBRARY, NVDLA])
@pytest.mark.parametrize(
    ("name", "place"), [("orin-jetpack-6.2", []), ("orin-jetpack-7.2", []), ("orin-jetpack-6.2", ["/.dockerenv"])]
)
def test_a_wheel_that_does_not_load_on_a_jetson_goes_first(name, place, error):
    probes = {"tensorrt": error, "python": python(name, *WHEELS, OF_APT, RTX)}
    found = check(name, "tensorrt", probes=probes, paths=[*answers(name)["paths"], *place])
    assert found.command == f"{PIP} uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-bindings"


def test_what_apt_installed_is_no_wheel():
    """Its package shows up in Python's own list, too."""
    probes = {"tensorrt": LIBRARY, "python": python("orin-jetpack-6.2", OF_APT, RTX)}
    assert check("orin-jetpack-6.2", "tensorrt", probes=probes).command == REINSTALL


@pytest.mark.parametrize(
    "libraries", [["libnvinfer10 10.16.2.10-1+cuda13.2"], ["libnvinfer11 11.4.1.5-1+cuda13.3"], []]
)
def test_a_newer_tensorrt_from_apt_is_the_board_s_own(libraries):
    commands = {"dpkg-query": [1, "ii  python3-libnvinfer 11.4.1.5-1+cuda13.3", *(f"ii  {line}" for line in libraries)]}
    probes = {"tensorrt": {"version": "11.4.1", "file": "/usr/lib/python3.12/dist-packages/tensorrt/__init__.py"}}
    found = check("thor-jetpack-7.2", "tensorrt", commands=commands, probes=probes)
    assert (found.status, found.command) == ("ok", "")


@pytest.mark.parametrize(
    ("tensorrt", "command"),
    [
        ({}, f"{APT} python3-libnvinfer"),
        ({"error": "it broke"}, f"{APT} --reinstall libnvinfer11 python3-libnvinfer"),
        ({"version": "10.16.2.10", "file": "/srv/tensorrt/__init__.py"}, f"{PIP} uninstall -y tensorrt"),
    ],
)
def test_the_library_of_tensorrt_11_is_known(tensorrt, command):
    commands = {"dpkg-query": [1, "ii  libnvinfer10 10.16.2.10-1+cuda13.2", "ii  libnvinfer11 11.4.1.5-1+cuda13.3"]}
    found = check("thor-jetpack-7.2", "tensorrt", commands=commands, probes={"tensorrt": tensorrt}, paths=[])
    assert (found.status, found.command) == ("fault", command)


def test_bindings_without_libraries_are_no_fault_without_a_gpu():
    report = doctor(recorded("x86-no-gpu", probes={"tensorrt": LIBRARY}))
    assert report.exit_code == 0
    found = checks(report)["tensorrt"]
    assert (found.status, found.advice) == ("note", "of no use without a GPU")
    assert "libnvinfer.so.10" in found.found


# ---- memory, cache, ONNX Runtime


def test_a_container_s_limit_counts_as_memory():
    files = {"/sys/fs/cgroup/memory.max": ["2147483648"], "/sys/fs/cgroup/memory.current": ["1073741824"]}
    found = check("x86-gpu", "memory", files=files)
    assert found.status == "fault"
    assert found.found.startswith("1.0 GiB available (the container's limit)")


@pytest.mark.parametrize(
    ("name", "status", "command"),
    [
        ("orin-jetpack-6.2", "fault", "cat /proc/meminfo"),
        ("x86-gpu", "fault", "cat /proc/meminfo"),
        ("x86-no-gpu", "note", ""),
    ],
)
def test_memory_that_cannot_be_read_is_a_fault_where_engines_are_built(name, status, command):
    found = check(name, "memory", files={"/proc/meminfo": []})
    assert (found.status, found.command) == (status, command)


@pytest.mark.parametrize(
    ("name", "status"), [("orin-jetpack-6.2", "fault"), ("x86-gpu", "fault"), ("x86-no-gpu", "note")]
)
def test_no_home_folder_has_its_command(name, status):
    def usage() -> Any:
        raise InputError("nobody knows where the home folder is")

    found = checks(doctor(dataclasses.replace(recorded(name), usage=usage)))["cache"]
    assert (found.status, found.command) == (status, 'export XDG_CACHE_HOME="$PWD/.cache"')
    assert found.found == "nobody knows where the home folder is"


def test_a_cache_of_another_user_s_is_given_over_by_a_command_that_can_be_typed():
    usage = {"folder": "/home/user/my cache/edge-attn", "writable": False}
    folder = "'/home/user/my cache/edge-attn'"
    command = f"sudo mkdir -p {folder} && sudo chown -R $USER {folder}"
    assert check("x86-gpu", "cache", usage=usage).command == command


def test_two_onnxruntimes_in_two_folders_do_not_collide():
    probes = {"python": python("x86-gpu", ["onnxruntime", "1.20.0", "/usr/lib/python3/dist-packages"])}
    found = check("x86-gpu", "onnxruntime", probes=probes)
    assert found.status == "note"
    assert "is the one that loads" in found.advice


def test_a_container_on_a_jetson_is_lent_the_gpu():
    found = check("orin-jetpack-7.2", "gpu", probes=NO_LIBCUDA, paths=["/.dockerenv"])
    assert (found.status, found.command) == ("fault", LEND)


# ---- what is printed


def test_an_error_of_two_lines_stays_in_its_column():
    error = "ImportError: numpy.core.multiarray failed to import\n\n  A module that was compiled using NumPy 1.x"
    report = doctor(recorded("x86-gpu", probes={"tensorrt": {"error": error}}))
    (line,) = (line for line in str(report).splitlines() if "numpy.core" in line)
    assert line.endswith("failed to import A module that was compiled using NumPy 1.x")
    assert checks(report)["tensorrt"].found.endswith(error)
