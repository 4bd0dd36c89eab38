"""What monitoring is told: numbers over all processes, and whether mail can be decided."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from pathlib import Path

import pytest
from prometheus_client import parser

from tests.harness.daemon import Config, Daemon
from tests.harness.monitoring import request, scrape, sealing_config
from tests.harness.mta_client import Mta
from tests.harness.ports import reserved_port
from tests.harness.redis import RedisServer
from tests.harness.wait import wait_until
from tests.protocol.conftest import load_rules
from tests.protocol.shim import RAISES, ShimmedDaemon
from tests.protocol.test_supervisor import paused

Start = Callable[..., Daemon]


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_port() as port:
        yield port


@pytest.fixture
def measured(start: Start, port: int) -> Daemon:
    """A daemon of two workers with [metrics]."""
    return start({"metrics": {"listen": f"127.0.0.1:{port}"}})


def milters(daemon: Daemon) -> list[int]:
    """The milter workers: the process for monitoring was forked after them."""
    return daemon.workers[:2]


def of_worker(daemon: Daemon, worker: int) -> Mta:
    """A session that this one of two workers serves."""
    (other,) = set(milters(daemon)) - {worker}
    with paused(other):
        return Mta(daemon.socket)


def message_to(mta: Mta, *recipients: str) -> None:
    mta.mail()
    for recipient in recipients:
        mta.rcpt(f"<{recipient}@example.com>")
    mta.message()


# Numbers


def test_every_series_is_there_at_0_before_the_first_mail_and_there_are_no_others_later(
    measured: Daemon, port: int
) -> None:
    before = scrape(port)
    for name in ("recipients_total", "messages_total", "exceptions_total", "rcpt_seconds_count"):
        assert before.value(name) == 0
    assert before.value("workers_started_total", role="milter") == 2
    assert before.value("workers_died_total") == 0
    assert before.value("build_info") == 1
    with Mta(measured.socket) as mta:
        message_to(mta, "sales", "nobody", "out", "drop", "broken", "a", "gone", "slow", "no")
        message_to(mta, "drop")
    assert scrape(port).series == before.series


def test_the_numbers_are_those_of_all_workers_together(measured: Daemon, port: int) -> None:
    for worker in milters(measured):
        with of_worker(measured, worker) as mta:
            message_to(mta, "sales", "nobody")
            message_to(mta, "out")
            assert scrape(port).value("open_sessions") == 1
    wait_until(lambda: scrape(port).value("open_sessions") == 0, "the sessions are closed")
    seen = scrape(port)
    assert seen.value("sessions_total") == 2
    assert seen.value("recipients_total", verdict="accepted", reason="alias") == 4
    assert seen.value("recipients_total", verdict="rejected", reason="unknown") == 2
    assert seen.value("messages_total", verdict="accepted") == 4
    assert seen.value("rcpt_seconds_count") == 6
    assert seen.value("message_seconds_count") == 4
    assert seen.value("srs_senders_total", result="rewritten") == 2
    assert seen.value("workers", role="milter") == 2


def test_no_address_and_no_domain_is_told(measured: Daemon, port: int) -> None:
    with Mta(measured.socket) as mta:
        message_to(mta, "sales", "nobody", "out")
    text = request(port, "/metrics").text
    for secret in ("@", "example", "alice", "sales", "192.0.2"):
        assert secret not in text


def test_after_a_worker_died_no_counter_goes_back_and_its_sessions_are_gone(
    measured: Daemon, port: int
) -> None:
    worker = milters(measured)[0]
    mta = of_worker(measured, worker)
    message_to(mta, "sales")
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: scrape(port).value("workers_died_total") == 1, "the death is told")
    wait_until(lambda: scrape(port).value("workers", role="milter") == 2, "it is replaced")
    seen = scrape(port)
    assert seen.value("messages_total") == 1
    assert seen.value("open_sessions") == 0
    assert seen.value("workers_started_total", role="milter") == 3
    with Mta(measured.socket) as mta:
        message_to(mta, "sales")
    assert scrape(port).value("messages_total") == 2


def test_reloads_lose_no_numbers_and_leave_no_more_files(
    redis: RedisServer, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_rules(redis)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    config: Config = {"milter": {"workers": 1}, "metrics": {"listen": f"127.0.0.1:{port}"}}
    with Daemon(redis.url, config) as daemon:
        (folder,) = tmp_path.iterdir()
        for number in range(1, 5):
            with Mta(daemon.socket) as mta:
                message_to(mta, "sales")
            assert scrape(port).value("messages_total") == number
            old = daemon.workers
            daemon.reload()
            wait_until(partial(replaced, daemon, old), "the workers are replaced", 30)
        # Never more than the old and the new ones at a time, and the supervisor; three each.
        assert len(list(folder.iterdir())) <= 5 * 3
        assert daemon.stop(30) == 0
        assert not folder.exists()


def replaced(daemon: Daemon, old: list[int]) -> bool:
    return not set(old) & set(daemon.workers) and len(daemon.workers) == len(old)


def test_exceptions_count_from_0(redis: RedisServer, port: int) -> None:
    load_rules(redis)
    with ShimmedDaemon(redis.url, RAISES, {"metrics": {"listen": f"127.0.0.1:{port}"}}) as daemon:
        assert scrape(port).value("exceptions_total") == 0
        with Mta(daemon.socket) as mta:
            mta.mail("<boom-mail@bank.example>")
            mta.mail()
            mta.rcpt("<boom-rcpt@example.com>")
        seen = scrape(port)
        assert seen.value("exceptions_total", place="milter") == 2
        assert seen.value("recipients_total", reason="internal-error") == 1


def test_what_leaves_is_counted_by_what_was_found_and_how_it_was_sealed(redis: RedisServer) -> None:
    load_rules(redis)
    with (
        sealing_config() as (config, files, port),
        Daemon(redis.url, {**config, "milter": {"workers": 1}}, files=files) as daemon,
    ):
        for headers in ([("From", " alice@bank.example")], []):
            with Mta(daemon.socket) as mta:
                mta.mail()
                mta.rcpt("<out@example.com>")
                mta.message(headers)
        seen = scrape(port)
        assert seen.value("arc_sealed_total", cv="none") == 1
        assert seen.value("arc_unsealed_total", cause="no-from") == 1
        assert seen.value("authentication_results_total", method="spf", result="pass") == 2
        assert seen.value("authentication_results_total", method="dmarc", result="pass") == 1
        assert seen.value("dns_lookups_total", result="answered") > 0
        assert seen.value("dns_lookups_total", result="cached") > 0
        assert seen.value("dns_lookups_total", result="failed") == 0


def test_errors_of_the_store_count_by_their_cause(port: int) -> None:
    with RedisServer() as own:
        config: Config = {"metrics": {"listen": f"127.0.0.1:{port}"}, "store": {"timeout": 0.3}}
        with Daemon(own.url, config) as daemon, Mta(daemon.socket) as mta:
            mta.mail()
            own.pause()
            mta.rcpt("<bob@example.com>")
            own.resume()
            own.kill()
            mta.rcpt("<bob@example.com>")
            seen = scrape(port)
            assert seen.value("store_errors_total", cause="timeout") == 1
            assert seen.value("store_errors_total", cause="error") == 1
            assert seen.value("recipients_total", reason="store-unavailable") == 2


def test_prometheus_may_ask_for_openmetrics(measured: Daemon, port: int) -> None:
    reply = request(port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.text.endswith("# EOF\n")
    plain = request(port, "/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert list(parser.text_string_to_metric_families(plain.text))


@pytest.mark.parametrize("version", ["x", "1..0", "=;,"])
def test_who_asks_for_a_version_that_is_none_gets_numbers_and_that_is_no_exception(
    measured: Daemon, port: int, version: str
) -> None:
    reply = request(port, "/metrics", Accept=f"application/openmetrics-text; version={version}")
    assert reply.status == 200
    assert "alias_milter_sessions_total 0.0" in reply.text
    assert scrape(port).value("exceptions_total") == 0
    assert "Traceback" not in measured.log


# Health


def test_ready_and_alive(measured: Daemon, port: int) -> None:
    for path in ("/livez", "/readyz"):
        reply = request(port, path)
        assert (reply.status, reply.text) == (200, "ok\n")
        assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    # To ask is no session.
    assert scrape(port).value("sessions_total") == 0
    assert "too little" not in measured.log


def test_not_ready_while_redis_is_gone_or_hangs_and_ready_again_after_it(port: int) -> None:
    with RedisServer() as own:
        config: Config = {"metrics": {"listen": f"127.0.0.1:{port}"}, "store": {"timeout": 0.3}}
        with Daemon(own.url, config):
            own.pause()
            hanging = request(port, "/readyz")
            assert hanging.status == 503
            assert hanging.text.startswith("store: Redis: ")
            assert hanging.text.endswith(": no answer within 0.3 s\n")
            own.resume()
            own.kill()
            gone = request(port, "/readyz")
            assert gone.status == 503
            assert gone.text.startswith("store: Redis: ")
            assert request(port, "/livez").status == 200
            own.start()
            assert request(port, "/readyz").status == 200


@pytest.mark.parametrize("inet", [False, True])
def test_not_ready_while_no_worker_answers(start: Start, port: int, inet: bool) -> None:
    daemon = start({"metrics": {"listen": f"127.0.0.1:{port}"}}, inet=inet)
    assert request(port, "/readyz").status == 200
    first, second = milters(daemon)
    with paused(first), paused(second):
        began = time.monotonic()
        reply = request(port, "/readyz")
        assert time.monotonic() - began < 10
        assert reply.status == 503
        assert reply.text == f"milter: no worker answers at {daemon.socket}: timed out\n"
    assert request(port, "/readyz").status == 200


def test_ready_on_the_socket_that_is_open_when_a_reload_names_another(
    measured: Daemon, port: int
) -> None:
    old = set(measured.workers)
    config = {**measured.config, "milter": {"socket": f"unix:{measured.folder}/other.sock"}}
    measured.write_config(config)
    measured.reload()
    wait_until(lambda: "a new socket needs a restart" in measured.log, "it reloads")
    wait_until(lambda: not set(measured.workers) & old, "the old processes end", 15)
    reply = request(port, "/readyz")
    assert (reply.status, reply.text) == (200, "ok\n")


def test_both_things_that_are_missing_are_told(port: int) -> None:
    config: Config = {"metrics": {"listen": f"127.0.0.1:{port}"}, "store": {"timeout": 0.2}}
    with Daemon("redis://127.0.0.1:1/0", config) as daemon:
        (daemon.folder / "milter.sock").unlink()
        reply = request(port, "/readyz")
        assert reply.status == 503
        store, milter = reply.text.splitlines()
        assert store.startswith("store: ")
        assert milter.endswith(": No such file or directory")


def test_not_alive_when_the_supervisor_gives_no_sign_of_life(redis: RedisServer, port: int) -> None:
    shim = "from aliasmilter.mta import monitor\nmonitor.DEAF = 2.0\n"
    with ShimmedDaemon(redis.url, shim, {"metrics": {"listen": f"127.0.0.1:{port}"}}) as daemon:
        assert request(port, "/livez").status == 200
        with paused(daemon.pid):
            wait_until(lambda: request(port, "/livez").status == 503, "it is called dead")
            assert "no sign of life" in request(port, "/livez").text
        wait_until(lambda: request(port, "/livez").status == 200, "it is alive again")


# The server


def test_only_get_and_head_of_the_three_pages(measured: Daemon, port: int) -> None:
    head = request(port, "/metrics", "HEAD")
    assert (head.status, head.text) == (200, "")
    assert int(head.headers["content-length"]) > 1000
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        reply = request(port, "/metrics", method)
        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
    assert request(port, "/metrics", "BREW").status == 501
    assert request(port, "/metrics?name=x").status == 200
    for path in ("/", "/metrics/", "/../../etc/passwd", "//[", "/%00"):
        assert request(port, path).status == 404


@pytest.mark.parametrize("data", [b"\0\xff", b"GET", b"GET / HTTP/9.9", b"GET / HTTP/x"])
def test_garbage_gets_an_error_and_the_service_goes_on(
    measured: Daemon, port: int, data: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        client.sendall(data + b"\r\n\r\n")
        assert b"Error code" in client.makefile("rb").read()
    assert request(port, "/livez").status == 200
    assert measured.log.count("\n") == 1


def test_slow_clients_are_cut_off_and_never_more_than_a_few_are_served(
    redis: RedisServer, port: int
) -> None:
    shim = (
        "from aliasmilter.mta import monitor\n"
        "monitor.LIFETIME = 2.0\nmonitor.MAX_CONNECTIONS = 4\n"
    )
    with ShimmedDaemon(redis.url, shim, {"metrics": {"listen": f"127.0.0.1:{port}"}}):
        slow = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(4)]
        for client in slow:
            client.sendall(b"GET /metrics HTTP/1.0\r\n")
        with pytest.raises((OSError, HTTPException)):
            request(port, "/livez")

        def drip() -> bool:
            """One octet after the other keeps a connection from being idle."""
            for client in slow:
                try:
                    client.sendall(b"X")
                except OSError:
                    return True
            return False

        wait_until(drip, "the slow ones are cut off")
        wait_until(lambda: _is_served(port), "there is room again")
        for client in slow:
            client.close()


def _is_served(port: int) -> bool:
    try:
        return request(port, "/livez").status == 200
    except (OSError, HTTPException):
        return False


def test_the_process_for_monitoring_is_replaced_when_it_dies(measured: Daemon, port: int) -> None:
    monitor = measured.workers[-1]
    os.kill(monitor, signal.SIGKILL)
    assert request(port, "/livez").status == 200  # the socket waits for the next one
    wait_until(
        lambda: scrape(port).value("workers_died_total", role="metrics") == 1, "its death is told"
    )
    assert scrape(port).value("workers_started_total", role="milter") == 2


def test_without_metrics_nothing_listens_and_no_process_is_there_for_it(daemon: Daemon) -> None:
    assert len(daemon.workers) == 2
    for worker in daemon.workers:
        assert "alias-milter-metrics" not in Path(f"/proc/{worker}/maps").read_text()


def test_a_port_that_is_taken_is_a_clear_error(measured: Daemon, port: int) -> None:
    (measured.folder / "second.sock").unlink(missing_ok=True)
    text = measured.config_file.read_text().replace("milter.sock", "second.sock")
    measured.config_file.write_text(text)
    second = measured.run("run")
    assert second.returncode == 2
    assert f"socket inet:{port}@127.0.0.1: Address already in use" in second.stderr


def test_when_the_files_of_the_metrics_cannot_be_made_mail_goes_on(
    redis: RedisServer, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_rules(redis)
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/nonexistent")
    with Daemon(redis.url, {"metrics": {"listen": f"127.0.0.1:{port}"}}) as daemon:
        with Mta(daemon.socket) as mta:
            mta.mail()
            assert mta.rcpt("<sales@example.com>").kind == "continue"
            assert mta.message().of("addrcpt") == [("<bob@example.com>",)]
        assert request(port, "/metrics").status == 503
        assert request(port, "/readyz").status == 200
        assert "error: no metrics in this process" in daemon.log
