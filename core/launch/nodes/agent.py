"""The agent on another machine of a run: ``python -m core.launch.nodes.agent``, started over ssh by the head.

It reads one request as a line of JSON: to tell what this machine has of a run (:mod:`core.launch.nodes.facts`), or to
run some of its ranks (:mod:`core.launch.nodes.ranks`). It answers in lines of JSON on standard output, and nothing else
is printed there.
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
from core.launch.nodes.network import INTERFACES, interface_of, own_address_towards, reach
from core.launch.nodes.places import Places, localized
from core.launch.nodes.ranks import RankProcess, rank_directory, watch

#: Longest request, in bytes.
REQUEST_LIMIT = 4 << 20


def main() -> int:
    """Answer one request; returns the exit code."""
    os.umask(0o077)
    output = private_output()
    try:
        request = json.loads(sys.stdin.buffer.readline(REQUEST_LIMIT))
        if request["want"] == "facts":
            answer(output, facts_of(request))
            return 0
        if request["want"] == "ranks":
            return run_ranks(request, output)
        raise ValueError("an unknown request")
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


def run_ranks(request: dict[str, Any], output: IO[bytes]) -> int:
    """Run the ranks in a request until all have ended, or the head ends them or is gone; returns the exit code.

    Raises:
        UserError: If their directory cannot be made, or none can be started.
    """
    _, own = configurations(request)
    interface = interface_of(own_address_towards(request["address"], request["port"]))
    variables = dict.fromkeys(INTERFACES, interface) if interface is not None else {}
    with rank_directory(request["run"], own) as run:
        processes = [RankProcess(run, {**variables, **rank}, resume=request["resume"]) for rank in request["ranks"]]
        return watch(processes, sys.stdin.buffer, output)


def configurations(request: dict[str, Any]) -> tuple[Config, Config]:
    """The configuration in a request: as the head has it, and with the paths of this machine."""
    named = ConfigDocument(request["config"]).validate()
    places = request["places"]
    return named, localized(named, Places(places["store"], places["user"]), Places.here())


if __name__ == "__main__":
    sys.exit(main())
