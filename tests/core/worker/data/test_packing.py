from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.worker.data.encode import TokenizedRow
from core.worker.data.packing import LaidOut, choose_layout, common_beginning
from core.worker.fused.attention import Group
from tests.cases import cases

CPU = torch.device("cpu")
Row = tuple[list[int], int]


def padded(rows: list[Row]) -> tuple[Any, Any]:
    """Rows of tokens, learned from a place on, padded to eight."""
    width = -(-max(len(ids) for ids, _ in rows) // 8) * 8
    ids = np.zeros((len(rows), width), dtype=np.int64)
    supervised = np.zeros((len(rows), width), dtype=np.bool_)
    for place, (tokens, first) in enumerate(rows):
        ids[place, : len(tokens)] = tokens
        supervised[place, first : len(tokens)] = True
    return ids, supervised


def seen_by(laid: LaidOut) -> list[list[int]]:
    """For each place of the sequence, the places that it sees, itself last."""
    found: list[list[int]] = []
    at = 0
    for group in laid.layout.groups:
        prefix = list(range(at, at + group.prefix))
        found += [prefix[: place + 1] for place in range(group.prefix)]
        at += group.prefix
        for _ in range(group.rows):
            found += [prefix + list(range(at, at + place + 1)) for place in range(group.width)]
            at += group.width
    return found


#: Rows that begin alike for some tokens.
rows_strategy = st.lists(
    st.builds(
        lambda shared, own, first: ([*range(20, 20 + shared), *own], 1 + first % (shared + len(own) - 1)),
        st.integers(0, 12),
        st.lists(st.integers(1, 3), min_size=2, max_size=20),
        st.integers(1, 100),
    ),
    min_size=1,
    max_size=6,
)


@given(rows_strategy, st.booleans(), st.booleans())
def test_supervised_tokens_are_predicted_from_what_precedes_in_their_row(
    rows: list[Row], share: bool, pack: bool
) -> None:
    ids, supervised = padded(rows)
    laid = choose_layout(ids, supervised, CPU, most_shared=None if share else 0, pack=pack)
    if laid is None:
        assert not pack
        return
    sequence, places, seen = laid.input_ids[0].tolist(), laid.position_ids[0].tolist(), seen_by(laid)
    assert len(sequence) == len(places) == len(seen) == sum(group.tokens for group in laid.layout.groups)
    before = iter(laid.predicting_positions.tolist())
    for tokens, first in rows:
        for target in range(first, len(tokens)):
            place = next(before)
            assert [sequence[other] for other in seen[place]] == tokens[:target]
            assert [places[other] for other in seen[place]] == list(range(target))
    assert next(before, None) is None
    assert len(set(laid.predicting_positions.tolist())) == len(laid.predicting_positions)
    assert len(sequence) <= ids.size


SYSTEM, ONE, OTHER = list(range(10, 30)), [1] * 20, [2] * 20


@cases(
    ("rows", "options", "groups"),
    [
        # A common beginning is there once, and no longer than allowed.
        ([([*SYSTEM, 1, 2, 3, 4], 22), ([*SYSTEM, 5, 6, 7, 8], 22)], {}, [Group(20, 2, 8)]),
        ([([*SYSTEM, number, 2, 3, 4], 22) for number in range(4)], {"most_shared": 12}, [Group(12, 4, 16)]),
        # The question of a pair is there once for both answers.
        (
            [([*question, *answer], 21) for answer in ([3, 4, 5], [6, 7, 8]) for question in (ONE, OTHER)],
            {},
            [Group(20, 2, 8), Group(20, 2, 8)],
        ),
        # Supervised tokens are never shared, and nothing is laid out where little would be saved.
        ([(SYSTEM, 1), (SYSTEM, 1)], {}, None),
        ([([1, *range(10, 25)], 8), ([1, *range(30, 45)], 8)], {}, None),
        # Packed rows have no padding.
        *(
            ([(ONE[:3], 1), ([4, 5, 6, 7, 8], 2), (OTHER[:3], 1)], options, [Group(0, 2, 3), Group(0, 1, 5)])
            for options in ({"pack": True}, {"pack": True, "most_shared": 0})
        ),
    ],
)
def test_rows_are_laid_out_in_groups(rows: list[Row], options: dict[str, Any], groups: list[Group] | None) -> None:
    laid = choose_layout(*padded(rows), CPU, **{"pack": False, **options})
    assert (None if laid is None else list(laid.layout.groups)) == groups


def test_padding_has_no_position_that_no_token_has() -> None:
    """A model with learned positions has none beyond its longest row."""
    laid = choose_layout(*padded([([*range(10, 21), *([row] * 21)], 13) for row in (1, 2, 3)]), CPU, pack=False)
    assert laid is not None
    assert laid.layout.groups == (Group(11, 3, 24),)
    assert int(laid.position_ids.max()) == 31


def row(tokens: list[int], first: int, rejected: TokenizedRow | None = None) -> TokenizedRow:
    supervised = np.zeros(len(tokens), dtype=np.bool_)
    supervised[first:] = True
    return TokenizedRow(np.array(tokens, dtype=np.int32), supervised, rejected=rejected)


@given(rows_strategy)
def test_all_rows_begin_with_the_common_prefix_and_no_batch_shares_less(rows: list[Row]) -> None:
    found = common_beginning([row(*each) for each in rows])
    assert all(tokens[:found] == rows[0][0][:found] and found < first for tokens, first in rows)
    longer = {tuple(tokens[: found + 1]) for tokens, _ in rows}
    assert len(longer) > 1 or found + 1 >= min(first for _, first in rows)


def test_both_answers_of_a_pair_count_for_the_common_prefix() -> None:
    pair = row([*SYSTEM, 1, 2, 3], 21, rejected=row([*SYSTEM[:6], *range(4, 22)], 21))
    assert common_beginning([row([*SYSTEM, 7, 8, 9], 21), pair]) == 6
    assert common_beginning([]) == 0


def test_a_first_token_is_predicted_by_nothing() -> None:
    ids, supervised = padded([([1, 2, 3, 4], 0), ([5, 6], 0), ([7], 0)])
    laid = choose_layout(ids, supervised, CPU, pack=True)
    assert laid is not None
    assert laid.input_ids[0, laid.predicting_positions].tolist() == [1, 2, 3, 5]


@cases(("prefix", "own", "shares"), [(200, 1848, False), (200, 200, True), (1024, 1024, True)])
def test_the_price_of_masks_is_counted_before_sharing(prefix: int, own: int, shares: bool) -> None:
    """By the shape of an 8B model; without masks all three are shared."""
    rows = [([*range(prefix), *([row + 5000] * own)], prefix + 1) for row in range(4)]
    pair = 2 * 4096 / 218e6
    assert choose_layout(*padded(rows), CPU, pack=False) is not None
    assert (choose_layout(*padded(rows), CPU, pack=False, pair=pair) is not None) == shares
