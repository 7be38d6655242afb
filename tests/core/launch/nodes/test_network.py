"""Addresses of this machine and their network interfaces."""

from __future__ import annotations

import subprocess
import sys

from core.launch.nodes.network import interface_of


def test_an_address_has_its_interface() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


def test_where_processes_meet_is_known_without_torch() -> None:
    code = "import sys, core.worker.distributed.rendezvous, core.launch.nodes.network; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
