"""Agent on another machine of a run, which tells the head what is there; run over ssh as a module.

It reads one request as a line of JSON, and answers with one line of JSON on standard output; nothing else is printed
there.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any

from core.config.document import ConfigDocument
from core.config.schema import Config
from core.errors import UserError
from core.helper import private_output
from core.launch.nodes.facts import gather
from core.launch.nodes.network import own_address_towards, reach
from core.launch.nodes.places import Places, localized

#: Longest request, in bytes.
REQUEST_LIMIT = 4 << 20


def main() -> int:
    """Answer one request; returns the exit code."""
    os.umask(0o077)
    output = private_output()
    try:
        request = json.loads(sys.stdin.buffer.readline(REQUEST_LIMIT))
        answer(output, facts_of(request))
        return 0
    except UserError as error:
        answer(output, {"error": error.message, "hint": error.hint})
    except (ValueError, KeyError, TypeError):
        answer(
            output, {"error": "This request is not understood.", "hint": "Install the same version on all machines."}
        )
    return 1


def answer(output: IO[bytes], value: dict[str, Any]) -> None:
    """Write a line of JSON."""
    output.write(json.dumps(value).encode() + b"\n")
    output.flush()


def facts_of(request: dict[str, Any]) -> dict[str, Any]:
    """What this machine has of the run in a request.

    Raises:
        UserError: If the head cannot be reached, or something of the run is missing.
    """
    reach(request["address"], request["port"])
    named, own = configurations(request)
    return gather(own, named).to_dict() | {"address": own_address_towards(request["address"], request["port"])}


def configurations(request: dict[str, Any]) -> tuple[Config, Config]:
    """The configuration in a request: as the head has it, and with the paths of this machine."""
    named = ConfigDocument(request["config"]).validate()
    places = request["places"]
    return named, localized(named, Places(places["store"], places["user"]), Places.here())


if __name__ == "__main__":
    sys.exit(main())
