"""Shared fixtures: the toy model (tests/data/make_toy.py), the command line, and optional requirements."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from paths import DATA

from edge_attn.cli import cli

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def toy_checkpoint() -> Path:
    """Return a trained checkpoint, to read only."""
    return DATA / "toy-checkpoint"


@pytest.fixture(scope="session")
def toy_bundle() -> Path:
    """Return the exported toy checkpoint as a zip, to read only."""
    return DATA / "toy-bundle.zip"


@pytest.fixture(scope="session")
def toy_pairs() -> Path:
    """Return a TSV file of a hundred pairs that the toy model was not trained on."""
    return DATA / "toy.tsv"


@pytest.fixture(scope="session")
def needs_torch() -> None:
    """Skip the test if torch is not installed, as on a device."""
    pytest.importorskip("torch", reason="torch is not installed: a device needs none")


@pytest.fixture(scope="session")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return Keras on its torch backend, with its settings outside the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        module = pytest.importorskip("keras", reason="keras is not installed")
    assert module.backend.backend() == "torch"
    return module


@pytest.fixture(scope="session")
def needs_gpu() -> None:
    """Skip the test if there is no NVIDIA GPU, as reported by the driver itself, without any package."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        pytest.skip("needs an NVIDIA GPU")
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(scope="session")
def edge_attn_cli() -> Callable[..., Result]:
    """Run `edge-attn ARGUMENTS` in this process. An unexpected exception fails the test.

    `code` is the expected exit code. If it fails, `error` is a part of the expected single line on standard error.
    """

    def run(*arguments: object, code: int = 0, error: str = "") -> Result:
        result = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == code, result.output
        if error:
            assert result.stderr.startswith("edge-attn: ")
            assert result.stderr.count("\n") == 1
            assert error in result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def start_edge_attn(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.Popen[bytes]]:
    """Start `edge-attn ARGUMENTS` in a new process, which the test must end.

    `absent` are packages whose import fails, `before` is Python that runs first, `env` is added to the environment.
    """
    folder = tmp_path_factory.mktemp("working")

    def start(
        *arguments: object,
        absent: tuple[str, ...] = (),
        before: str = "",
        env: dict[str, str] | None = None,
        cwd: Path = folder,
        **streams: Any,
    ) -> subprocess.Popen[bytes]:
        code = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in absent) + before
        code += "\nfrom edge_attn.cli import main\nsys.argv[0] = 'edge-attn'\nmain()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, env={**os.environ, **(env or {})}, **streams
        )

    return start


@pytest.fixture(scope="session")
def run_edge_attn(
    start_edge_attn: Callable[..., subprocess.Popen[bytes]],
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run `start_edge_attn` to its end, with `input` on standard input."""

    def run(*arguments: object, input: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with start_edge_attn(*arguments, **{**pipes, **options}) as process:
            try:
                out, err = process.communicate(input, timeout=300)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
