"""What all sessions of a process share."""

from dataclasses import dataclass, field

import structlog

from aliasmilter.config import LimitsSection
from aliasmilter.forwarding.decider import Decider
from aliasmilter.forwarding.outbound import Outbound
from aliasmilter.forwarding.trace import Tracer
from aliasmilter.mta.harvest import Harvest
from aliasmilter.mta.misses import Misses
from aliasmilter.mta.reinject import Reinjector
from aliasmilter.mta.submission import Submission
from aliasmilter.mta.throttle import Throttle
from aliasmilter.mta.vendors import Vendors
from aliasmilter.store.journal import Journal


@dataclass(frozen=True, slots=True)
class Service:
    """The parts that a session works with.

    Attributes:
        hostname: of this mail system.
        decider: where recipients go.
        tracer: stamps messages that an alias rewrites.
        srs_domain: of SRS senders, where a domain sets none.
        max_received: more Received fields than that are a loop.
        logger: takes one line a message, and one a refused recipient.
        outbound: examines and seals what leaves; None when neither is wanted.
        examiner: says what is true of a message, also when nothing that leaves asks for it.
        journal: takes what is counted; None: nothing is.
        vendors: watches over addresses that were given to vendors; needs `examiner`.
        harvest: tells clients that guess addresses; None: nobody is counted.
        misses: takes note of addresses without a rule of their own; None: of none.
        submission: what holds for sessions that have logged in; None: nothing of the kind.
        reinjector: submits the copies that need another handling; None: one handling a message.
        limits: what a client or a message may ask for.
        throttle: counts mail to return addresses that is no bounce; None: no limit.
    """

    hostname: str
    decider: Decider
    tracer: Tracer
    srs_domain: str
    max_received: int
    logger: structlog.typing.FilteringBoundLogger
    outbound: Outbound | None = None
    examiner: Outbound | None = None
    journal: Journal | None = None
    vendors: Vendors | None = None
    harvest: Harvest | None = None
    misses: Misses | None = None
    submission: Submission | None = None
    reinjector: Reinjector | None = None
    limits: LimitsSection = field(default_factory=LimitsSection)
    throttle: Throttle | None = None
