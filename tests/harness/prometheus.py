"""A private Prometheus that scrapes one daemon.

Debian's package wants 300 MB of libraries for its pages and starts a service; its two programs
need nothing. So it is unpacked into the cache folder, as Sendmail is, and not installed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.harness.ports import reserved_port
from tests.harness.sendmail_packages import _cache_folder, _locked, _run
from tests.harness.service import Service

PACKAGE = "prometheus"
CONFIGURATION = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: alias-milter
    static_configs: [{{targets: ["127.0.0.1:{target}"]}}]
"""


def programs() -> Path:
    """The folder with prometheus and promtool, fetched when this machine has not got them yet.

    Raises:
        LabError: no apt-get, no package lists or no network.
    """
    base = _cache_folder()
    root = base / PACKAGE
    with _locked(base / "prometheus.lock"):
        if not root.exists():
            _unpack(base, root)
    return root / "usr/bin"


def _unpack(base: Path, root: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix="prometheus-", dir=base))
    try:
        # apt's own user cannot write here, and would only warn.
        _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", PACKAGE], work)
        (package,) = work.glob("*.deb")
        _run(["dpkg", "-x", str(package), str(work / "tree")], work)
        (work / "tree").rename(root)
    finally:
        shutil.rmtree(work)


def promtool(*arguments: str) -> str:
    """Run promtool; its output. Raises CalledProcessError with it."""
    done = subprocess.run(
        [str(programs() / "promtool"), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise AssertionError(done.stdout + done.stderr)
    return done.stdout


class Prometheus(Service):
    """Scrapes a daemon once a second.

    Args:
        target: the port of its metrics.
        rules: the file with alert rules.
    """

    name = "prometheus"
    start_timeout = 60.0

    def __init__(self, target: int, rules: Path) -> None:
        self.target = target
        self.rules = rules
        self.port = 0

    def prepare(self, stack: ExitStack) -> None:
        """Take a port and write the configuration."""
        self.port = stack.enter_context(reserved_port())
        text = CONFIGURATION.format(rules=self.rules, target=self.target)
        (self.folder / "prometheus.yml").write_text(text)

    def command(self) -> Sequence[str]:
        """Prometheus in the foreground, its data in our folder."""
        return [
            str(programs() / "prometheus"),
            f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def is_ready(self) -> bool:
        """Whether it says so."""
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as reply:
                return bool(reply.status == 200)
        except (URLError, OSError):
            return False

    def ask(self, path: str, **parameters: str) -> Any:  # noqa: ANN401  # JSON
        """The data of an answer of the API. Raises HTTPError, with the reason in its body."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters)}"
        with urlopen(url, timeout=30) as reply:
            return json.load(reply)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each sample that an expression has now."""
        found = self.ask("query", query=expression)["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]
