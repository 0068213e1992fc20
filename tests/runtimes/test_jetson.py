"""What the Jetson chapter tells its readers to type exists: verbs, options, extras, files."""

from __future__ import annotations

import re
import shlex
import sys

import click
import pytest
from paths import PROJECT

from edge_attn.cli import cli
from edge_attn.registry import PRECISIONS, RUNTIMES, TARGETS
from edge_attn.runtimes.doctor.hardware import LEND

if not (PROJECT / "runtimes").is_dir():
    pytest.skip("needs the checkout: the chapter is not in the wheel", allow_module_level=True)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHAPTER = (PROJECT / "runtimes" / "README.md").read_text(encoding="utf-8")
JETSON = PROJECT / "runtimes" / "jetson"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(JETSON.iterdir())}
EXTRAS = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def commands(text: str) -> list[str]:
    """Each call of edge-attn, up to its pipe or comment, with what stands for a value filled in."""
    text = text.replace("\\\n", " ").replace("${{ matrix.precision }}", "fp16")
    found = re.findall(r"(?:^|[|;&] |^ +|run: )(edge-attn (?!\w+\.)[a-z][^\n|#;]*)", text, re.MULTILINE)
    return [line.strip() for line in found]


BLOCKS = re.findall(r"^```bash\n(.*?)^```$", CHAPTER, re.MULTILINE | re.DOTALL)
SHOWN = sorted({line for text in (*BLOCKS, *FILES.values()) for line in commands(text)})


def test_the_chapter_walks_the_whole_way():
    assert {"doctor", "verify", "optimize", "translate"} <= {line.split()[1] for line in SHOWN}


@pytest.mark.parametrize("line", SHOWN)
def test_every_command_has_its_verb_and_options(line: str):
    words = shlex.split(line)[1:]
    command: click.Command = cli
    context = click.Context(command, info_name="edge-attn", **cli.context_settings)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None, line
        command = found
    context = command.make_context(command.name, words, parent=context)
    assert context.params.get("precision", "fp32") in PRECISIONS
    assert context.params.get("runtime", "trt") in RUNTIMES
    assert context.params.get("target", "trt") in TARGETS


def test_a_command_that_is_not_there_is_found():
    (line,) = commands("edge-attn optimize en-fr --to trt\n")
    with pytest.raises(click.NoSuchOption):
        test_every_command_has_its_verb_and_options(line)


@pytest.mark.parametrize("text", [CHAPTER, *FILES.values()], ids=["chapter", *FILES])
def test_every_extra_exists(text: str):
    for extras in re.findall(r"(?:edge-attn|\.whl|\.whl\)|'\.)\[([\w,-]+)\]", text):
        assert set(extras.split(",")) <= EXTRAS.keys()


def test_every_file_that_the_chapter_names_exists():
    assert set(re.findall(r"`jetson/([\w.-]+)`", CHAPTER)) == FILES.keys()


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("Dockerfile")])
def test_an_image_asks_for_the_gpu(name: str):
    """Unless an image or `docker run` sets it, NVIDIA's runtime lends nothing."""
    assert "\nENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=all\n" in FILES[name]


def test_the_command_that_lends_the_gpu_asks_for_it_whatever_the_image():
    assert "--runtime nvidia -e NVIDIA_VISIBLE_DEVICES=all " in LEND
    assert f"`{LEND}`" in CHAPTER


def test_the_wheel_that_an_image_takes_is_made_first():
    (block,) = (block for block in BLOCKS if "docker build" in block)
    assert block.index("rm -rf dist && python -m build --wheel") < block.index("docker build")


def test_a_job_outlasts_its_two_engines():
    job, engine = (
        int(re.search(rf"{words} (\d+)", FILES["verify-release.yml"])[1])
        for words in ("timeout-minutes:", "--max-build-minutes")
    )
    assert job >= 2 * engine + 15
