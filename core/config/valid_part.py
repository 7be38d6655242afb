"""The valid part of a configuration, for estimates while it is still being written."""

from __future__ import annotations

import contextlib

from core.config.document import ConfigDocument
from core.config.schema import Config, DataSection
from core.errors import UserError

#: Placeholder for training data that is not chosen yet.
_NO_DATA = "rows"
#: Removing an invalid value may make another one valid or invalid.
_ROUNDS = 3


def valid_part(document: ConfigDocument) -> Config:
    """A configuration with defaults in place of its invalid values, its training data included.

    Args:
        document: The configuration; it is only read.
    """
    probe = ConfigDocument(document.dumps(), document.path)
    for _ in range(_ROUNDS):
        # Invalid values are removed below before the next attempt.
        with contextlib.suppress(UserError):
            return probe.validate()
        try:
            for name in probe.problems():
                probe.set(name, _NO_DATA if name == "data.train" else None)
        except UserError:
            # A section that is no section, or an option that does not exist.
            break
    return Config(data=DataSection(train=_NO_DATA))
