"""Options of a GGUF file: what it says of itself, and what a conversation with it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GgufOptions:
    """Options of a GGUF file; what is not given is as the model's directory has it.

    Args:
        template: The chat template, as Jinja; tags that mark what is learned are replaced.
        tool_template: A separate template for conversations with tools, if there is one.
        stops: The tokens that end an answer, the most usual first; beside the tokenizer's own there is room for two.
        name: The model's name, for people.
        license: Of the model, as SPDX has it: ``apache-2.0``.
        base_name: The model that it was made from, for people.
        base: The directory of that model, where files of its tokenizer are taken from that the model's own directory
            lacks.
        base_gguf: The GGUF file that the base was, if it was one: its tokenizer is copied.
        calibration: Rows as token ids, whose activations tell which weights matter most (an importance matrix), as of
            :func:`core.export.gguf.write.calibration_rows`; used for the quantizations of less than eight bits.
        is_exact: Whether the model was trained with the weights of a file of this type: embeddings and head are Q8_0,
            as they were then.
    """

    template: str | None = None
    tool_template: str | None = None
    stops: tuple[int, ...] = ()
    name: str = ""
    license: str = ""
    base_name: str = ""
    base: Path | None = None
    base_gguf: Path | None = None
    calibration: tuple[tuple[int, ...], ...] = ()
    is_exact: bool = False
