"""How many examples of a property are tried, by the profile of Hypothesis."""

from __future__ import annotations

from hypothesis import settings

#: The profile that draws new examples, and tries all that a property asks for.
SEARCH = "search"
#: The profile of 'make test' and 'make check'.
QUICK = "quick"
#: By another profile: one in so many, the same ones each time, and at least so many.
_ONE_IN, _LEAST = 3, 10
#: The same by the quick one.
_QUICK_ONE_IN, _QUICK_LEAST = 8, 5


def examples(count: int) -> int:
    """The number of examples of a property: ``count`` where new ones are searched for, else a third, or an eighth.

    Args:
        count: Those that a search is to try.
    """
    profile = settings.get_current_profile_name()
    if profile == SEARCH:
        return count
    one_in, least = (_QUICK_ONE_IN, _QUICK_LEAST) if profile == QUICK else (_ONE_IN, _LEAST)
    return min(count, max(count // one_in, least))
