"""The lines of docs/sendmail.md, out of its named fenced blocks ("```m4 filter")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tests.harness.wait import LabError

DOCUMENT = Path(__file__).parents[2] / "docs/sendmail.md"
BLOCK = re.compile(r"^```\w+ ([\w-]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> dict[str, str]:
    """Return the fenced blocks of docs/sendmail.md that have a name, by name."""
    return dict(BLOCK.findall(DOCUMENT.read_text()))


def without(block: str, start: str) -> dict[str, str]:
    """A replacement that leaves out the document's line that starts so."""
    line = next(line for line in blocks()[block].splitlines() if line.startswith(start))
    return {f"{line}\n": ""}


def put(text: str, values: Mapping[str, str]) -> str:
    """Replace texts. Raises LabError when one is not there: the document has changed."""
    for old, new in values.items():
        if old not in text:
            raise LabError(f"{DOCUMENT.name}: {old!r} is not in the block\n{text}")
        text = text.replace(old, new)
    return text
