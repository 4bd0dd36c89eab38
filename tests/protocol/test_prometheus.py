"""The dashboard and the alerts, against a real Prometheus that scrapes a real daemon."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.daemon import REPOSITORY, Daemon
from tests.harness.monitoring import scrape, sealing_config
from tests.harness.mta_client import Mta
from tests.harness.prometheus import Prometheus, promtool
from tests.harness.redis import RedisServer
from tests.harness.wait import wait_until
from tests.protocol.conftest import load_rules

FOLDER = REPOSITORY / "docs" / "monitoring"
RULES = FOLDER / "alias-milter.rules.yml"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "alias-milter.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [
    (f"{panel['title']} {target['refId']}", target)
    for panel in PANELS
    for target in panel["targets"]
]
VARIABLES = {
    "$__rate_interval": "30s",
    "$job": "alias-milter",
    "$instance": ".*",
}
# 0 out of 0 where nothing is cached.
MAY_BE_NAN = {"Lookups answered from the cache A"}


def mail(daemon: Daemon) -> None:
    """A bit of everything."""
    with Mta(daemon.socket) as mta:
        for recipients in (("bob", "nobody"), ("out",), ("slow", "broken", "sales"), ("drop",)):
            mta.mail()
            for recipient in recipients:
                mta.rcpt(f"<{recipient}@example.com>")
            mta.message()


@pytest.fixture(scope="module")
def prometheus(shared_redis: RedisServer) -> Iterator[Prometheus]:
    """Prometheus, after it has scraped a daemon before, during and after some mail."""
    shared_redis.flush()
    load_rules(shared_redis)
    with (
        sealing_config(reinject=1) as (config, files, port),
        Daemon(shared_redis.url, config, files=files) as daemon,
        Prometheus(port, RULES) as server,
    ):
        wait_until(lambda: server.query("alias_milter_build_info"), "the first scrape", 30)

        def seen() -> bool:
            mail(daemon)
            found = server.query("sum(rate(alias_milter_message_seconds_count[30s]))")
            return bool(found) and found[0][1] > 0

        wait_until(seen, "rates", 30)
        yield server


def in_force(expression: str) -> str:
    """An expression with Grafana's variables filled in."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


@pytest.mark.parametrize(("name", "target"), TARGETS, ids=[name for name, _ in TARGETS])
def test_every_panel_of_the_dashboard_has_data(
    prometheus: Prometheus, name: str, target: dict[str, Any]
) -> None:
    found = prometheus.query(in_force(target["expr"]))
    assert found
    if name not in MAY_BE_NAN:
        assert any(not math.isnan(value) for _, value in found)
    for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
        assert all(label in labels for labels, _ in found)


def test_the_variables_of_the_dashboard_have_values(prometheus: Prometheus) -> None:
    (build,) = prometheus.query("alias_milter_build_info")
    queries = [v["definition"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    assert len(queries) == 2
    for query in queries:
        match = re.fullmatch(r"label_values\((\w+(?:\{.*\})?), (\w+)\)", query)
        assert match
        assert prometheus.query(in_force(match[1]))
        assert match[2] in build[0]


def test_every_alert_is_evaluated_without_an_error(prometheus: Prometheus) -> None:
    def evaluated() -> list[dict[str, Any]]:
        (group,) = prometheus.ask("rules")["groups"]
        rules: list[dict[str, Any]] = group["rules"]
        return rules if all(rule["lastEvaluation"] > "0002" for rule in rules) else []

    rules = wait_until(evaluated, "the rules are evaluated", 30)
    assert [rule["name"] for rule in rules] == ALERTS
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


def test_every_metric_is_on_the_dashboard_and_every_name_in_use_is_one(
    prometheus: Prometheus,
) -> None:
    names = {name for name, _ in scrape(prometheus.target).series}
    on_dashboard = set(re.findall(r"alias_milter_\w+", json.dumps(PANELS)))
    in_alerts = set(re.findall(r"\balias_milter_\w+", RULES.read_text()))
    assert on_dashboard <= names
    assert in_alerts <= names
    not_shown = {n for n in names if not n.endswith(("_sum", "_count"))} - on_dashboard
    assert not_shown == set()


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


# The alerts, by promtool: quiet when all is well, and each fires when it should.

ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text())
LABELS = 'job="alias-milter", instance="mx"'
STEADY = "0+60x120"  # once a second, by the minute, for two hours


def recipients(verdict: str, reason: str) -> str:
    """A series of decided recipients."""
    return f'alias_milter_recipients_total{{{LABELS}, verdict="{verdict}", reason="{reason}"}}'


QUIET = {
    f"up{{{LABELS}}}": "1x120",
    f'alias_milter_workers{{{LABELS}, role="milter"}}': "2x120",
    f'alias_milter_workers_died_total{{{LABELS}, role="milter"}}': "1x120",
    f'alias_milter_exceptions_total{{{LABELS}, place="milter"}}': "3x120",
    recipients("accepted", "alias"): STEADY,
    recipients("deferred", "other-handling"): STEADY,
    recipients("deferred", "invalid-rule"): "5x120",
    f'alias_milter_rcpt_seconds_bucket{{{LABELS}, le="0.25"}}': STEADY,
    f'alias_milter_rcpt_seconds_bucket{{{LABELS}, le="1.0"}}': STEADY,
    f'alias_milter_rcpt_seconds_bucket{{{LABELS}, le="+Inf"}}': STEADY,
    f'alias_milter_message_seconds_bucket{{{LABELS}, le="5.0"}}': STEADY,
    f'alias_milter_message_seconds_bucket{{{LABELS}, le="30.0"}}': STEADY,
    f'alias_milter_message_seconds_bucket{{{LABELS}, le="+Inf"}}': STEADY,
    f'alias_milter_dns_lookups_total{{{LABELS}, result="answered"}}': STEADY,
    f'alias_milter_dns_lookups_total{{{LABELS}, result="failed"}}': "0+2x120",
    f'alias_milter_reinjections_total{{{LABELS}, result="failed"}}': "7x120",
    f'alias_milter_srs_returns_total{{{LABELS}, result="forged"}}': "0+1x120",
    f"alias_milter_log_lines_lost_total{{{LABELS}}}": "4x120",
}
# What is otherwise when an alert fires.
TROUBLE = {
    "Down": {f"up{{{LABELS}}}": "0x120"},
    "NoWorkers": {f'alias_milter_workers{{{LABELS}, role="milter"}}': "0x120"},
    "WorkersDie": {f'alias_milter_workers_died_total{{{LABELS}, role="milter"}}': "0+1x120"},
    "Exceptions": {f'alias_milter_exceptions_total{{{LABELS}, place="milter"}}': "0+1x120"},
    "StoreUnavailable": {
        recipients("deferred", "store-unavailable"): "0+5x120",
    },
    "RulesInError": {
        recipients("deferred", "cycle"): "0+1x120"
    },
    "ManyDeferred": {
        recipients("deferred", "dns-unavailable"): STEADY,
    },
    "Misconfigured": {
        recipients("deferred", "reinject-loop"): "0+1x120",
    },
    "RecipientsSlow": {f'alias_milter_rcpt_seconds_bucket{{{LABELS}, le="0.25"}}': "0+30x120"},
    "MessagesSlow": {f'alias_milter_message_seconds_bucket{{{LABELS}, le="5.0"}}': "0+30x120"},
    "DNSFails": {f'alias_milter_dns_lookups_total{{{LABELS}, result="failed"}}': "0+30x120"},
    "ReinjectFails": {f'alias_milter_reinjections_total{{{LABELS}, result="failed"}}': "0+1x120"},
    "NoKey": {f'alias_milter_arc_unsealed_total{{{LABELS}, cause="no-key"}}': "0+1x120"},
    "ForgedReturnAddresses": {
        f'alias_milter_srs_returns_total{{{LABELS}, result="forged"}}': "0+120x120"
    },
    "LogLinesLost": {f"alias_milter_log_lines_lost_total{{{LABELS}}}": "0+9x120"},
}


def firing(folder: Path, series: dict[str, str]) -> str:
    """What promtool says of the alerts after an hour and a half; "" when none fires."""
    # JSON is YAML. The test asks for no alert at all, and promtool tells those that there are.
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": k, "values": v} for k, v in series.items()],
                "alert_rule_test": [
                    {"eval_time": "90m", "alertname": alert, "exp_alerts": []} for alert in ALERTS
                ],
            }
        ],
    }
    file = folder / "test.yml"
    file.write_text(json.dumps(test))
    try:
        promtool("test", "rules", str(file))
    except AssertionError as error:
        return str(error)
    return ""


def test_promtool_finds_no_fault() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(RULES))
    assert [f"AliasMilter{name}" for name in TROUBLE] == ALERTS


def test_no_alert_fires_while_all_is_well(tmp_path: Path) -> None:
    assert firing(tmp_path, QUIET) == ""


@pytest.mark.parametrize("alert", TROUBLE)
def test_each_alert_fires_alone_when_it_should_and_its_words_are_whole(
    tmp_path: Path, alert: str
) -> None:
    said = firing(tmp_path, {**QUIET, **TROUBLE[alert]})
    assert set(re.findall(r"alertname: ?(\w+)", said)) == {f"AliasMilter{alert}"}, said
    assert 'summary="mx: ' in said.replace("\\", "")
    assert "<no value>" not in said
