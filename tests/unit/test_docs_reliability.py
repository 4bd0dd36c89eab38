"""docs/reliability.md is true: every test that it names is there, and each promise has one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "reliability.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in DOCUMENT.splitlines()
    if line.startswith("| ") and not line.startswith("| what happens |")
]


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((REPOSITORY / file).read_text())
    functions = (node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return frozenset(name for name in functions if name.startswith("test_"))


def test_every_promise_names_tests_that_exist() -> None:
    assert len(ROWS) > 30
    for happens, _, shown in ROWS:
        named = re.findall(r"`([\w/.]+)::(\w+)`", shown)
        assert named, happens
        assert len(named) == shown.count("::"), happens
        for file, name in named:
            assert name in names_in(file), f"{file}::{name}"


def test_every_limit_is_told_of() -> None:
    from aliasmilter.config import LimitsSection

    told = set(re.findall(r"`(?:\[limits\] )?(\w+)`", DOCUMENT))
    assert set(LimitsSection.model_fields) <= told
