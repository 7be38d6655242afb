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
    """Rights to read the rows of a request: its files, and the cache, where indexes and unpacked text are kept.

    Packed files are unpacked by helpers, which have the same rights.

    Raises:
        UserError: If a registry among the sources cannot be read, or data of a hub is not on this machine.
    """
    read = reading(*_named(request), datasets_dir(), cache_dir()).reads
    with contextlib.suppress(UserError):  # without one, nothing is kept, and a packed file is refused with the reason
        make_private_dir(cache_dir())
    return Rights(read, writes=(str(cache_dir()),), starts_helpers=True)


def _named(request: AnalysisRequest) -> Iterator[str]:
    if request.masks is not None:
        yield request.masks.model
    for references in (request.train, request.eval):
        sources = flat_sources(list(references), request.format, request.columns)
        paths = itertools.chain.from_iterable((source.path, *source.files) for source in sources)
        for named in (*references, *map(str, paths)):
            # An entry of a registry, or a split of a directory, stands behind the mark.
            yield from {named, named.rpartition("#")[0] or named}
