"""What a `[store] url` may say, and that whatever else it says is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aliasmilter.redisurl import TLS, Endpoint, Kind, Login, Target, parse
from tests.harness.certificate import write_certificate

LOGIN = Login("me", "p@ss:w/d")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("redis://10.0.0.1:6380/3", Target(Kind.SERVER, (Endpoint("10.0.0.1", 6380),), db=3)),
        ("redis://localhost", Target(Kind.SERVER, (Endpoint("localhost", 6379),))),
        ("redis://:s@h/0?db=2", Target(Kind.SERVER, (Endpoint("h", 6379),), Login("", "s"), 2)),
        ("redis://[::1]:7/", Target(Kind.SERVER, (Endpoint("::1", 7),))),
        ("rediss://h", Target(Kind.SERVER, (Endpoint("h", 6379),), tls=TLS())),
        (
            "rediss://h?ssl_check_hostname=false",
            Target(Kind.SERVER, (Endpoint("h", 6379),), tls=TLS(check_hostname=False)),
        ),
        ("unix:///a/b.sock?db=3", Target(Kind.UNIX, (Endpoint(path="/a/b.sock"),), db=3)),
        (
            "unix://me:p%40ss%3Aw%2Fd@/a/b.sock",
            Target(Kind.UNIX, (Endpoint(path="/a/b.sock"),), LOGIN),
        ),
        (
            "redis+sentinel://me:p%40ss%3Aw%2Fd@h1:1,h2/rules/4",
            Target(
                Kind.SENTINEL, (Endpoint("h1", 1), Endpoint("h2", 26379)), LOGIN, 4, "rules"
            ),
        ),
        (
            "redis+sentinel://h/rules?sentinel_username=a&sentinel_password=b%20c",
            Target(
                Kind.SENTINEL, (Endpoint("h", 26379),), master="rules",
                sentinel_login=Login("a", "b c"),
            ),
        ),
        (
            "rediss+cluster://h1:1,[2001:db8::1],h3/",
            Target(
                Kind.CLUSTER,
                (Endpoint("h1", 1), Endpoint("2001:db8::1", 6379), Endpoint("h3", 6379)),
                tls=TLS(),
            ),
        ),
    ],
)  # fmt: skip
def test_a_url_says_where_the_rules_are(url: str, target: Target) -> None:
    assert parse(url) == target


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://h", "begins with"),
        ("redis+sentinels://h/x", "begins with"),
        ("rediss+unix:///x", "begins with"),
        ("redis://h:nonsense/0", "port is no number"),
        ("redis://h:99999/0", "port is no number"),
        ("redis://h:0/0", "port is no number"),
        ("redis://h:/0", "port is no number"),
        ("redis://:1/0", "no host"),
        ("redis://h/x", "the database is no number"),
        ("redis://h/-1", "the database is no number"),
        ("redis://h,i/0", "several hosts"),
        ("redis://h?foo=bar", "an option that is none of"),
        ("redis://h?db", "not NAME=VALUE"),
        ("redis://h?ssl_ca_certs=/x", "an option that is none of"),
        ("redis://h/0#x", "#"),
        ("redis://[::1/0", ""),
        ("redis://[::1]7/0", "[ADDRESS]:PORT"),
        ("unix:///redis.sock?db=x", "the database is no number"),
        ("unix://redis.sock", "no path"),
        ("unix:///", "no path"),
        ("redis+sentinel://h", "no name of a master"),
        ("redis+sentinel://h/x/y", "the database is no number"),
        ("redis+sentinel:///x", "no host"),
        ("redis+sentinel://h/x?db=3", "an option that is none of"),
        ("redis+cluster://h/1", "no database but 0"),
        ("redis+cluster://", "no host"),
        ("rediss://h?ssl_ca_certs=ca.pem", "not an absolute path"),
        ("rediss://h?ssl_ca_certs=/nonexistent/ca.pem", "/nonexistent/ca.pem: no such file"),
        ("rediss://h?ssl_ca_certs=/etc/hostname", "/etc/hostname: "),
        ("rediss://h?ssl_check_hostname=maybe", "neither true nor false"),
    ],
)
def test_a_url_that_is_wrong_says_why(url: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(url)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://me:sec/ret@h:1/0", "redis://me:secret@h:x", "redis://:secret"]
)
def test_an_error_never_shows_the_password(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(url)
    assert "sec" not in str(caught.value)


def test_a_client_certificate_without_its_key_is_an_error(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    parse(f"rediss://h?ssl_certfile={certificate}&ssl_keyfile={key}")
    with pytest.raises(ValueError, match=r"redis\.crt"):
        parse(f"rediss://h?ssl_certfile={certificate}")


SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+cluster", "x")


@settings(deadline=None)  # the system's certificates may be read
@given(st.sampled_from(SCHEMES), st.text("ah:/@,[]?&=%#1 \0\n\u00e9.", max_size=30))
def test_whatever_it_is_it_is_a_url_or_a_value_error(scheme: str, rest: str) -> None:
    # parse, or raise ValueError, never any other error
    try:
        target = parse(f"{scheme}://{rest}")
    except ValueError:
        return
    assert target.endpoints
