"""Output files appear complete, in folders that are created, and never in place of a model."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from bundle_files import FILES, make_manifest

from edge_attn.bundle import output_file
from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.output_file import check_output_file, open_output_file, write_output_file
from edge_attn.bundle.writer import write_bundle
from edge_attn.errors import InputError


def test_parent_folders_are_created(tmp_path):
    path = tmp_path / "a" / "b" / "report.xml"
    check_output_file(path)
    assert not path.exists()
    write_output_file(path, "text\n")
    assert path.read_bytes() == b"text\n"
    assert list(path.parent.iterdir()) == [path]


def test_failed_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")

    def interrupted() -> None:
        with open_output_file(path) as file:
            file.write("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_lone_surrogate_is_escaped(tmp_path):
    write_output_file(tmp_path / "out", "na\udce9\n")
    assert (tmp_path / "out").read_bytes() == rb"na\udce9" + b"\n"


def test_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_output_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_file_in_a_folder_that_is_not_writable_is_written_in_place(tmp_path, monkeypatch):
    """As a file that is mounted into a container; root may write everywhere, so the folder's answer is replaced."""
    path, access = tmp_path / "out", os.access
    path.write_text("a longer old text")
    monkeypatch.setattr(os, "access", lambda item, mode: Path(item) != tmp_path and access(item, mode))
    monkeypatch.setattr(output_file, "replacement", lambda path: pytest.fail("a sibling was created"))
    write_output_file(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("bundle", "it is a folder"),
        ("bundle/MODEL_CARD.md", "is inside of the bundle"),
        ("bundle/graphs/report.xml", "is inside of the bundle"),
        ("bundle/targets/trt-fp32/report.xml", "is inside of the bundle"),
        ("bundle.zip", "is a bundle, and is not overwritten"),
        ("link", "is a bundle, and is not overwritten"),
        ("checkpoint/model.safetensors", "is a file of the checkpoint"),
        ("checkpoint/text/text.json", "is a file of the checkpoint"),
        ("file/report.xml", "cannot be written: (Not a directory|File exists)"),
        ("a\0b", "cannot be written: embedded null"),
        ("n" * 300, "cannot be written: File name too long"),
    ],
)
def test_model_is_not_overwritten(tmp_path, name, error):
    write_bundle(tmp_path / "bundle", make_manifest(), FILES)
    write_bundle(tmp_path / "bundle.zip", make_manifest(), FILES)
    (tmp_path / "link").symlink_to("bundle.zip")
    (tmp_path / "checkpoint" / "text").mkdir(parents=True)
    for file in ("checkpoint/config.json", "checkpoint/model.safetensors", "file"):
        (tmp_path / file).write_text("")
    before = sorted(tmp_path.rglob("*"))
    for write in (check_output_file, lambda path: write_output_file(path, "text")):
        with pytest.raises(InputError, match=error) as caught:
            write(tmp_path / name)
        assert "report.xml" in str(caught.value) or Path(name).name[:8] in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    Bundle.open(tmp_path / "bundle")
    Bundle.open(tmp_path / "bundle.zip")


def test_report_may_be_beside_the_files_of_a_checkpoint(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("")
    write_output_file(tmp_path / "reports" / "report.xml", "text")
    write_output_file(tmp_path / "log.csv", "text")
    assert (tmp_path / "log.csv").read_text() == "text"


def test_device_is_written_at_once():
    check_output_file(Path("/dev/null"))
    write_output_file(Path("/dev/null"), "text")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_full_device_is_an_input_error():
    with pytest.raises(InputError, match=r"/dev/full cannot be written: No space left on device"):
        write_output_file(Path("/dev/full"), "text")
