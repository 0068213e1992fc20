"""Commands, options, extras and files that docs/jetson.md names exist."""

from __future__ import annotations

import re
import shlex
import sys

import click
import pytest
from paths import PROJECT

from edge_attn.cli import cli
from edge_attn.registry import PRECISIONS, RUNTIMES, TARGETS
from edge_attn.runtimes.doctor.repairs import DOCKER_JETSON, MORE_CAUSES

if not (PROJECT / "docs").is_dir():
    pytest.skip("needs the checkout: docs/ is not in the wheel", allow_module_level=True)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = (PROJECT / "docs" / "jetson.md").read_text(encoding="utf-8")
JETSON = PROJECT / "runtimes" / "jetson"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(JETSON.iterdir())}
EXTRAS = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def commands(text: str) -> list[str]:
    """Return each call of edge-attn, up to its pipe or comment, with values for its placeholders."""
    text = text.replace("\\\n", " ").replace("${{ matrix.precision }}", "fp16")
    lines = re.findall(r"(?:^|[|;&] |^ +|run: )(edge-attn (?!\w+\.)[a-z][^\n|#;]*)", text, re.MULTILINE)
    return [line.strip() for line in lines]


BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = sorted({line for text in (*BLOCKS, *FILES.values()) for line in commands(text)})


def test_page_shows_every_step():
    assert {"doctor", "verify", "optimize", "translate"} <= {line.split()[1] for line in COMMANDS}


@pytest.mark.parametrize("line", COMMANDS)
def test_command_has_its_verb_and_options(line: str):
    words = shlex.split(line)[1:]
    command: click.Command = cli
    context = click.Context(command, info_name="edge-attn", **cli.context_settings)
    while isinstance(command, click.Group):
        verb = command.get_command(context, words.pop(0))
        assert verb is not None, line
        command = verb
    context = command.make_context(command.name, words, parent=context)
    assert context.params.get("precision", "fp32") in PRECISIONS
    assert context.params.get("runtime", "trt") in RUNTIMES
    assert context.params.get("target", "trt") in TARGETS


def test_unknown_option_fails():
    (line,) = commands("edge-attn optimize en-fr --to trt\n")
    with pytest.raises(click.NoSuchOption):
        test_command_has_its_verb_and_options(line)


@pytest.mark.parametrize("text", [PAGE, *FILES.values()], ids=["page", *FILES])
def test_every_extra_exists(text: str):
    for extras in re.findall(r"(?:edge-attn|\.whl|\.whl\)|'\.)\[([\w,-]+)\]", text):
        assert set(extras.split(",")) <= EXTRAS.keys()


def test_page_names_every_file():
    assert set(re.findall(r"`runtimes/jetson/([\w.-]+)`", PAGE)) == FILES.keys()


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("Dockerfile")])
def test_image_requests_the_gpu(name: str):
    """NVIDIA's runtime mounts the driver only if the image or `docker run` sets this."""
    assert "\nENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=all\n" in FILES[name]


def test_docker_command_requests_the_gpu_from_any_image():
    assert "--runtime nvidia -e NVIDIA_VISIBLE_DEVICES=all " in DOCKER_JETSON
    assert f"`{DOCKER_JETSON}`" in PAGE


def test_advice_of_doctor_names_a_heading():
    assert f"\n### {MORE_CAUSES.split(chr(39))[1]}\n" in PAGE


def test_wheel_is_built_before_the_image():
    (block,) = (block for block in BLOCKS if "docker build" in block)
    assert block.index("rm -rf dist && python -m build --wheel") < block.index("docker build")


def test_workflow_takes_any_bundle():
    """Its inputs reach the shell as variables, so that no input is executed as code."""
    workflow = FILES["verify-release.yml"]
    assert "pretrained" not in workflow
    assert "BUNDLE: ${{ inputs.bundle || vars.EDGE_ATTN_BUNDLE }}" in workflow
    assert "WHEEL: ${{ inputs.wheel || vars.EDGE_ATTN_WHEEL }}" in workflow
    steps = workflow.partition("    steps:\n")[2]
    assert "inputs." not in steps


def test_job_outlasts_its_two_builds():
    job, engine = (
        int(re.search(rf"{words} (\d+)", FILES["verify-release.yml"])[1])
        for words in ("timeout-minutes:", "--max-build-minutes")
    )
    assert job >= 2 * engine + 15
