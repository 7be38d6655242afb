"""Bodies of requests, read as questions to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from core.config.schema import ChatSection
from core.serve.requests import read_chat
from tests.cases import cases

CLIENTS = yaml.safe_load(Path(__file__).with_name("clients.yaml").read_text(encoding="utf-8"))
ASK = [{"role": "user", "content": "Jo is 25."}]


@cases(("asked", "forced"), [(client["asked"], client["forced"]) for client in CLIENTS])
def test_calls_are_forced_as_clients_ask_for_them(asked: dict[str, Any], forced: str) -> None:
    question = read_chat({"model": "m", "messages": ASK, **asked}, ChatSection()).question
    several = " +" if question.forced_tools and question.several_calls else ""
    assert " ".join(question.forced_tools) + several == forced
    # Over the protocol nothing is lost.
    assert type(question).from_args(question.to_args()) == question


@cases(
    "messages",
    [
        [{"role": "system", "content": "Say hello."}],
        [*ASK, {"role": "assistant", "content": "His name"}],
    ],
)
def test_a_system_message_alone_and_a_begun_answer_are_questions(messages: list[dict[str, Any]]) -> None:
    is_begun = messages[-1]["role"] == "assistant"
    asked = {"continue_final_message": is_begun, "add_generation_prompt": not is_begun}
    for more in ({}, asked):
        assert read_chat({"model": "m", "messages": messages, **more}, ChatSection()).question.messages == messages
