"""Files that operating systems, file managers, editors and model hubs leave in a folder. Nothing reads them."""

from __future__ import annotations

from pathlib import PurePosixPath

NAMES = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "icon"),
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "__pycache__"),
    "lost+found",  # codespell:ignore found
    *("readme", "readme.md", "readme.txt", "license", "license.md", "license.txt", "notice", "notice.txt"),
}
"""Names in lower case, beside hidden ones: file managers, Synology, Windows, ext4, and the pages of model hubs."""


def is_stray(name: str) -> bool:
    """Return whether a file is a stray one, by its path with `/` in a folder or a zip.

    Hidden files are (.DS_Store, ._x, .gitattributes, .git/, .cache/, .nfs*, ..data of Kubernetes), backups and locks of
    editors, and the NAMES, in whichever folder they are.
    """
    return any(_is_stray(part) for part in PurePosixPath(name).parts)


def _is_stray(name: str) -> bool:
    is_backup = name.endswith(("~", ".swp", ".swo", ".orig", ".bak")) or name.startswith(("~$", "#"))
    is_hidden = name.startswith(".") and name != ".."
    return is_hidden or is_backup or name.lower() in NAMES
