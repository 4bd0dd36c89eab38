"""add, remove, list, import, export and log: checked as a whole, written as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aliasmilter.admin import edit, validation
from aliasmilter.cli import commands
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store import editor
from aliasmilter.store.audit import Change
from aliasmilter.store.snapshot import Snapshot, read
from tests.harness.daemon import toml
from tests.harness.fake_redis import Proxy
from tests.harness.redis import RedisServer

Run = Callable[..., Result]
DEMO = Path(__file__).parents[2] / "rules" / "demo.redis"


@pytest.fixture
def run(tmp_path: Path, redis: RedisServer) -> Run:
    (tmp_path / "srs.secrets").write_text("a secret that is long enough\n")
    file = tmp_path / "alias-milter.toml"
    file.write_text(
        toml(
            {
                "store": {"url": redis.url},
                "mail": {"hostname": "mx.example.net"},
                "srs": {"domain": "fwd.example.net", "secrets_file": "srs.secrets"},
                "quarantine": {"mailbox": "quarantine@example.net"},
            }
        )
    )

    def invoke(*args: str, stdin: str = "") -> Result:
        return CliRunner().invoke(commands, [*args, "-c", str(file)], input=stdin)

    return invoke


@pytest.fixture
def rules(redis: RedisServer) -> RedisServer:
    redis.cli(
        stdin="HSET domain:example.com unknown reject\n"
        "HSET alias:example.com bob bob@example.com carol carol@example.com\n"
        "HSET alias:example.com sales bob@example.com\n"
    )
    return redis


def rule(redis: RedisServer, name: str, domain: str = "example.com") -> str:
    return redis.cli("HGET", f"alias:{domain}", name).strip('"')


def test_add_writes_a_rule_and_says_so(run: Run, rules: RedisServer) -> None:
    result = run("add", "Team@Example.com", "bob@example.com,", "carol@example.com", "note=all")
    assert result.exit_code == 0, result.output
    assert "+ team@example.com: bob@example.com, carol@example.com note=all" in result.output
    assert rule(rules, "team") == "bob@example.com, carol@example.com note=all"


def test_add_changes_a_rule_only_when_told_to(run: Run, rules: RedisServer) -> None:
    refused = run("add", "sales@example.com", "carol@example.com")
    assert refused.exit_code == 1
    assert "has the rule 'bob@example.com' already" in refused.output
    assert rule(rules, "sales") == "bob@example.com"
    result = run("add", "--replace", "sales@example.com", "carol@example.com")
    assert "~ sales@example.com: bob@example.com -> carol@example.com" in result.output
    assert rule(rules, "sales") == "carol@example.com"


@pytest.mark.parametrize(
    ("address", "text", "finding"),
    [
        ("x@example.com", "nonsense", "unknown word 'nonsense'"),
        ("x@example.com", "x+y@example.com y@example.com", "its target y@example.com has no rule"),
        ("bob@example.com", "sales@example.com", "cycle: "),
        ("x@other.example", "bob@example.com", "HSET domain:other.example unknown reject"),
    ],
)
def test_a_rule_that_is_a_mistake_is_not_written(
    run: Run, rules: RedisServer, address: str, text: str, finding: str
) -> None:
    before = rules.cli("HGETALL", "alias:example.com")
    result = run("add", "--replace", address, text)
    assert result.exit_code == 1
    assert finding in result.output
    assert "nothing was written" in result.output
    assert rules.cli("HGETALL", "alias:example.com") == before
    assert rules.cli("EXISTS", "audit", "alias:other.example") == "(integer) 0"


def test_a_catch_all_aimed_at_an_inbox_is_warned_of(run: Run, rules: RedisServer) -> None:
    result = run("add", "*@example.com", "bob@example.com")
    assert result.exit_code == 0
    assert "warning: alias:example.com *: a catch-all never reaches a real inbox" in result.output
    assert rule(rules, "*") == "bob@example.com"


def test_no_address_is_a_usage_error(run: Run) -> None:
    assert run("add", "no address", "bob@example.com").exit_code == 2
    assert run("remove", "bob").exit_code == 2
    assert run("log", "@").exit_code == 2


def test_remove_leaves_no_rule_that_leads_to_nothing(run: Run, rules: RedisServer) -> None:
    refused = run("remove", "bob@example.com")
    assert refused.exit_code == 1
    assert "error: alias:example.com sales: dangling: " in refused.output
    assert rule(rules, "bob")
    assert run("remove", "bob@example.com", "sales@example.com").exit_code == 0
    assert rules.cli("HKEYS", "alias:example.com") == '1) "carol"'


def test_a_pattern_is_found_or_refused_and_what_it_serves_keeps_it(
    run: Run, rules: RedisServer
) -> None:
    assert run("add", "sales-*@example.com", "bob@example.com").exit_code == 0
    refused = run("add", "a*z@example.com", "bob@example.com")
    assert refused.exit_code == 1
    assert "never found" in refused.output
    assert run("add", "shop@example.com", "sales-shop@example.com").exit_code == 0
    assert run("remove", "sales-*@example.com").exit_code == 1


def test_a_rule_that_comes_to_end_in_a_catch_all_is_warned_of(
    run: Run, rules: RedisServer
) -> None:
    assert run("add", "*@example.com", "quarantine").exit_code == 0
    result = run("remove", "bob@example.com")
    assert result.exit_code == 0
    warned = "alias:example.com sales: bob@example.com has no rule: mail to it is quarantined"
    assert warned in result.output
    result = run("add", "typo@example.com", "bbo@example.com")
    assert "alias:example.com typo: bbo@example.com has no rule" in result.output


def test_remove_of_what_is_not_there_removes_nothing(run: Run, rules: RedisServer) -> None:
    result = run("remove", "carol@example.com", "nobody@example.com")
    assert result.exit_code == 1
    assert "nobody@example.com: there is no such rule" in result.output
    assert rule(rules, "carol")


def test_a_rule_that_was_broken_before_stops_nothing(run: Run, rules: RedisServer) -> None:
    rules.cli("HSET", "alias:example.com", "old", "bob@example.com nix@example.com")
    assert run("add", "--replace", "bob@example.com", "carol@example.com").exit_code == 0


def test_a_chain_that_gets_too_deep_far_away_is_found(run: Run, rules: RedisServer) -> None:
    chain = "".join(f"HSET alias:example.com a{n} a{n + 1}@example.com\n" for n in range(8))
    rules.cli(stdin=chain + "HSET alias:example.com a8 a8@example.com\n")
    more = "".join(f"HSET alias:example.com b{n} b{n + 1}@example.com\n" for n in range(5))
    end = "HSET alias:example.com b5 b5@example.com\nHSET alias:example.com a8 b0@example.com\n"
    result = run("import", "--format", "redis", "-", stdin=more + end)
    assert result.exit_code == 1
    assert "error: alias:example.com a0: too-deep" in result.output


def test_a_domain_that_becomes_managed_must_have_what_rules_name_there(
    run: Run, rules: RedisServer
) -> None:
    assert run("add", "out@example.com", "me@new.example").exit_code == 0
    result = run("add", "--create-domains", "you@new.example", "you@new.example")
    assert result.exit_code == 1
    assert "alias:example.com out: dangling: " in result.output
    both = "me@new.example,me@new.example\nyou@new.example,you@new.example\n"
    result = run("import", "--create-domains", "--format", "csv", "-", stdin=both)
    assert result.exit_code == 0, result.output
    assert rules.cli("HGET", "domain:new.example", "unknown") == '"reject"'


@pytest.mark.parametrize("other", ["example.com", "old.example"])
def test_a_second_domain_that_leads_round_in_a_circle_is_not_written(
    run: Run, rules: RedisServer, other: str
) -> None:
    rules.cli("HSET", "domain:old.example", "alias_of", "example.com")
    script = f"HSET domain:example.com alias_of {other}\n"
    result = run("import", "--format", "redis", "-", stdin=script)
    assert result.exit_code == 1
    assert "error: domain:example.com alias_of: a circle: example.com -> " in result.output
    assert rules.cli("HGET", "domain:example.com", "alias_of") == "(nil)"


def test_import_of_the_demo_and_back(run: Run, redis: RedisServer) -> None:
    script = DEMO.read_text().replace("ping pong@", "ping bob@")
    result = run("import", "--format", "redis", "-", stdin=script)
    assert result.exit_code == 0, result.output
    exported = run("export").output
    before = read(redis.url, 5.0)
    redis.flush()
    redis.cli(stdin=exported)
    assert read(redis.url, 5.0) == before
    assert run("export").output == exported
    again = run("import", "--replace", "--format", "redis", "-", stdin=exported)
    assert "0 added, 0 changed, 0 removed" in again.output


BLOCKS = "SADD block:example.com spam.example eve@bank.example\n"


def members(redis: RedisServer, domain: str = "example.com") -> set[str]:
    return set(redis.cli("--raw", "SMEMBERS", f"block:{domain}").splitlines())


def test_a_backup_holds_the_blocked_senders_and_brings_them_back(
    run: Run, rules: RedisServer
) -> None:
    rules.cli(stdin=BLOCKS)
    before = read(rules.url, 5.0)
    backup = run("export").output
    assert "SADD block:example.com eve@bank.example spam.example\n" in backup
    arguments = ("import", "--replace", "--format", "redis", "-")
    rules.flush()
    restored = run(*arguments, stdin=backup)
    assert restored.exit_code == 0, restored.output
    assert read(rules.url, 5.0) == before
    rules.cli("SADD", "block:example.com", "late.example")
    rules.cli("SREM", "block:example.com", "spam.example")
    assert "1 added, 0 changed, 1 removed" in run(*arguments, stdin=backup).output
    assert members(rules) == {"spam.example", "eve@bank.example"}
    told = [line.split("\t")[3:] for line in run("log", "example.com").output.splitlines()]
    assert ["block:example.com", "-", "spam.example"] in told
    assert ["block:example.com", "late.example", "-"] in told


def test_blocked_senders_are_added_unless_they_are_to_be_replaced(
    run: Run, rules: RedisServer
) -> None:
    rules.cli(stdin=BLOCKS)
    more = "SADD block:example.com more.example\n"
    assert run("import", "--format", "redis", "-", stdin=more).exit_code == 0
    assert members(rules) == {"spam.example", "eve@bank.example", "more.example"}
    own = "HSET alias:example.com bob bob@example.com\n"
    assert run("import", "--replace", "--format", "redis", "-", stdin=own).exit_code == 0
    assert len(members(rules)) == 3, "the file says nothing of them"


@pytest.mark.parametrize("direct", [10_000, 1])
def test_blocked_senders_are_replaced_with_the_rules_or_not_at_all(
    run: Run, rules: RedisServer, monkeypatch: pytest.MonkeyPatch, direct: int
) -> None:
    monkeypatch.setattr(editor, "DIRECT", direct)
    rules.cli("SADD", "block:example.com", "old.example")
    file = BLOCKS + "HSET alias:example.com bob bob@example.com new bob@example.com\n"
    with monkeypatch.context() as patched:
        edited_meanwhile(patched, rules, "SADD", "block:example.com", "other.example")
        refused = run("import", "--replace", "--format", "redis", "-", stdin=file)
    assert refused.exit_code == 1
    assert members(rules) == {"old.example", "other.example"}
    assert rule(rules, "new") == "(nil)"
    prepared = set(rules.cli("--raw", "KEYS", "staged:*").splitlines())
    result = run("import", "--replace", "--format", "redis", "-", stdin=file)
    assert result.exit_code == 0, result.output
    assert members(rules) == {"spam.example", "eve@bank.example"}
    assert rule(rules, "new") == "bob@example.com"
    staged = set(rules.cli("--raw", "KEYS", "staged:*").splitlines())
    assert staged == prepared, "those of the refused one end by themselves"
    assert rules.cli("TTL", "block:example.com") == "(integer) -1"


@pytest.mark.parametrize(
    ("member", "finding"),
    [
        ("Spam.example", "never found: write it spam.example"),
        ("Eve@bank.example", "never found: write it eve@bank.example"),
        ("@spam.example", "neither an address nor a domain"),
        ('"a b"', "neither an address nor a domain"),
        ('""', "neither an address nor a domain"),
        ('"\\xff.example"', "not UTF-8"),
    ],
)
def test_a_sender_that_could_never_be_blocked_is_not_imported(
    run: Run, rules: RedisServer, member: str, finding: str
) -> None:
    script = f"{BLOCKS}SADD block:example.com {member}\n"
    result = run("import", "--format", "redis", "-", stdin=script)
    assert result.exit_code == 1
    assert "standard input:2: block:example.com" in result.output
    assert finding in result.output
    assert members(rules) == set()
    orphan = run("import", "--format", "redis", "-", stdin="SADD block:new.example x.example\n")
    assert "new.example is not a managed domain" in orphan.output


def test_export_is_no_success_when_a_key_cannot_be_read(run: Run, rules: RedisServer) -> None:
    rules.cli("SET", "block:example.com", "x")
    for result in (run("export"), run("export", "example.com")):
        assert result.exit_code == 1
        assert "HSET alias:example.com bob bob@example.com" in result.output
        assert "block:example.com: holds another type than a set" in result.output


def test_redis_cli_makes_of_a_backup_exactly_what_was_there(run: Run, rules: RedisServer) -> None:
    circle = "a b@example.com b a@example.com"
    rules.cli(stdin=f'HSET alias:example.com {circle} "caf\\xe9" "\\xff" "" x\n'
        'HSET "alias:\\xe9.example" "two words" "a \\"b\\" \\n"\n'
        f'{BLOCKS}SADD block:example.com "\\xe9" "" "# x" Spam.example\n')  # fmt: skip
    before = read(rules.url, 5.0)
    backup = run("export").output
    refused = run("import", "--replace", "--format", "redis", "-", stdin=backup)
    assert refused.exit_code == 1, "it is not all good"
    rules.flush()
    rules.cli(stdin=backup)
    assert read(rules.url, 5.0) == before
    assert rules.cli("HEXISTS", "alias:example.com", b"caf\xe9".decode("utf-8", "surrogateescape"))
    first = min(n for n, line in enumerate(backup.splitlines()) if "domain:" in line)
    assert all(" domain:" in line for line in backup.splitlines()[first:])


def test_a_field_that_is_no_utf_8_can_be_replaced(run: Run, rules: RedisServer) -> None:
    rules.cli(stdin='HSET alias:example.com "caf\\xe9" bob@example.com\n')
    assert "caf\\xe9@example.com\tbob@example.com" in run("list").output
    assert json.loads(run("list", "--json").output)[1]["address"] == "caf\\xe9@example.com"
    file = "bob@example.com,bob@example.com\n"
    assert run("import", "--replace", "--format", "csv", "-", stdin=file).exit_code == 0
    assert rules.cli("HKEYS", "alias:example.com") == '1) "bob"'


def test_a_local_part_with_an_at_sign_comes_back_and_a_whole_address_is_a_mistake(
    run: Run, rules: RedisServer
) -> None:
    assert run("add", '"a@b"@example.com', "bob@example.com").exit_code == 0
    backup = run("export").output
    rules.flush()
    restored = run("import", "--format", "redis", "-", stdin=backup)
    assert restored.exit_code == 0, restored.output
    assert rule(rules, "a@b") == "bob@example.com"
    wrong = "HSET alias:example.com info@example.com bob@example.com\n"
    refused = run("import", "--format", "redis", "-", stdin=wrong)
    assert refused.exit_code == 1
    assert "standard input:1: alias:example.com info@example.com: a whole address" in refused.output
    assert "write the local part, info" in refused.output
    empty = run("import", "--format", "redis", "-", stdin='HSET alias:example.com "" x@x.example\n')
    assert empty.exit_code == 1


def test_import_says_which_lines_are_wrong_and_writes_none(
    run: Run, rules: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "rules.csv"
    file.write_text(
        "address,rule\ngood@example.com,bob@example.com\nbad,bob@example.com\n"
        "worse@example.com,bob@example.com,carol@example.com\n"
        "good@example.com,carol@example.com\n"
    )
    result = run("import", str(file))
    assert result.exit_code == 1
    for line in ("rules.csv:3: bad: no domain", "rules.csv:4: 3 fields", "rules.csv:5: good@"):
        assert line in result.output
    file.write_text("good@example.com,bob@example.com\nbad@example.com,nix@example.com\n")
    result = run("import", str(file))
    assert "rules.csv:2: alias:example.com bad: dangling" in result.output
    assert rule(rules, "good") == "(nil)"


def test_a_dry_run_shows_the_difference_and_writes_nothing(run: Run, rules: RedisServer) -> None:
    file = "sales@example.com,carol@example.com\nnew@example.com,bob@example.com\n"
    file += "bob@example.com,bob@example.com\n"
    result = run("import", "--dry-run", "--replace", "--format", "csv", "-", stdin=file)
    assert result.exit_code == 1, "sales leads to carol, who is not in the file"
    file += "carol@example.com,carol@example.com\n"
    rules.cli("HSET", "alias:example.com", "gone", "bob@example.com")
    result = run("import", "--dry-run", "--replace", "--format", "csv", "-", stdin=file)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "~ sales@example.com: bob@example.com -> carol@example.com",
        "+ new@example.com: bob@example.com",
        "- gone@example.com: bob@example.com",
        "1 added, 1 changed, 1 removed (dry run: nothing was written)",
    ]
    assert rule(rules, "gone") == "bob@example.com"
    assert rules.cli("EXISTS", "audit") == "(integer) 0"


def test_import_merges_unless_told_to_replace(run: Run, rules: RedisServer) -> None:
    file = "bob@example.com,bob@example.com\n"
    assert run("import", "--format", "csv", "-", stdin=file).exit_code == 0
    assert rule(rules, "sales") == "bob@example.com"
    result = run("import", "--replace", "--format", "csv", "-", stdin=file)
    assert "0 added, 0 changed, 2 removed" in result.output
    assert rules.cli("HKEYS", "alias:example.com") == '1) "bob"'


def test_a_key_of_another_type_is_named_and_left_alone(run: Run, rules: RedisServer) -> None:
    rules.cli("SET", "alias:second.example", "x")
    rules.cli("HSET", "domain:second.example", "unknown", "reject")
    result = run("add", "x@second.example", "bob@example.com")
    assert result.exit_code == 1
    assert "alias:second.example: holds another type than a hash" in result.output
    rules.cli("DEL", "alias:second.example")
    rules.cli("SET", "audit", "x")
    result = run("add", "x@second.example", "bob@example.com")
    assert result.exit_code == 1
    assert "audit holds another type" in result.output
    assert rules.cli("EXISTS", "alias:second.example") == "(integer) 0"


def edited_meanwhile(monkeypatch: pytest.MonkeyPatch, redis: RedisServer, *command: str) -> None:
    """Have another administrator type a command while a change is being checked."""
    def typing(*args: object, **options: object) -> object:
        redis.cli(*command)
        return validation.validate(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(edit, "validate", typing)


@pytest.mark.parametrize("direct", [10_000, 1])
@pytest.mark.parametrize(
    "command",
    [
        ("HSET", "alias:example.com", "sales", "carol@example.com"),
        ("HDEL", "alias:example.com", "sales"),
        ("DEL", "domain:example.com"),
    ],
)
def test_a_change_in_between_is_reported_and_nothing_is_written(
    run: Run,
    rules: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    direct: int,
) -> None:
    monkeypatch.setattr(editor, "DIRECT", direct)
    edited_meanwhile(monkeypatch, rules, *command)
    file = "new@example.com,bob@example.com\nother@example.com,bob@example.com\n"
    result = run("import", "--format", "csv", "-", stdin=file)
    assert result.exit_code == 1
    assert "somebody else has changed these domains meanwhile" in result.output
    assert rule(rules, "new") == "(nil)"
    assert rules.cli("EXISTS", "audit") == "(integer) 0"


def test_a_change_in_another_domain_does_not_matter(
    run: Run, rules: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited_meanwhile(monkeypatch, rules, "HSET", "domain:other.example", "unknown", "reject")
    assert run("add", "new@example.com", "bob@example.com").exit_code == 0


def test_a_large_change_is_prepared_beside_and_put_in_place(
    run: Run, rules: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editor, "DIRECT", 1)
    file = "bob@example.com,bob@example.com\nnew@example.com,bob@example.com\n"
    file += "sales@example.com,new@example.com\nx@new.example,bob@example.com\n"
    arguments = ("import", "--replace", "--create-domains", "--format", "csv", "-")
    result = run(*arguments, stdin=file)
    assert result.exit_code == 0, result.output
    assert "3 added, 1 changed, 1 removed" in result.output
    assert rule(rules, "sales") == "new@example.com"
    assert rule(rules, "carol") == "(nil)"
    assert rule(rules, "x", "new.example") == "bob@example.com"
    assert rules.cli("TTL", "alias:example.com") == "(integer) -1"
    keys = rules.cli("KEYS", "*")
    assert "staged" not in keys, keys
    told = json.loads(run("log", "--json", "example.com").output)
    assert [(each["address"], each["after"]) for each in told] == [
        ("@example.com", "1 added, 1 changed, 1 removed"),
        ("new@example.com", "bob@example.com"),
        ("sales@example.com", "new@example.com"),
        ("carol@example.com", None),
    ]


def test_redis_is_asked_to_watch_a_few_keys_at_a_time(
    run: Run, rules: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It compares each with all that are watched already, and answers no mail meanwhile."""
    monkeypatch.setattr(editor, "DIRECT", 1)
    rules.cli("CONFIG", "SET", "slowlog-max-len", "100000")
    rules.cli("CONFIG", "SET", "slowlog-log-slower-than", "0")
    file = "".join(f"a@d{number}.example,quarantine\n" for number in range(20))
    arguments = ("import", "--create-domains", "--format", "csv", "-")
    assert run(*arguments, stdin=file).exit_code == 0
    client = editor.connect(rules.url, 1.0)
    commands = [entry["command"].split() for entry in client.slowlog_get(-1)]
    client.close()
    watched = [len(keys) for name, *keys in commands if name == b"WATCH"]
    assert sum(watched) >= 4 * 20  # domain:, alias:, block: and what was prepared
    assert max(watched) <= 10


@pytest.mark.parametrize("direct", [10_000, 1], ids=["directly", "prepared"])
def test_a_change_leaves_the_lifetime_of_the_rules_as_it_is(
    run: Run, rules: RedisServer, monkeypatch: pytest.MonkeyPatch, direct: int
) -> None:
    monkeypatch.setattr(editor, "DIRECT", direct)
    rules.cli("EXPIRE", "alias:example.com", "1000")
    file = "new@example.com,bob@example.com\nother@example.com,bob@example.com\n"
    assert run("import", "--format", "csv", "-", stdin=file).exit_code == 0
    assert rule(rules, "new") == "bob@example.com"
    assert 900 < int(rules.cli("TTL", "alias:example.com").split()[-1]) <= 1000


def test_a_large_change_may_remove_all_rules_of_a_domain(
    run: Run, rules: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editor, "DIRECT", 1)
    names = ("bob@example.com", "carol@example.com", "sales@example.com")
    assert run("remove", *names).exit_code == 0
    assert rules.cli("KEYS", "alias:*") == "(empty array)"


def test_redis_away_is_said_and_is_no_success(run: Run, tmp_path: Path, rules: RedisServer) -> None:
    file = tmp_path / "alias-milter.toml"
    file.write_text(file.read_text().replace(rules.url, "redis://127.0.0.1:1/0"))
    for command in (
        ("add", "x@example.com", "bob@example.com"),
        ("list",),
        ("export",),
        ("log",),
    ):
        result = run(*command)
        assert result.exit_code == 1
        assert "Redis: " in result.output


def test_a_user_who_may_not_write_the_log_writes_nothing() -> None:
    user = "clerk on >secret ~alias:* ~domain:* ~block:* ~audit +@read +@hash"
    user += " +@connection +@transaction"
    with RedisServer(users=[user]) as redis:
        redis.cli("HSET", "domain:example.com", "unknown", "reject")
        client = editor.connect(redis.url.replace("unix://", "unix://clerk:secret@"), 5.0)
        change = Change("example.com", "bob", None, b"bob@example.com")
        with (
            editor.Editor(client, ["example.com"], "clerk", "add") as change_of_clerk,
            pytest.raises(Unavailable),
        ):
            change_of_clerk.write([change], Snapshot())
        assert redis.cli("EXISTS", "alias:example.com") == "(integer) 0"


class _LosesTheAnswer(Proxy):
    """Does not hand on the first reply after the rules of example.com have changed."""

    def __init__(self, redis: RedisServer) -> None:
        super().__init__(redis.port)
        self._redis = redis
        self._before = redis.cli("HGETALL", "alias:example.com")
        self._lost = False

    def turn(self, direction: str) -> None:
        changed = self._redis.cli("HGETALL", "alias:example.com") != self._before
        if direction == "reply" and changed and not self._lost:
            self._lost = True
            raise ConnectionResetError
        super().turn(direction)


@pytest.mark.parametrize("direct", [10_000, 1])
def test_when_the_answer_to_a_change_is_lost_nobody_says_that_nothing_was_written(
    rules: RedisServer, monkeypatch: pytest.MonkeyPatch, direct: int
) -> None:
    monkeypatch.setattr(editor, "DIRECT", direct)
    names = ("anna", "dave")
    changes = [Change("example.com", name, None, b"bob@example.com") for name in names]
    snapshot = Snapshot(rules={"example.com": dict.fromkeys(names, b"bob@example.com")})
    with _LosesTheAnswer(rules) as proxy:
        client = editor.connect(proxy.url, 0.5)
        with (
            editor.Editor(client, ["example.com"], "clerk", "add") as change,
            pytest.raises(Unavailable, match="whether the change was made is not known"),
        ):
            change.write(changes, snapshot)
        client.close()
    assert rule(rules, "anna") == "bob@example.com"


def test_log_shows_who_changed_what(
    run: Run, rules: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    run("add", "x@example.com", "bob@example.com")
    run("add", "--replace", "x@example.com", "carol@example.com")
    monkeypatch.setenv("SUDO_USER", "dave")
    run("remove", "x@example.com")
    run("add", "y@example.com", "bob@example.com")
    lines = [line.split("\t")[1:] for line in run("log", "X@example.com").output.splitlines()]
    assert lines == [
        ["alice", "add", "x@example.com", "-", "bob@example.com"],
        ["alice", "add", "x@example.com", "bob@example.com", "carol@example.com"],
        ["dave", "remove", "x@example.com", "carol@example.com", "-"],
    ]
    assert len(run("log", "example.com").output.splitlines()) == 4
    assert run("log", "other.example").output == ""
    [newest] = json.loads(run("log", "--json", "-n", "1").output)
    assert newest["address"] == "y@example.com"
    assert newest["before"] is None
    assert newest["when"].endswith("+00:00")


def test_list_is_whole_when_piped_and_escapes_what_could_move_a_cursor(
    run: Run, rules: RedisServer
) -> None:
    name = "x" * 200
    rules.cli("HSET", "alias:example.com", name, f"{name}@example.com", "esc", "a\x1b[2Jb")
    lines = run("list", "example.com").output.splitlines()
    assert f"{name}@example.com\t{name}@example.com" in lines
    assert "esc@example.com\ta\\x1b[2Jb" in lines
    listed = {each["address"]: each for each in json.loads(run("list", "--json").output)}
    assert listed["sales@example.com"]["targets"] == ["bob@example.com"]
    assert "problem" in listed["esc@example.com"]
    options = "vendor=hub.example strict block=spam.example;Eve@bank.example"
    rules.cli("HSET", "alias:example.com", "hub", f"bob@example.com {options}")
    listed = {each["address"]: each for each in json.loads(run("list", "--json").output)}
    assert listed["hub@example.com"]["strict"] is True
    assert listed["hub@example.com"]["block"] == ["eve@bank.example", "spam.example"]
    assert listed["sales@example.com"]["strict"] is False
    assert listed["sales@example.com"]["block"] == []
    assert run("list", "other.example").exit_code == 1


def test_virtual_tables_are_taken_over_and_what_cannot_be_is_said(
    run: Run, rules: RedisServer, tmp_path: Path
) -> None:
    table = tmp_path / "virtual"
    table.write_text(
        "# our table\nexample.com  anything\n\n"
        "team@example.com  bob@example.com,\n  # and\n   carol@example.com\n"
        "@new.example  @example.com\nroot  bob@example.com\nlocal@example.com  bob\n"
        "/^x/  bob@example.com\n"
    )
    arguments = ("import", "--create-domains", str(table))
    refused = run(*arguments)
    assert refused.exit_code == 1
    for line in (
        "virtual:2: example.com: taken for a declared domain",
        "virtual:8: root: no domain; name it with --origin",
        "virtual:9: local@example.com: target bob: no domain",
        "virtual:10: /^x/: a regular expression",
        "3 entries cannot be taken over; --skip leaves them out",
    ):
        assert line in refused.output, refused.output
    assert rule(rules, "team") == "(nil)"
    result = run(*arguments, "--skip")
    assert result.exit_code == 0, result.output
    assert rule(rules, "team") == "bob@example.com, carol@example.com"
    assert rule(rules, "*", "new.example") == "@example.com"
    result = run(*arguments, "--skip", "--origin", "example.com")
    assert result.exit_code == 0, result.output
    assert rule(rules, "root") == "bob@example.com"
    assert rule(rules, "local") == "bob@example.com"


def test_export_to_a_virtual_table_says_what_it_cannot_say(run: Run, rules: RedisServer) -> None:
    rules.cli("HSET", "alias:example.com", "dave", "disabled gone", "*", "@new.example")
    result = run("export", "--format", "virtual")
    assert result.exit_code == 1
    assert "@example.com @new.example\n" in result.stdout
    assert "sales@example.com bob@example.com\n" in result.stdout
    assert "dave@example.com: the action disabled" in result.stderr


def test_a_pattern_is_left_out_of_a_virtual_table_and_options_are_spoken_of(
    run: Run, rules: RedisServer
) -> None:
    rules.cli(stdin='HSET alias:example.com "*-list" bob@example.com "sales-*" bob@example.com\n'
        'HSET alias:example.com noted "bob@example.com block=spam.example" * @new.example\n'
        'HSET alias:example.com quoted "\\"note=\\"@example.net"\n')  # fmt: skip
    result = run("export", "--format", "virtual")
    assert result.exit_code == 1
    assert "*-list@example.com: a pattern" in result.stderr
    assert "sales-*@example.com: a pattern" in result.stderr
    assert "noted@example.com: its options are left out" in result.stderr
    assert "quoted@example.com: its options" not in result.stderr
    assert "-list" not in result.stdout
    assert "sales-" not in result.stdout
    assert "\n@example.com @new.example\n" in "\n" + result.stdout
    assert "2 rules cannot be said in this format" in result.stderr


def test_what_suggest_prints_is_taken_by_redis_cli_and_by_import(
    run: Run, rules: RedisServer
) -> None:
    for local in ("slaes", "caro l"):
        seen = '{"bank.example": [3, "2026-11-01", "2026-11-02"]}'
        rules.cli("HSET", "misses:example.com", local, seen)
    script = run("suggest", "example.com").output
    assert 'ECHO "asked for 3 times, by 1 authenticated senders"\nHSET alias:' in script
    assert "#" not in script
    assert run("import", "--format", "redis", "-", stdin=script).exit_code == 0
    names = ["alias:example.com", "slaes", "caro l"]
    assert rules.cli("HDEL", *names) == "(integer) 2"
    rules.cli(stdin=script)
    assert rule(rules, "slaes") == "sales@example.com"
    assert rules.cli("HDEL", *names) == "(integer) 2"


def test_suggest_quotes_the_address_that_is_meant_as_a_rule_has_it(
    run: Run, rules: RedisServer
) -> None:
    rules.cli("HSET", "alias:example.com", "dr. no", "bob@example.com")
    seen = '{"bank.example": [3, "2026-11-01", "2026-11-02"]}'
    rules.cli("HSET", "misses:example.com", "dr.no", seen)
    rules.cli(stdin=run("suggest", "example.com").output)
    assert run("resolve", "dr.no@example.com").exit_code == 0
    rules.cli("HDEL", "alias:example.com", "dr.no")
    assert run("suggest", "example.com", "--apply", stdin="y\n").exit_code == 0
    assert run("resolve", "dr.no@example.com").exit_code == 0


def test_the_format_is_told_by_the_name_or_has_to_be_given(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rules.txt").write_text("")
    assert run("import", str(tmp_path / "rules.txt")).exit_code == 2
    assert run("import", str(tmp_path / "missing.csv")).exit_code == 2
    assert run("import", "-", stdin="").exit_code == 2
