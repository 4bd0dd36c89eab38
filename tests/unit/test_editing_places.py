"""The commands that change rules, wherever the rules are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aliasmilter.cli import commands
from tests.harness import cluster, sentinel
from tests.harness.daemon import toml
from tests.harness.redis import RedisServer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "srs.secrets").write_text("a secret that is long enough\n")
    return tmp_path


def run(folder: Path, url: str, *words: str) -> Result:
    file = folder / "alias-milter.toml"
    srs = {"domain": "fwd.example.net", "secrets_file": "srs.secrets"}
    file.write_text(toml({"store": {"url": url}, "srs": srs}))
    return CliRunner().invoke(commands, [*words, "-c", str(file)])


ADD = ("add", "--create-domains", "bob@example.com", "bob@example.com")


def test_a_unix_socket_and_a_password(folder: Path) -> None:
    with RedisServer(password="p@ss/word") as server:
        assert run(folder, server.url, *ADD).exit_code == 0
        listed = run(folder, server.tcp_url, "list")
        assert listed.output == "bob@example.com\tbob@example.com\n"


def test_tls(folder: Path) -> None:
    with RedisServer(tls=True) as server:
        url = f"{server.tls_url}?ssl_ca_certs={server.ca_file}"
        assert run(folder, url, *ADD).exit_code == 0


def test_the_master_that_sentinels_name(folder: Path) -> None:
    with sentinel.watched() as scene:
        assert run(folder, scene.url, *ADD).exit_code == 0
        assert scene.servers[0].cli("HGET", "alias:example.com", "bob") == '"bob@example.com"'
        assert run(folder, scene.url, "log").exit_code == 0


def test_a_cluster_can_be_read_and_says_why_it_cannot_be_changed(folder: Path) -> None:
    with cluster.cluster() as nodes:
        refused = run(folder, nodes.url, *ADD)
        assert refused.exit_code == 1
        assert "Redis Cluster" in refused.output
        nodes.cli("HSET", "domain:example.com", "unknown", "reject")
        nodes.cli("HSET", "alias:example.com", "bob", "bob@example.com")
        assert run(folder, nodes.url, "list").output == "bob@example.com\tbob@example.com\n"
