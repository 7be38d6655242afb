"""Near duplicates, and the training split: the usable rows held out, and how often each other row is trained on.

The worker and the analysis share it, so the counts shown before a run match the run.

Two rows are equal if their words are, regardless of case and whitespace. They are near duplicates if the Jaccard
similarity of their word trigrams is about 5/6 or more. This is estimated by one-permutation min-hashing (Li, Owen,
Zhang: "One Permutation Hashing", NIPS 2012): the hashes of all trigrams are divided into equal ranges (bins), the least
hash of each bin is kept, and rows that agree in a band of bins are compared in all bins. An empty bin takes the value
of the next bin.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import eq
from zlib import crc32

from core.data.conversation import Example

#: Reasons for not training on a row that has no defect: held out for evaluation, left out by ``data.weights``.
HELD_OUT, NOT_SAMPLED = "held_out", "not_sampled"

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


def held_out_rows(keys: Sequence[bytes], share: float, seed: int) -> set[int]:
    """Choose the rows to hold out of training.

    Rows with the same key stay together, so no copy of a held-out row is trained on. Groups are taken in a random order
    fixed by the seed, each if it fits, until the share is reached; at least one group is held out and at least one is
    left.

    Args:
        keys: Key of each row; equal for equal rows.
        share: Share of the rows, from 0 to 1.
        seed: Seed of the order.

    Returns:
        Positions of the held-out rows; empty if the share is 0 or all rows are equal.
    """
    groups: dict[bytes, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    if share <= 0 or len(groups) < 2:
        return set()
    wanted = held_out_count(len(keys), share)
    ordered = sorted(groups, key=lambda key: _rank(key, seed))
    chosen: set[int] = set()
    for key in ordered:
        if len(chosen) + len(groups[key]) <= wanted:
            chosen.update(groups[key])
    return chosen or set(groups[min(ordered, key=lambda key: len(groups[key]))])


def held_out_count(rows: int, share: float) -> int:
    """Number of rows held out, if no two rows are alike."""
    return max(round(share * rows), 1) if share > 0 and rows > 1 else 0


def repeats(keys: Sequence[bytes], weight: float, seed: int) -> list[int]:
    """Number of times that each row of a file is used in an epoch.

    The integer part of the weight applies to every row, its fraction to that share of the rows, chosen by the seed. 0.5
    uses half of the rows once, 2 all rows twice, 1.5 all rows once and half of them again.

    Args:
        keys: Key of each row.
        weight: The weight, above 0.
        seed: Seed of the choice of rows for the fraction.
    """
    whole = int(weight)
    extra = round((weight - whole) * len(keys))
    if not whole and not extra:
        # A small weight on a small file still uses at least one row.
        extra = min(len(keys), 1)
    ranked = sorted(range(len(keys)), key=lambda position: (_rank(keys[position], seed), position))
    counts = [whole] * len(keys)
    for position in ranked[:extra]:
        counts[position] += 1
    return counts


def _rank(key: bytes, seed: int) -> bytes:
    return hashlib.blake2b(key, digest_size=16, key=seed.to_bytes(8, "little")).digest()


#: Smallest acceptable ratio of held-out rows to the requested share (or its inverse) with near duplicates kept on one
#: side; below it, only equal rows are kept together.
_LEAST_PART = 0.5


@dataclass(frozen=True)
class Division:
    """Rows held out, and repetitions of the rows trained on.

    Args:
        held_out: Positions of the rows held out.
        counts: Times that each row is trained on in an epoch.
        crosses: True if near duplicates may be on both sides; equal rows never are.
    """

    held_out: set[int]
    counts: list[int]
    crosses: bool = False


def divide_rows(
    rows: Fingerprints, bounds: Sequence[int], weights: Sequence[float], share: float, seed: int
) -> Division:
    """Split rows into held-out rows and rows trained on, repeated by weight.

    Near duplicates stay on one side. If that leaves too few rows to hold out (one long question asked about many
    subjects, for example), only equal rows stay together.

    Args:
        rows: The usable rows.
        bounds: First row of each entry of ``data.train``, then the number of rows.
        weights: Weight of each entry; see :func:`~core.analysis.division.repeats`.
        share: Share of the rows to hold out; see :func:`~core.analysis.division.held_out_rows`.
        seed: Seed of the choice of rows.
    """
    keys = list(rows.keys())
    kept_out: set[int] = set()
    crosses = False
    if share > 0:
        groups, wanted = group_keys(rows), share * len(keys)
        kept_out = held_out_rows(groups, share, seed)
        if not _LEAST_PART * wanted <= len(kept_out) <= max(wanted / _LEAST_PART, 1):
            kept_out = held_out_rows(keys, share, seed)
            inside = {groups[position] for position in kept_out}
            crosses = any(group in inside for position, group in enumerate(groups) if position not in kept_out)
    counts: list[int] = []
    for start, end, weight in zip(bounds, bounds[1:], weights, strict=False):
        own = [position for position in range(start, end) if position not in kept_out]
        times = dict(zip(own, repeats([keys[position] for position in own], weight, seed), strict=True))
        counts += [times.get(position, 0) for position in range(start, end)]
    return Division(kept_out, counts, crosses)
