"""The commands of the reader of GGUF files."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from core.chat.request import ChatRequest, QuestionError
from core.data.conversation import RowError
from core.errors import UserError
from core.hardware.cpu import free_memory
from core.runs.control.devices import refuse_crowding, runs_on_cpu
from core.sandbox.limits import growth_limit, limit_growth, machine_memory
from core.template.builtin import named_or_file
from core.template.render import ChatTemplate
from core.worker.export.llama.model import LEAST_CONTEXT, GgufModel, GgufTemplate, context_bytes
from core.worker.generate.scores import TokenScores
from core.worker.generate.stops import checked_tokens
from core.worker.process.command_server import Call, Handler

#: A conversation that shows if two templates write the same.
_PROBE = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And now?"},
)
#: Bytes of memory for llama.cpp beside weights, keys and values. Weights are memory-mapped, and copied where llama.cpp
#: reorders them.
_AT_WORK = 4 << 30


class GgufEngine:
    """Executes the commands with the most recently loaded file."""

    def __init__(self) -> None:
        self._model: GgufModel | None = None
        self._template: GgufTemplate | None = None
        self._name = "model"
        self.handlers: dict[str, Handler] = {
            "load": self.load,
            "generate": self.generate,
            "tokenize": self.tokenize,
        }

    def load(self, call: Call) -> dict[str, Any]:
        """Load a file in place of the previous one.

        Raises:
            UserError: If it cannot be loaded, or does not fit beside a run on the CPU.
        """
        began = time.monotonic()
        args = call.args
        call.tell({"progress": "loading llama.cpp", "done": None, "total": None})
        if self._model is not None:
            # The previous model is freed first: two may not fit.
            self._model.close()
            self._model = self._template = None
        path, adapter = Path(str(args["base"])), args.get("adapter")
        least = context_bytes(path, LEAST_CONTEXT)
        weights = path.stat().st_size + (Path(str(adapter)).stat().st_size if adapter else 0)
        refuse_crowding(weights + least, free_memory(), runs_on_cpu)
        limit_growth(weights + _AT_WORK, most=machine_memory())
        shown = [-1]

        def report(share: float) -> None:
            percent = int(share * 100)
            if percent != shown[0]:
                shown[0] = percent
                call.tell({"progress": "loading the file", "done": percent, "total": 100})

        def ask(tokens: int) -> None:
            what = f"a context of {tokens} tokens"
            needed = context_bytes(path, tokens)
            refuse_crowding(needed, free_memory(), runs_on_cpu, what)
            limit_growth(needed + _AT_WORK, most=machine_memory())

        model = GgufModel(path, Path(str(adapter)) if adapter else None, ask=ask, progress=report)
        self._model = model
        if model.templates.get("default"):
            self._template = GgufTemplate(model)
        self._name = str(args.get("source_name") or "model")
        if warning := self._difference(named_or_file(args.get("template"))):
            call.tell({"progress": warning, "done": None, "total": None})
        return {"device": "cpu", "dtype": model.path.name, "seconds": time.monotonic() - began}

    def _difference(self, trained: str | None) -> str:
        """A warning if the template of the training writes other prompts than the file's."""
        if trained is None or self._template is None or self._model is None:
            return ""
        other = ChatTemplate(trained, self._model.specials)
        for messages in (_PROBE, _PROBE[1:]):
            try:
                with growth_limit():
                    wanted = other.render(messages, add_generation_prompt=True)
                found = self._template.render(messages)
            except RowError:
                continue  # some templates take no system prompt
            if wanted != found:
                return "The chat template in the file writes other prompts than that of the training."
        return ""

    def generate(self, call: Call) -> dict[str, Any]:
        """Answer a conversation, or continue a text.

        Raises:
            QuestionError: If a JSON Schema is requested, or the template rejects the conversation.
        """
        asked = ChatRequest.from_args(call.args)
        if asked.json_schema is not None or asked.forced_tools:
            held, field = (
                ("calls of tools", "tool_choice") if asked.forced_tools else ("a JSON Schema", "response_format")
            )
            raise QuestionError(
                f"A GGUF file's answers cannot be held to {held}.",
                f"Leave {field} out, or ask the run or its merged export.",
            )
        model, prompt = self._loaded(), self._prompt(asked)
        piece = partial(model.piece, special=True)
        text = asked.prompt
        if not isinstance(text, str):
            text = b"".join(map(piece, prompt)).decode("utf-8", "replace")
        answer = model.generate(
            prompt,
            asked.settings,
            lambda text: call.tell({"token": text}),
            call.cancelled,
            echo=text if asked.echo else None,
            budget=asked.budget,
            scores=TokenScores.of(asked, piece, call.tell),
        )
        return answer | {"source": self._name}

    def _prompt(self, asked: ChatRequest) -> list[int]:
        """The tokens of the prompt: of the conversation with its tools, or of the text to continue."""
        if isinstance(asked.prompt, list):
            return checked_tokens(asked.prompt, self._loaded().vocabulary_size)
        if asked.prompt is not None:
            return self._loaded().prompt_ids(asked.prompt)
        model, template = self._ready()
        return model.prompt_ids(template.prompt(asked.messages, asked.tools))

    def tokenize(self, call: Call) -> dict[str, Any]:
        """Tokens of a conversation, or of a text."""
        text = call.args.get("text")
        if isinstance(text, str):
            return {"tokens": self._loaded().tokenize(text, add_special=False)}
        model, template = self._ready()
        prompt = template.prompt(ChatRequest(call.args.get("messages", [])).messages)
        return {"tokens": model.prompt_ids(prompt), "text": prompt}

    def _loaded(self) -> GgufModel:
        if self._model is None:
            raise UserError("No file is loaded.", "Open one first.")
        return self._model

    def _ready(self) -> tuple[GgufModel, GgufTemplate]:
        model = self._loaded()
        if self._template is None:
            raise UserError(f"{model.path} has no chat template.", "Export it again, with the template of the run.")
        return model, self._template
