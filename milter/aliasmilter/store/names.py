"""The names of a large domain, in a few octets each.

A Bloom filter: what it does not hold is surely not there; of what is not there it takes a few in
a thousand for something that may be. That is the way round that matters here: a name that may be
there is asked for.
"""

from collections.abc import Iterable

_BITS = 16  # of memory for a name, at least: with that, one in two hundred is taken for a name


class Names:
    """A set of names that only grows.

    Args:
        expected: how many there will be; with more of them it is wrong more often.
    """

    def __init__(self, expected: int) -> None:
        size = 1 << (max(expected * _BITS, 8) - 1).bit_length()
        self._bits = bytearray(size // 8)
        self._mask = size - 1

    @property
    def octets(self) -> int:
        """What it takes in memory."""
        return len(self._bits)

    def update(self, names: Iterable[bytes]) -> None:
        """Add them."""
        bits, mask = self._bits, self._mask
        for name in names:
            for number in _numbers(name):
                bits[(number & mask) >> 3] |= 1 << (number & 7)

    def may_hold(self, name: bytes) -> bool:
        """False: it was not added. True: most likely it was."""
        bits, mask = self._bits, self._mask
        return all(bits[(number & mask) >> 3] & 1 << (number & 7) for number in _numbers(name))


def _numbers(name: bytes) -> tuple[int, int, int]:
    """What tells the bits of a name."""
    # Python's hash of octets is keyed by chance: nobody can guess what looks alike.
    digest = hash(name)
    step = digest >> 32 | 1
    return digest, digest + step, digest + 2 * step
