"""Machines of a run that are away when it is to start again: whether one is."""

from __future__ import annotations

from collections.abc import Callable

from core.config.schema import Config
from core.errors import UserError
from core.launch.nodes.network import interface_of, resolve
from core.launch.nodes.ssh import log_in
from core.text import one_line


def machine_away(config: Config, stopped: Callable[[], bool]) -> UserError | None:
    """Why the processes of a run over several machines cannot be started just now; None where they can, or where it is
    not asked any more. A machine that is gone takes half a minute.

    Args:
        config: Of the run.
        stopped: Whether the run was stopped meanwhile; asked before each machine.
    """
    address = config.distributed.address or ""
    try:
        if interface_of(resolve(address)) is None:
            return UserError(
                f"This machine has no network interface with distributed.address {one_line(address, 80)} any more.",
                "Look at its cable; 'ip -brief address' lists its addresses.",
            )
        for host in config.distributed.other_hosts:
            if stopped():
                return None
            log_in(host)
    except UserError as error:
        return error
    return None
