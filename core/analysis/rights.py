"""Rights of the processes that read the rows of a dataset."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

from core.analysis.result import AnalysisRequest
from core.data.registries.resolve import flat_sources
from core.errors import UserError
from core.paths import cache_dir, datasets_dir, make_private_dir
from core.sandbox.rights import Rights, reading


def rights_for(request: AnalysisRequest) -> Rights:
    """Rights to read the rows of a request: its files, and the cache of indexes and unpacked text.

    The helpers that unpack packed files have the same rights.

    Raises:
        UserError: If a registry among the sources cannot be read, or a Hub dataset is not on this machine.
    """
    read = reading(*_named(request), datasets_dir(), cache_dir()).reads
    with contextlib.suppress(UserError):  # without a cache nothing is kept, and packed files are refused later
        make_private_dir(cache_dir())
    return Rights(read, writes=(str(cache_dir()),), starts_helpers=True)


def _named(request: AnalysisRequest) -> Iterator[str]:
    if request.masks is not None:
        yield request.masks.model
    for references in (request.train, request.eval):
        sources = flat_sources(list(references), request.format, request.columns)
        paths = itertools.chain.from_iterable((source.path, *source.files) for source in sources)
        for named in (*references, *map(str, paths)):
            # The part after # is a registry entry or a split of a directory.
            yield from {named, named.rpartition("#")[0] or named}
