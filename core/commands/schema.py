"""``schema``: the configuration as JSON Schema for editors, or as the reference page."""

from __future__ import annotations

import argparse
import json

from core.commands.common import add_json_flag, emit, note, put, write_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--markdown", action="store_true")
    add_json_flag(parser, "print it on one line; with --out, say as JSON what was written")


def run(args: argparse.Namespace) -> int:
    """Print or write it."""
    from core.config.json_schema import json_schema
    from core.config.reference import render_reference
    from core.paths import user_path

    schema = json_schema()
    text = render_reference() if args.markdown else json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    if args.out is not None:
        path = user_path(args.out)
        write_file(path, text)
        if args.json:
            emit({"file": str(path), "bytes": len(text.encode("utf-8"))})
        else:
            note(f"Written to {path}.")
    elif args.json:
        emit({"markdown": text} if args.markdown else schema)
    else:
        put(text)
    return 0
