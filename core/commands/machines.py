"""The other machines of a run, compared with this one before a run is started or planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.commands.common import note
from core.errors import UserError

if TYPE_CHECKING:
    from core.config.schema import Config


def check_machines(config: Config) -> None:
    """Refuse a run whose other machines cannot be reached, or have other software, another model or other data.

    Raises:
        UserError: For the first difference.
    """
    if not config.distributed.other_hosts:
        return
    from core.launch.nodes.compare import compare_machines

    head, *others = compare_machines(config, note)
    note(f"{', '.join(other.host for other in others)}: software, model and data as on {head.host}")


def warn_of_machines(config: Config) -> None:
    """Warn where :func:`check_machines` would refuse a run."""
    try:
        check_machines(config)
    except UserError as error:
        note(f"warning: A run would be refused: {error}")
