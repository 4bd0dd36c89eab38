"""Whether the daemon can read the files that its configuration names.

`check` is run by root, who can read everything; the daemon runs as a user of its own. Who that is
nobody says, but the folder of the configuration was given to its group (README.md, "Install"), or
belongs to it.
"""

import grp
import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from aliasmilter.admin.report import Finding, warning


def unreadable(folder: Path, files: Iterable[Path]) -> Iterator[Finding]:
    """The files that neither the owner nor the group of a folder can read.

    Args:
        folder: of the configuration. One that is root's and of root's group tells nothing.
        files: those that are not there are left to others to find.
    """
    try:
        ours = folder.stat()
        if (ours.st_uid, ours.st_gid) == (0, 0):
            return
        for file in files:
            for path in (file, *_folders(file, folder)):
                if path.exists() and not _is_open(path.stat(), ours):
                    group = _group(ours.st_gid)
                    what = f"the group {group}, which {folder} is of, cannot read it"
                    yield warning(str(path), f"{what}: chgrp {group} and chmod {_mode(path)} it")
    except OSError as problem:
        yield warning(str(folder), f"whether the daemon can read its keys: {problem}")


def _folders(file: Path, top: Path) -> Iterator[Path]:
    """The folders between a file and the top one, which must be open as well."""
    if file.is_relative_to(top):
        yield from takewhile(lambda each: each != top, file.parents)


def _is_open(status: os.stat_result, ours: os.stat_result) -> bool:
    mode = status.st_mode
    if mode & stat.S_IROTH or (status.st_gid == ours.st_gid and mode & stat.S_IRGRP):
        return True
    if not mode & stat.S_IRUSR or status.st_uid == 0:
        return False
    return status.st_uid == ours.st_uid or ours.st_gid in _groups(status.st_uid)


def _groups(uid: int) -> list[int]:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return []
    return os.getgrouplist(user.pw_name, user.pw_gid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _mode(path: Path) -> str:
    return "g+rx" if path.is_dir() else "g+r"
