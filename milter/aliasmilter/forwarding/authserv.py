"""Authentication-Results fields that others put into a message (RFC 8601).

Those that claim to be ours are forged, unless an administrator says that milters before us write
them (`mode = "trust"`). Size and nesting are bounded before authres reads anything: it recurses
into comments.
"""

import re
from collections.abc import Sequence

import idna
from authres import all_features
from authres.core import AuthenticationResult, AuthResError

from aliasmilter.forwarding.chain import named_sets
from aliasmilter.forwarding.names import to_a_label
from aliasmilter.forwarding.resinfo import (
    quote_addresses,
    read_results,
    split_results,
    to_ascii,
)
from aliasmilter.forwarding.results import (
    ArcResult,
    DkimResult,
    DmarcResult,
    Identity,
    Results,
    SpfResult,
    Verdict,
)
from aliasmilter.mail.message import HeaderField, Message

NAME = "Authentication-Results"
MAX_FIELDS = 10
MAX_FIELD = 4096
MAX_NESTING = 8
# RFC 8601, 2.2: authserv-id is a token or a quoted string; these end a token.
_TOKEN_END = re.compile(r'[\s;(/,"]')
_POLICY = re.compile(r"(?<![\w.-])(?:p|policy)=(none|quarantine|reject)(?![\w-])", re.IGNORECASE)
# What a reader may drop: controls, white space, octets that are not UTF-8.
_IGNORED = re.compile(r"[\x00-\x20\x7f\ufffd]")


def forged_results(message: Message, authserv_id: str) -> list[int]:
    """Which Authentication-Results fields claim our authserv-id (RFC 8601, 5).

    The numbers count fields of that name from 1 at the top, as a milter's chgheader does. They
    come in descending order: deleting one shifts those below it.
    """
    fields = message.fields(NAME)
    found = [index for index, field in enumerate(fields, 1) if claims(field, authserv_id)]
    return found[::-1]


def claims(field: HeaderField, authserv_id: str) -> bool:
    """Whether the field carries our authserv-id, in whatever way it is written.

    Case, quotes, folds, comments, a version and a broken rest make no difference, nor does
    anything that a careless reader may pass over.
    """
    return _normal(_authserv_id(field)) == _normal(authserv_id)


def _authserv_id(field: HeaderField) -> str:
    text = field.unfolded.decode("utf-8", "replace")
    position = _skip_comments(text)
    if text[position : position + 1] == '"':
        return _quoted(text, position + 1)
    end = _TOKEN_END.search(text, position)
    return text[position : end.start() if end else len(text)]


def _skip_comments(text: str) -> int:
    """Where the first thing begins that is no white space, comment, or stray colon.

    Postfix shows the value of "Name : value" with a colon in front.
    """
    depth = position = 0
    while position < len(text):
        letter = text[position]
        if letter == "(":
            depth += 1
        elif letter == ")" and depth:
            depth -= 1
        elif letter == "\\" and depth:
            position += 1
        elif not depth and letter != ":" and not letter.isspace() and not _IGNORED.match(letter):
            return position
        position += 1
    return position


def _quoted(text: str, position: int) -> str:
    letters = []
    while position < len(text) and text[position] != '"':
        if text[position] == "\\":
            position += 1
        letters.append(text[position : position + 1])
        position += 1
    return "".join(letters)


def _normal(text: str) -> str:
    """For comparing: without what a reader may drop, no dot at the end, A-labels, lower case."""
    plain = _IGNORED.sub("", text).rstrip(".").lower()
    if plain.isascii():
        return plain
    try:
        return idna.encode(plain[:253], uts46=True).decode("ascii")
    except idna.IDNAError:
        return plain


def trusted_results(message: Message, authserv_id: str, client_ip: str = "") -> Results:
    """The results in the fields that carry our authserv-id, and in no others.

    Never raises. Fields that are too long count as absent, as do results that are malformed or too
    deeply nested; of several for SPF, DMARC or ARC the topmost field's counts: it was added last.
    """
    ours = [field for field in message.fields(NAME) if claims(field, authserv_id)]
    fields = [_parse(field) for field in ours[:MAX_FIELDS]]
    found = [result for results in fields for result in results]
    spf = [each for each in map(_spf, found) if each]
    arc = [each for each in (_arc(result, message) for result in found) if each]
    dmarc = [each for each in map(_dmarc_of, fields) if each]
    return Results(
        spf=spf[0] if spf else None,
        dkim=tuple(each for each in map(_dkim, found) if each),
        arc=arc[0] if arc else None,
        dmarc=dmarc[0] if dmarc else None,
        client_ip=client_ip,
    )


def _parse(field: HeaderField) -> list[AuthenticationResult]:
    """The results in a field; one that cannot be read takes none of the others with it.

    They say what a sender wrote, who must not be able to hide a verdict by it.
    """
    text = to_ascii(b" ".join(field.unfolded.split()).decode("utf-8", "replace"))
    if len(text) > MAX_FIELD:
        return []
    found = _read(text)
    if found is not None:
        return found
    identifier, *results = split_results(text)
    return [each for one in results for each in _read(f"{identifier};{one}") or ()]


def _read(text: str) -> list[AuthenticationResult] | None:
    """What authres reads in the value of a field, None when it does not read it."""
    if _nesting(text) > MAX_NESTING:
        return None
    try:
        parsed = all_features().parse_value(quote_addresses(text)).results
        # "none" (RFC 8601, 2.2: no-result) is read as a result without a method.
        found = [each for each in parsed if isinstance(each, AuthenticationResult)]
    except (AuthResError, AttributeError, TypeError, ValueError):
        # authres raises more than its own errors on malformed fields.
        return None
    _add_comments(found, text)
    return found


def _add_comments(found: list[AuthenticationResult], text: str) -> None:
    """Give the DMARC results the comments that authres drops."""
    noted = [each.comment for each in read_results(text) if each.method == "dmarc"]
    results = [each for each in found if each.method == "dmarc"]
    for result, comment in zip(results, noted, strict=False):
        result.result_comment = comment


def _nesting(text: str) -> int:
    """Parentheses open at once, at most, whatever they stand in: rather too many than too few."""
    depth = deepest = 0
    for letter in text:
        if letter == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif letter == ")":
            depth = max(depth - 1, 0)
    return deepest


def _verdict(result: AuthenticationResult, method: str) -> Verdict | None:
    if result.method != method:
        return None
    try:
        return Verdict(result.result)
    except ValueError:
        return None  # RFC 8601, 2.7.7: results that are not known are left aside


def _property(result: AuthenticationResult, kind: str, name: str) -> str:
    for each in result.properties:
        if (each.type, each.name) == (kind, name):
            return str(each.value or "")
    return ""


def _domain(text: str) -> str:
    return to_a_label(text.rpartition("@")[2]) or ""


def _spf(result: AuthenticationResult) -> SpfResult | None:
    verdict = _verdict(result, "spf")
    if verdict is None:
        return None
    sender = _domain(_property(result, "smtp", "mailfrom"))
    if sender:
        return SpfResult(verdict, sender)
    return SpfResult(verdict, _domain(_property(result, "smtp", "helo")), Identity.HELO)


def _dkim(result: AuthenticationResult) -> DkimResult | None:
    verdict = _verdict(result, "dkim")
    if verdict is None:
        return None
    domain = _property(result, "header", "d") or _property(result, "header", "i")
    return DkimResult(
        verdict,
        _domain(domain),
        _domain(_property(result, "header", "s")),
        _token(_property(result, "header", "a")),
        _token(_property(result, "header", "b")),
    )


def _token(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9+/=_-]{1,40}", text) else ""


def _arc(result: AuthenticationResult, message: Message) -> ArcResult | None:
    verdict = _verdict(result, "arc")
    if verdict is None:
        return None
    # The field says that the chain is good; who sealed it stands in the chain itself.
    return ArcResult(verdict, named_sets(message) if verdict is Verdict.PASS else ())


def _commented_policy(result: AuthenticationResult) -> str:
    """The policy as OpenDMARC ("p=reject dis=none") and rspamd ("policy=reject") tell it."""
    match = _POLICY.search(result.result_comment or "")
    return match[1].lower() if match else ""


def _dmarc_of(results: Sequence[AuthenticationResult]) -> DmarcResult | None:
    """The DMARC result of a field; of several one that is no pass.

    There is one in earnest. Another may be by the sender, whose address was copied into a comment,
    which it closes.
    """
    found = [each for each in map(_dmarc, results) if each]
    found.sort(key=lambda each: each.verdict is Verdict.PASS)
    return found[0] if found else None


def _dmarc(result: AuthenticationResult) -> DmarcResult | None:
    verdict = _verdict(result, "dmarc")
    if verdict is None:
        return None
    policy = _property(result, "policy", "dmarc") or _commented_policy(result)
    return DmarcResult(
        verdict,
        _domain(_property(result, "header", "from")),
        policy if policy in {"none", "quarantine", "reject"} else "",
    )
