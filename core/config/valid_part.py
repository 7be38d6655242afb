"""The valid part of a configuration, for estimates while it is still being written."""

from __future__ import annotations

import contextlib

from core.config.document import ConfigDocument
from core.config.schema import Config, DataSection
from core.errors import UserError

#: Stands for training data that is not chosen yet.
_NO_DATA = "rows"
#: Values that are given up may be all that made others wrong, and the other way round.
_ROUNDS = 3


def valid_part(document: ConfigDocument) -> Config:
    """A configuration with defaults in place of what is wrong in it, its training data included.

    Args:
        document: The configuration; it is only read.
    """
    probe = ConfigDocument(document.dumps(), document.path)
    for _ in range(_ROUNDS):
        # What is wrong in it is taken out below, and it is tried again.
        with contextlib.suppress(UserError):
            return probe.validate()
        try:
            for name in probe.problems():
                probe.set(name, _NO_DATA if name == "data.train" else None)
        except UserError:
            # A section that is no section, or an option that does not exist.
            break
    return Config(data=DataSection(train=_NO_DATA))
