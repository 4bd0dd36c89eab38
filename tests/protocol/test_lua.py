"""The harness mail people know: OpenDKIM's miltertest."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.harness.daemon import Daemon


def test_the_lua_script_finds_all_as_it_should_be(daemon: Daemon) -> None:
    script = Path(__file__).with_name("alias-milter.lua")
    done = subprocess.run(
        ["miltertest", "-s", str(script), "-D", f"socket=unix:{daemon.folder}/milter.sock"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as it should be" in done.stdout + done.stderr
