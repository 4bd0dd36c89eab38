"""The demo shows what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["Postfix", "Sendmail"])
def test_the_demo_finds_all_its_own_claims_true(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo", "--mta", name.lower()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"with a real {name}" in done.stdout
    assert "ARC: pass" in done.stdout
    assert "spf=pass, dkim=pass, dmarc=pass" in done.stdout


@pytest.mark.parametrize("wrong", ["nonsense", "exim postfix"])
def test_make_demo_with_another_mta_says_which_there_are(wrong: str) -> None:
    done = subprocess.run(
        ["make", "demo", f"MTA={wrong}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode != 0
    assert f"MTA={wrong}: there is postfix, and there is sendmail" in done.stderr
