"""The whole scene: Redis, the daemon, Postfix or Sendmail, and the world around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.harness import smtp
from tests.harness.daemon import SRS_DOMAIN, Config, Daemon
from tests.harness.ports import reserved_port
from tests.harness.postfix import Postfix, require_postfix
from tests.harness.redis import RedisServer
from tests.harness.sendmail import Sendmail
from tests.harness.wait import LabError
from tests.harness.world import World

MtaName = Literal["postfix", "sendmail"]

# Domains that the MTA takes mail for; those outside are bank.example, gmail.example, and so on.
RELAY_DOMAINS = ("example.com", "example.net", "example.org", "old.example", "new.example",
                 "second.example")  # fmt: skip


class Lab:
    """Redis, World, Daemon and an MTA, wired together, as a context manager.

    Args:
        config: the daemon's settings by section, on top of the defaults.
        mta: which MTA.
        reinject: give it a listener without milters, and the daemon its address.
        relay_domains: what it takes mail for.
        srs_domains: SRS domains that it routes back through the milter.
        before: milters before the daemon.
        after: milters after it.
        main: of Postfix: lines of main.cf, on top of the defaults.
        master: of Postfix: further text of master.cf.
        mc: of Sendmail: further lines of sendmail.mc, above MAILER.
        replace: of Sendmail: text of docs/sendmail.md to be replaced.
        inet: the daemon listens on a TCP port.
        secrets: the daemon's SRS secrets.
        files: further files in the daemon's folder.
    """

    redis: RedisServer
    world: World
    daemon: Daemon
    mta: Postfix | Sendmail

    def __init__(
        self,
        config: Config | None = None,
        *,
        mta: MtaName = "postfix",
        reinject: bool = False,
        relay_domains: Sequence[str] = RELAY_DOMAINS,
        srs_domains: Sequence[str] = (SRS_DOMAIN,),
        before: Sequence[str] = (),
        after: Sequence[str] = (),
        main: Mapping[str, str | None] | None = None,
        master: str = "",
        mc: str = "",
        replace: Mapping[str, str] | None = None,
        inet: bool = False,
        secrets: Sequence[str] = ("a secret of the tests",),
        files: Mapping[str, str] | None = None,
    ) -> None:
        self.config = dict(config or {})
        self.mta_name = mta
        self.reinject = reinject
        self.relay_domains = relay_domains
        self.srs_domains = srs_domains
        self.before = before
        self.after = after
        self.main = main
        self.master = master
        self.mc = mc
        self.replace = replace
        self.inet = inet
        self.secrets = secrets
        self.files = files
        # A test that makes the daemon fail in an unforeseen way sets this.
        self.traceback_expected = False

    def __enter__(self) -> Self:
        if self.mta_name == "postfix":
            require_postfix()
        with ExitStack() as stack:
            reinject_port = None
            if self.reinject:
                reinject_port = stack.enter_context(reserved_port())
                server = {"server": f"127.0.0.1:{reinject_port}"}
                self.config["reinject"] = {**server, **self.config.get("reinject", {})}
            self.redis = stack.enter_context(RedisServer())
            self.world = stack.enter_context(World())
            self.daemon = stack.enter_context(self.make_daemon())
            self.mta = self.make_mta(reinject_port)
            stack.enter_context(self.mta)
            self._stack = stack.pop_all()
        return self

    def make_daemon(self) -> Daemon:
        """The daemon, not started yet; Redis and the world are up."""
        return Daemon(
            self.redis.url, self.config, secrets=self.secrets, inet=self.inet, files=self.files
        )

    def make_mta(self, reinject_port: int | None) -> Postfix | Sendmail:
        """The MTA, not started yet; all others are up."""
        if self.mta_name == "postfix":
            return self.make_postfix(reinject_port)
        return Sendmail(
            milters=[*self.before, self.daemon.endpoint, *self.after],
            next_hop=self.world.port,
            relay_domains=self.relay_domains,
            reinject_port=reinject_port,
            srs_domains=self.srs_domains,
            mc=self.mc,
            replace=self.replace,
        )

    @property
    def postfix(self) -> Postfix:
        """The MTA, for tests of what only Postfix has."""
        if not isinstance(self.mta, Postfix):
            raise LabError("the MTA of this lab is not Postfix")
        return self.mta

    @property
    def sendmail(self) -> Sendmail:
        """The MTA, for tests of what only Sendmail has."""
        if not isinstance(self.mta, Sendmail):
            raise LabError("the MTA of this lab is not Sendmail")
        return self.mta

    def make_postfix(self, reinject_port: int | None) -> Postfix:
        """Postfix, not started yet; all others are up."""
        return Postfix(
            milters=[*self.before, self.daemon.endpoint, *self.after],
            next_hop=self.world.port,
            relay_domains=self.relay_domains,
            reinject_port=reinject_port,
            srs_domains=self.srs_domains,
            main=self.main,
            master=self.master,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def rules(self, *lines: str) -> None:
        """Give redis-cli these lines. Raises LabError when Redis refuses one."""
        self.redis.cli(stdin="".join(f"{line}\n" for line in lines))

    def load(self, path: Path | str) -> None:
        """Give redis-cli this file."""
        self.redis.load(path)

    def send(
        self,
        sender: str,
        *recipients: str,
        content: bytes | None = None,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        xclient: Mapping[str, str] | None = None,
    ) -> smtp.Outcome:
        """Send a message to the MTA as a client outside; see `smtp.send`."""
        if isinstance(self.mta, Sendmail):
            self.mta.pretend_client((xclient or smtp.OUTSIDE)["ADDR"])
            xclient = {}
        return smtp.send(
            self.mta.port,
            sender,
            recipients,
            content,
            mail_options=mail_options,
            rcpt_options=rcpt_options,
            xclient=xclient,
        )

    def settle(self, timeout: float = 15.0) -> None:
        """Wait until the MTA has nothing left to do: then what did not arrive never will."""
        self.mta.wait_until_empty(timeout)

    def reset(self) -> None:
        """No rules, no mail, no refusals: as new, for the next test."""
        self.mta.purge()
        self.redis.flush()
        self.world.reset()
