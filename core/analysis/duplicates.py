"""Near-duplicate detection: equal and nearly equal rows, by digests and MinHash signatures.

Two rows are equal if their words are, regardless of case and whitespace. They are near duplicates if the Jaccard
similarity of their word trigrams is about 5/6 or more. This is estimated by one-permutation min-hashing (Li, Owen,
Zhang: "One Permutation Hashing", NIPS 2012): the hashes of all trigrams are divided into equal ranges (bins), the least
hash of each is kept, and rows that agree in a band of bins are compared in all of them. An empty bin takes the value of
the next one.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from operator import eq
from zlib import crc32

from core.data.conversation import Example

#: Bins of a signature, and bins of a band. Two rows are compared if they agree in all bins of a band.
RANGES = 24
BAND = 3
#: Bins that must agree for two rows to be near duplicates.
AGREEING = 20
#: Bytes of a digest, and of a signature.
KEY_BYTES, SIGNATURE_BYTES = 8, 4 * RANGES

#: Rows with fewer word trigrams are compared only by digest.
_LEAST_RUNS = 12
_MOST_WORDS = 4096
_LEAST = -(1 << 63)
_BOUNDS = [_LEAST + (number << 64) // RANGES for number in range(RANGES)]
#: Most rows per band that a row is compared with when groups are made.
_COMPARED = 8
#: Signature of a row that is too short for one.
NO_SIGNATURE = bytes(SIGNATURE_BYTES)


def normalized(example: Example) -> str:
    """Text of a row for comparison: case folded, words separated by single spaces, without roles."""
    turns = (*example.messages, *example.chosen, *example.rejected)
    if not turns:
        return " ".join(example.text.casefold().split())
    parts = [f"{turn.content} {turn.reasoning}" if turn.reasoning else turn.content for turn in turns]
    parts += [str(call) for turn in turns for call in turn.tool_calls]
    return " ".join("\n".join(parts).casefold().split())


def digest(example: Example, text: str) -> bytes:
    """Digest of a row's normalized text, the same for equal rows.

    Args:
        example: The row.
        text: Its :func:`normalized` text.
    """
    if example.ids is not None:
        return hashlib.blake2b(memoryview(example.ids), digest_size=KEY_BYTES).digest()
    label = "" if example.label is None else str(example.label)
    return hashlib.blake2b(f"{label}\0{text}".encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def signature(example: Example, text: str) -> bytes:
    """MinHash signature of a row, the least hash of each bin; :data:`NO_SIGNATURE` for rows too short to compare.

    System messages are left out: instructions that many rows share do not make them near duplicates.
    """
    if example.messages and example.messages[0].role == "system":
        text = normalized(Example(messages=example.messages[1:], chosen=example.chosen, rejected=example.rejected))
    units: Sequence[int]
    if example.ids is not None:
        units = example.ids[:_MOST_WORDS]
    else:
        words = text.encode("utf-8", "surrogatepass").split()
        if len(text) > 16 * len(words):
            # A script without spaces between words: count characters instead.
            units = list(map(ord, text[:_MOST_WORDS]))
        else:
            units = list(map(crc32, words[:_MOST_WORDS]))
    runs = set(map(hash, zip(units, units[1:], units[2:], strict=False)))
    if len(runs) < _LEAST_RUNS:
        return NO_SIGNATURE
    ordered = sorted(runs)
    ordered.append(ordered[0])
    return array("I", [ordered[bisect_left(ordered, bound, 0, len(runs))] & 0xFFFFFFFF for bound in _BOUNDS]).tobytes()


class Fingerprints:
    """Digests and signatures of many rows, packed."""

    def __init__(self) -> None:
        self.numbers = array("I")
        """Number of each row."""
        self._keys = bytearray()
        self._signatures = bytearray()

    def __len__(self) -> int:
        return len(self.numbers)

    def extend(self, numbers: Sequence[int], keys: bytes | bytearray, signatures: bytes | bytearray) -> None:
        """Add rows with their digests and signatures."""
        self.numbers.extend(numbers)
        self._keys += keys
        self._signatures += signatures

    def add(self, number: int, example: Example) -> None:
        """Add one row."""
        text = normalized(example)
        self.extend((number,), digest(example, text), signature(example, text))

    def at(self, places: Sequence[int]) -> Fingerprints:
        """The fingerprints of the rows at these positions."""
        found = Fingerprints()
        for place in places:
            key, start = place * KEY_BYTES, place * SIGNATURE_BYTES
            found.extend(
                (self.numbers[place],),
                self._keys[key : key + KEY_BYTES],
                self._signatures[start : start + SIGNATURE_BYTES],
            )
        return found

    def keys(self) -> Iterator[bytes]:
        """The digests in order."""
        keys = bytes(self._keys)
        return (keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES))

    def bands(self, number: int) -> Iterator[bytes]:
        """Band ``number`` of each signature."""
        size = 4 * BAND
        signatures, start = self._signatures, number * size
        return (bytes(signatures[at : at + size]) for at in range(start, len(signatures), SIGNATURE_BYTES))

    def signature(self, place: int) -> memoryview:
        """Signature of the row at a position."""
        at = place * SIGNATURE_BYTES
        return memoryview(self._signatures)[at : at + SIGNATURE_BYTES].cast("I")

    def has_signature(self, place: int) -> bool:
        """True if a row is long enough for a signature."""
        at = place * SIGNATURE_BYTES
        return self._signatures[at : at + SIGNATURE_BYTES] != NO_SIGNATURE


def find_same(rows: Fingerprints) -> dict[int, int]:
    """Positions of rows equal to an earlier row, each mapped to the first of them."""
    first: dict[bytes, int] = {}
    found = {}
    for place, key in enumerate(rows.keys()):
        earlier = first.setdefault(key, place)
        if earlier != place:
            found[place] = earlier
    return found


def find_near(rows: Fingerprints, same: dict[int, int]) -> dict[int, int]:
    """Positions of near duplicates of an earlier row, each mapped to that row; equal rows (``same``) are excluded."""
    found: dict[int, int] = {}
    for number in range(RANGES // BAND):
        first: dict[bytes, int] = {}
        for place, band in enumerate(rows.bands(number)):
            if place in same or place in found or not rows.has_signature(place):
                continue
            earlier = first.setdefault(band, place)
            if earlier != place and alike(rows.signature(earlier), rows.signature(place)):
                found[place] = earlier
    return found


def group_keys(rows: Fingerprints) -> list[bytes]:
    """Group key of each row: the least digest of its group.

    A group holds equal rows and near duplicates, transitively. In a band that many rows share, each row is compared
    with the first and the last few.
    """
    keys = list(rows.keys())
    parents = array("I", range(len(rows)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    def join(one: int, other: int) -> None:
        first, second = root(one), root(other)
        # By digest, so the key of a group does not depend on the order of rows.
        parents[max(first, second, key=keys.__getitem__)] = min(first, second, key=keys.__getitem__)

    same = find_same(rows)
    for place, earlier in same.items():
        parents[place] = earlier
    for number in range(RANGES // BAND):
        first: dict[bytes, int] = {}
        further: dict[bytes, list[int]] = {}
        for place, band in enumerate(rows.bands(number)):
            if place in same or not rows.has_signature(place):
                continue
            before = first.setdefault(band, place)
            if before == place:
                continue
            others, own = further.setdefault(band, []), rows.signature(place)
            for other in (before, *others):
                if root(other) != root(place) and alike(rows.signature(other), own):
                    join(other, place)
            others.append(place)
            if len(others) > _COMPARED:
                del others[0]
    return [keys[root(place)] for place in range(len(rows))]


def find_shared(rows: Fingerprints, others: Fingerprints) -> tuple[dict[int, int], dict[int, int]]:
    """Rows that are also in another set.

    Returns:
        Positions in ``rows`` mapped to positions in ``others``: one table for equal rows, one for near duplicates.
    """
    known = {key: place for place, key in enumerate(others.keys())}
    same = {place: known[key] for place, key in enumerate(rows.keys()) if key in known}
    near: dict[int, int] = {}
    for number in range(RANGES // BAND):
        bands = {band: place for place, band in enumerate(others.bands(number)) if others.has_signature(place)}
        for place, band in enumerate(rows.bands(number)):
            other = bands.get(band)
            if other is None or place in same or place in near:
                continue
            if alike(rows.signature(place), others.signature(other)):
                near[place] = other
    return same, near


def alike(one: memoryview, other: memoryview) -> bool:
    """True if two signatures agree in enough bins."""
    return one == other or sum(map(eq, one.tolist(), other.tolist())) >= AGREEING
