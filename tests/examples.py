"""How many examples of a property are tried, by the profile of Hypothesis."""

from __future__ import annotations

from hypothesis import settings

#: The profile that draws new examples, and tries all that a property asks for.
SEARCH = "search"
#: By any other profile: one in so many, the same ones each time, and at least so many.
_ONE_IN, _LEAST = 3, 10


def examples(count: int) -> int:
    """The number of examples of a property: ``count`` where new ones are searched for, else a third.

    Args:
        count: Those that a search is to try.
    """
    return count if settings.get_current_profile_name() == SEARCH else min(count, max(count // _ONE_IN, _LEAST))
