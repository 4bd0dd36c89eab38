"""From a `[store] url` to the servers that answer."""

from aliasmilter import redisurl
from aliasmilter.redisurl import Kind
from aliasmilter.store.cluster import Cluster
from aliasmilter.store.link import INFO, Door
from aliasmilter.store.sentinel import Master, Sentinels
from aliasmilter.store.servers import Pool, Servers, Single


def connect(url: str, *, identified: bool = False) -> Servers:
    """The servers that a URL names; nothing is opened before it is needed.

    Args:
        url: see redisurl.
        identified: find out which server process answers.

    Raises:
        ValueError: it is no such URL, or a certificate that it names cannot be used.
    """
    target = redisurl.parse(url)
    tls = target.tls.context() if target.tls else None
    door = Door(target.login, target.db, tls, (INFO,) if identified else ())
    if target.kind is Kind.CLUSTER:
        return Cluster(target.endpoints, door)
    if target.kind is Kind.SENTINEL:
        at_sentinels = Door(target.sentinel_login, tls=tls)
        return Master(Sentinels(target.endpoints, target.master, at_sentinels), door)
    return Single(Pool(target.endpoints[0], door))
