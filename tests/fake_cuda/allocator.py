"""Replay of allocations by the caching allocator of torch (c10/cuda/CUDACachingAllocator.cpp), without a device."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

MIB = 1 << 20
#: Sizes are multiples of the smallest block; up to ``SMALL`` they come from a pool of their own.
SMALLEST, SMALL = 512, MIB
#: Segments of small blocks, of blocks below ``MIDDLE``, and the multiple of larger ones.
SMALL_SEGMENT, MIDDLE, MIDDLE_SEGMENT, MULTIPLE = 2 * MIB, 10 * MIB, 20 * MIB, 2 * MIB
#: Precision of the smallest limit.
STEP = 16 * MIB
#: Segments are so far apart that none touches another.
_APART = 1 << 45

#: Allocations and frees in order: the number of the storage, and its bytes, negative for a free.
Events = Sequence[tuple[int, int]]


@dataclass
class _Pool:
    """Free blocks of one kind: by size, and by both of their ends within a segment."""

    by_size: list[tuple[int, int]] = field(default_factory=list)
    begins: dict[int, int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)

    def add(self, address: int, size: int) -> None:
        bisect.insort(self.by_size, (size, address))
        self.begins[address] = self.ends[address + size] = size

    def take(self, address: int, size: int) -> None:
        self.by_size.pop(bisect.bisect_left(self.by_size, (size, address)))
        del self.begins[address], self.ends[address + size]

    def smallest_of(self, size: int) -> tuple[int, int] | None:
        """Address and size of the smallest block that is large enough."""
        place = bisect.bisect_left(self.by_size, (size, -1))
        return None if place == len(self.by_size) else self.by_size[place][::-1]


class CachingAllocator:
    """The allocator of one stream.

    Args:
        expandable: Segments grow at their end, as with ``expandable_segments:True``.
        limit: Bytes that it may reserve; whole free segments are given back before it fails.
    """

    def __init__(self, *, expandable: bool, limit: int | None = None) -> None:
        self._expandable, self._limit = expandable, limit
        self._pools = {True: _Pool(), False: _Pool()}
        self._used: dict[int, tuple[int, int, bool]] = {}
        self._segments: dict[int, int] = {}
        self._grown = {True: _APART, False: 2 * _APART}
        self.reserved = self.allocated = self.peak_reserved = self.peak_allocated = 0

    def allocate(self, number: int, size: int) -> None:
        """Allocate a block.

        Args:
            number: Its name.
            size: Its bytes.

        Raises:
            MemoryError: If the limit does not suffice.
        """
        size = max(SMALLEST, -(-size // SMALLEST) * SMALLEST)
        small = size <= SMALL
        pool = self._pools[small]
        block = pool.smallest_of(size)
        if block is not None:
            pool.take(*block)
        else:
            block = self._grow(small, size) if self._expandable else self._reserve(small, size)
        address, found = block
        rest = found - size
        if rest >= SMALLEST and (small or self._expandable or rest > SMALL):
            pool.add(address + size, rest)
            found = size
        self._used[number] = address, found, small
        self.allocated += found
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def free(self, number: int) -> None:
        """Free a block, and merge it with its free neighbors.

        Args:
            number: Its name.
        """
        address, size, small = self._used.pop(number)
        self.allocated -= size
        pool = self._pools[small]
        if (before := pool.ends.get(address)) is not None:
            pool.take(address - before, before)
            address, size = address - before, size + before
        if (after := pool.begins.get(address + size)) is not None:
            pool.take(address + size, after)
            size += after
        pool.add(address, size)

    def _reserve(self, small: bool, size: int) -> tuple[int, int]:
        needed = SMALL_SEGMENT if small else MIDDLE_SEGMENT if size < MIDDLE else -(-size // MULTIPLE) * MULTIPLE
        if self._limit is not None and self.reserved + needed > self._limit:
            self._give_back()
            if self.reserved + needed > self._limit:
                raise MemoryError(f"{needed} bytes beside {self.reserved}")
        address = _APART * (len(self._segments) + 1)
        self._segments[address] = needed
        self.reserved += needed
        return address, needed

    def _grow(self, small: bool, size: int) -> tuple[int, int]:
        pool, end, page = self._pools[small], self._grown[small], SMALL_SEGMENT if small else MIDDLE_SEGMENT
        last = pool.ends.get(end, 0)
        if last:
            pool.take(end - last, last)
        more = -(-(size - last) // page) * page
        self._grown[small] += more
        self.reserved += more
        return end - last, last + more

    def _give_back(self) -> None:
        for pool in self._pools.values():
            for address, size in list(pool.begins.items()):
                if self._segments.get(address) == size:
                    pool.take(address, size)
                    self.reserved -= size


def replay(events: Events, *, expandable: bool, limit: int | None = None) -> CachingAllocator:
    """Replay allocations and frees; a free of what was allocated before them is left out.

    Args:
        events: In order.
        expandable: As for :class:`CachingAllocator`.
        limit: The same.

    Raises:
        MemoryError: If the limit does not suffice.
    """
    made, known = CachingAllocator(expandable=expandable, limit=limit), set[int]()
    for number, size in events:
        if size > 0:
            known.add(number)
            made.allocate(number, size)
        elif number in known:
            known.remove(number)
            made.free(number)
    return made


def least(events: Events) -> int:
    """The smallest limit, to :data:`STEP`, under which fixed segments suffice."""
    free = replay(events, expandable=False)
    low, high = free.peak_allocated, free.peak_reserved
    while high - low > STEP:
        middle = (low + high) // 2
        try:
            replay(events, expandable=False, limit=middle)
            high = middle
        except MemoryError:
            low = middle
    return high


def reserved(events: Events) -> dict[str, int]:
    """Bytes of the peak: ``allocated``, and reserved with ``expandable`` and ``fixed`` segments, the latter as few as
    suffice."""
    expandable = replay(events, expandable=True)
    return {
        "allocated": replay(events, expandable=False).peak_allocated,
        "expandable": expandable.peak_reserved,
        "fixed": least(events),
    }
