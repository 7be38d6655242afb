"""The lead of the first process: when the others are told of a pass, and when nobody is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from core.worker.distributed.lead import Lead
from core.worker.distributed.orders import Orders
from core.worker.distributed.ranks import Ranks


class Passes:
    """A model that is shared out, as far as its contexts go."""

    def __init__(self) -> None:
        self.entered = self.left = 0

    @contextlib.contextmanager
    def leading(self, _announce: Callable[[], None]) -> Iterator[None]:
        """A context of passes alone."""
        self.entered += 1
        yield
        self.left += 1


@pytest.fixture
def lead() -> Lead:
    """A lead with someone to tell."""
    lead = Lead()
    lead.connect(Orders(Ranks.single()))
    return lead


def test_contexts_within_each_other_are_one(lead: Lead) -> None:
    passes = Passes()
    with lead.taken(passes.leading):
        with lead.taken(passes.leading):
            pass
        assert (passes.entered, passes.left) == (1, 0)
    assert (passes.entered, passes.left) == (1, 1)
    with lead.taken(passes.leading):
        assert passes.entered == 2


def test_a_context_ends_with_what_fails_in_it(lead: Lead) -> None:
    passes = Passes()
    with pytest.raises(RuntimeError, match="out of memory"), lead.taken(None):
        raise RuntimeError("out of memory")
    with lead.taken(passes.leading):
        assert passes.entered == 1


def test_it_is_refused_before_the_others_are_connected() -> None:
    with pytest.raises(ValueError, match="not connected"), Lead().taken(None):
        pass
