"""Bundles as hubs, volumes, file managers and zip programs leave them: links, stray files, folders around them."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from bundle_files import FILES, make_manifest

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import MANIFEST
from edge_attn.bundle.writer import write_bundle
from edge_attn.errors import BundleError
from edge_attn.storage.stray_files import is_stray

STRAY = [
    "lost+found/#123",  # codespell:ignore found
    *(
        ".DS_Store",
        "._bundle.json",
        "graphs/._encoder.onnx",
        "__MACOSX/._bundle.json",
        "Thumbs.db",
        "golden/desktop.ini",
    ),
    *(".gitattributes", ".git/config", ".gitignore", "README.md", "LICENSE", ".cache/huggingface/download/x.metadata"),
    *(".nfs0000000000000001", ".directory", "@eaDir/encoder.onnx@SynoEAStream", ".~lock.card#"),
    *("MODEL_CARD.md~", "text/.source.txt.swp", "#card#", ".Trash-1000/info", "$RECYCLE.BIN/desktop.ini", "Icon\r"),
]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_bundle(tmp_path / "bundle", make_manifest(), FILES)
    return tmp_path / "bundle"


def assert_opens(path: Path) -> None:
    bundle = Bundle.open(path)
    assert bundle.files() == FILES


@pytest.mark.parametrize("name", STRAY)
def test_stray_file_in_a_folder_is_ignored(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    assert is_stray(name)
    assert_opens(folder)


@pytest.mark.parametrize("name", STRAY)
def test_stray_file_in_a_zip_is_ignored(folder, tmp_path, name):
    path = tmp_path / "b.zip"
    write_bundle(path, make_manifest(), FILES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    assert_opens(path)


@pytest.mark.parametrize("name", [*FILES, MANIFEST, "graphs/other.onnx", "notes.txt", "../x", "bundle.json.txt"])
def test_other_file_is_not_stray(name):
    assert not is_stray(name)


def test_hidden_file_that_cannot_be_read_is_ignored(folder):
    os.mkfifo(folder / ".pipe")
    (folder / ".broken").symlink_to("nowhere")
    (folder / ".loop").symlink_to(folder)
    assert_opens(folder)


# ---- links


def test_cache_of_a_model_hub_is_read(folder, tmp_path):
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    for item in [item for item in folder.rglob("*") if item.is_file()]:
        name = hashlib.sha256(item.read_bytes()).hexdigest()
        shutil.copy(item, blobs / name)
        link = snapshot / item.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / name, link.parent))
    assert_opens(snapshot)


def test_volume_of_kubernetes_is_read(folder, tmp_path):
    volume = tmp_path / "volume"
    shutil.copytree(folder, volume / "..2026_01_01")
    (volume / "..data").symlink_to("..2026_01_01")
    for item in folder.iterdir():
        (volume / item.name).symlink_to(f"..data/{item.name}")
    assert_opens(volume)


def test_link_to_another_content_is_refused(folder, tmp_path):
    (tmp_path / "other").write_bytes(bytes(len(FILES["MODEL_CARD.md"])))
    (folder / "MODEL_CARD.md").unlink()
    (folder / "MODEL_CARD.md").symlink_to(tmp_path / "other")
    with pytest.raises(BundleError, match=r"MODEL_CARD\.md was changed: its sha256"):
        Bundle.open(folder)


@pytest.mark.parametrize("target", ["nowhere", "MODEL_CARD.md"])
def test_link_without_a_file_is_refused(folder, target):
    (folder / "MODEL_CARD.md").unlink()
    (folder / "MODEL_CARD.md").symlink_to(target)
    with pytest.raises(BundleError, match=r"MODEL_CARD\.md (is missing|cannot be read)"):
        Bundle.open(folder)


def test_unlisted_linked_folder_is_refused(folder):
    (folder / "more").symlink_to(folder)
    with pytest.raises(BundleError, match="more is not listed"):
        Bundle.open(folder)


# ---- zips


def zip_files(path: Path, folder: Path, name_of) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for item in sorted(folder.rglob("*")):
            if item.is_file():
                entry = zipfile.ZipInfo("entry")
                entry.filename = name_of(item.relative_to(folder).as_posix())
                archive.writestr(entry, item.read_bytes())
    return path


@pytest.mark.parametrize(
    "name_of",
    [
        lambda name: f"en-fr/{name}",
        lambda name: f"./{name}",
        lambda name: name.replace("/", "\\"),
        lambda name: f"en-fr\\{name}".replace("/", "\\"),
    ],
    ids=["top folder", "dot", "backslashes", "both"],
)
def test_zip_of_another_program_is_read(folder, tmp_path, name_of):
    assert_opens(zip_files(tmp_path / "b.zip", folder, name_of))


def test_zip_of_a_file_manager_is_read(folder, tmp_path):
    """As Finder writes it: the folder itself, its entries, and a second tree of attributes."""
    (folder / ".DS_Store").write_bytes(b"x")
    path = Path(shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path, "bundle"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/bundle/._bundle.json", b"x")
        archive.writestr("__MACOSX/._bundle", b"x")
    assert_opens(path)


class Pipe(io.BytesIO):
    """A file that cannot be rewound, so that sizes follow the data (data descriptors)."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise OSError("a pipe has no position")

    def seek(self, *arguments: int) -> int:
        raise OSError("a pipe has no position")


def test_zip_that_was_written_to_a_pipe_is_read(folder, tmp_path):
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**FILES, MANIFEST: (folder / MANIFEST).read_bytes()}.items():
            archive.writestr(f"en-fr/{name}", data)
    (tmp_path / "b.zip").write_bytes(pipe.getvalue())
    assert_opens(tmp_path / "b.zip")


def test_zip_of_two_bundles_is_refused(folder, tmp_path):
    path = zip_files(tmp_path / "b.zip", folder, lambda name: f"a/{name}")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b/bundle.json", b"{}")
    with pytest.raises(BundleError, match=r"b\.zip has several bundles: 'a/' and 'b/'"):
        Bundle.open(path)


def test_file_beside_the_folder_of_a_zip_is_refused(folder, tmp_path):
    path = zip_files(tmp_path / "b.zip", folder, lambda name: f"a/{name}")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("graphs/encoder.onnx", b"x")
    with pytest.raises(BundleError, match=r"\.\./graphs/encoder\.onnx is not listed"):
        Bundle.open(path)


def test_size_of_a_zip_entry_is_checked_before_it_is_unpacked(folder, tmp_path, monkeypatch):
    """A small zip can unpack to any size."""
    (folder / "MODEL_CARD.md").write_bytes(bytes(10_000_000))
    path = zip_files(tmp_path / "b.zip", folder, lambda name: name)
    read = zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, item: b"" if item.filename == "MODEL_CARD.md" else read(self, item)
    )
    with pytest.raises(BundleError, match=r"MODEL_CARD\.md has 10000000 bytes, expected"):
        Bundle.open(path)
