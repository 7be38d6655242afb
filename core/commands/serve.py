"""``serve RUN[@STEP] [RUN…|MODEL]``: models for programs that speak OpenAI's API."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands.common import add_json_flag, emit, note, say
from core.commands.parser import ArgumentParser

if TYPE_CHECKING:
    from core.serve.options import ServeOptions, ServerAddress


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    from core.serve.options import KEY_VARIABLE, LOOPBACK, PORT, QUEUE

    parser.add_argument("targets", metavar="RUN[@STEP]|MODEL", nargs="+")
    parser.add_argument("--port", metavar="N", type=int, default=PORT)
    parser.add_argument("--host", metavar="ADDRESS", default=LOOPBACK)
    parser.add_argument("--uds", metavar="PATH", type=Path)
    parser.add_argument(
        "--key", metavar="KEY", default="", help=f"the key that clients send (default: {KEY_VARIABLE}, or a random one)"
    )
    parser.add_argument("--allow-host", metavar="NAME", action="append", default=[])
    parser.add_argument("--allow-origin", metavar="ORIGIN", action="append", default=[])
    parser.add_argument("--queue", metavar="N", type=int, default=QUEUE)
    add_json_flag(parser, "print address, key and models as one JSON object when clients can connect")
    for place in ("--host", "--port"):
        parser.add_conflict("--uds", place, "a Unix socket has neither address nor port.")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from core.serve.options import check_installed

    check_installed()
    from core.commands.live_line import LiveLine
    from core.serve.options import KEY_VARIABLE, ServeOptions
    from core.serve.server import serve
    from core.text import one_line

    given = args.key or os.environ.get(KEY_VARIABLE, "")
    options = ServeOptions(
        tuple(args.targets),
        host=args.host,
        port=args.port,
        uds=args.uds.absolute() if args.uds is not None else None,
        key=given,
        names=tuple(args.allow_host),
        origins=tuple(args.allow_origin),
        queue=args.queue,
    )
    if not options.is_loopback:
        note(
            f"warning: {one_line(args.host, 80)} can be reached from other machines, without encryption: whoever reads "
            "the key on the way can use it."
        )

    def ready(address: ServerAddress) -> None:
        if args.json:
            emit({"url": address.url, "key": address.key, "models": list(address.models), "pid": os.getpid()})
        else:
            _introduce(address, options, is_own_key=bool(given))

    with LiveLine() as line:
        serve(options, ready, line.loading)
    if not args.json:
        note("The server has ended.")
    return 0


def _introduce(address: ServerAddress, options: ServeOptions, *, is_own_key: bool) -> None:
    """Print the address, the key and the models for clients."""
    say(f"base URL  {address.url}")
    if options.uds is not None:
        say(f"socket    {options.uds}")
    # A key that the user has given is known, and need not be on the screen.
    say(f"key       {'as given' if is_own_key else address.key}")
    say(f"models    {', '.join(address.models)}")
    note("Ctrl-C ends it.")
