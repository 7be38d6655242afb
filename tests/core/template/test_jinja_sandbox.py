"""Bounded Jinja sandbox: templates that would never end are stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from core.data.conversation import RowError
from core.errors import UserError
from core.template import jinja_sandbox
from core.template.jinja_sandbox import TemplateTimeError
from core.template.render import ChatTemplate, TracedTemplate, placeholder
from tests.cases import cases
from tests.conftest import CHATML
from tests.hostile_templates import BOMBS, ENDLESS_OPERATIONS, HOSTILE, LISTS, LONG_BODY, REPEATED_OPERATIONS, SLOW
from tests.short_list import long_but

SNIPPETS = yaml.safe_load(Path(__file__).with_name("snippets.yaml").read_text(encoding="utf-8"))
MESSAGES = [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello!"}]
REASONS = {"loops": "", "operations": "far larger than a conversation"}


@cases(("source", "words"), [(source, why) for name, why in REASONS.items() for source in HOSTILE[name]])
def test_loops_without_an_end_and_operations_that_take_all_memory_are_refused(source: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        ChatTemplate(source).render(MESSAGES)
    assert caught.value.code == "template_error"


_TRY = """
import json, resource, sys
from core.data.conversation import RowError
from core.template.render import ChatTemplate
from core.template.render import InspectedError, TracedTemplate

resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
WHYS = ("far larger than a conversation", "far more steps than a conversation", "Range too big")
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number, source in enumerate(json.load(sys.stdin)):
    template = ChatTemplate(source)
    messages = [{"role": "user", "content": "Say hello."}]
    for trial in (lambda: template.render(messages), lambda: TracedTemplate(template).render(messages, True, set())):
        try:
            trial()
        except RowError as error:
            assert any(why in error.message for why in WHYS), (number, error.message)
        except InspectedError:
            pass
        else:
            sys.exit(f"bomb {number} went through")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


#: Counting the parts of a list of many small ones takes seconds.
SMALL_ONES = [bomb.replace("x=[big]", "x=[1]") for bomb in BOMBS if "x=[big]" in bomb]


@pytest.mark.parametrize("bombs", long_but([BOMBS], [BOMBS, SMALL_ONES]), ids=["all", "many small ones"])
def test_what_would_fill_the_memory_is_refused_in_little_of_it(bombs: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TRY], input=json.dumps(bombs), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 160 << 10


LARGE = [{"role": "user", "content": "word " * 20_000}, {"role": "assistant", "content": "word " * 20_000}] * 25
MANY = [{"role": "user", "content": "x" * 500}] * 1000
THOUGHT = [{"role": "user", "content": "word " * 20_000 + "</think>"}] * 50


@cases(("name", "messages", "length"), [
    ("grown", LARGE, 50 * 100_000), ("copied", LARGE, 9_903_517), ("every character", MANY, 500_000),
    ("each for each", MANY, 4), ("chatml", MANY, 528_000), ("searched", THOUGHT, 6 * 50),
])  # fmt: skip
def test_large_and_long_conversations_have_enough_room_and_steps(
    name: str, messages: list[dict[str, str]], length: int
) -> None:
    assert len(ChatTemplate(SNIPPETS["enough room"].get(name, CHATML)).render(messages)) == length


def test_each_rendering_has_its_own_steps() -> None:
    template = ChatTemplate("{% for a in range(60000) %}{% endfor %}done")
    assert [template.render(MESSAGES) for _ in range(3)] == ["done"] * 3


@cases("source", [*ENDLESS_OPERATIONS.values(), *REPEATED_OPERATIONS.values()])
def test_an_operation_costs_what_it_looks_at(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_sandbox, "STEPS", 20_000)
    began = time.thread_time()
    with pytest.raises(RowError) as caught:
        ChatTemplate(source).render(MESSAGES)
    assert caught.value.code == "template_error"
    assert len(caught.value.message) < 300
    assert time.thread_time() - began < jinja_sandbox.SECONDS, "the clock did not end it"


def test_time_refuses_the_template_and_not_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_sandbox, "SECONDS", 0.02)
    template = ChatTemplate(SLOW)
    traced = TracedTemplate(template)
    marked = [{"role": "user", "content": placeholder(0)}]
    # It is first asked whether content is a list.
    by_content = "{% if messages[0].content is string and messages | length == 1 %}" + SLOW + "{% endif %}"

    def in_a_thread() -> str:
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(template.render, MESSAGES).result()

    renders: list[Callable[[], str]] = [
        lambda: template.render(MESSAGES),
        lambda: traced.render(marked, False, set()),
        lambda: ChatTemplate(by_content).render(MESSAGES),
        in_a_thread,
    ]
    for render in renders:
        began = time.thread_time()
        with pytest.raises(TemplateTimeError, match=r"takes more than 0\.02 s for one conversation") as caught:
            render()
        assert time.thread_time() - began < 1
        assert isinstance(caught.value, UserError)
        assert not isinstance(caught.value, RowError)


def test_time_ends_a_loop_in_which_nothing_costs_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_sandbox, "SECONDS", 0.05)
    template = ChatTemplate(LONG_BODY)
    template.check()
    began = time.thread_time()
    with pytest.raises(TemplateTimeError):
        template.render(MESSAGES)
    assert time.thread_time() - began < 3


def test_the_time_of_others_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_sandbox, "SECONDS", 0.2)
    ended = threading.Event()

    def spin() -> None:
        while not ended.is_set():
            sum(range(1000))

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        assert ChatTemplate("{% for i in range(9000) %}{{ i }}{% endfor %}").render(MESSAGES)
    finally:
        ended.set()
        thread.join()


def test_a_refusal_that_a_test_of_jinja_swallows_comes_again() -> None:
    swallowed = "{{ (range(99999) | map('string') | select) is sequence }}" + LISTS + "{{ [ns.x == 1] is sequence }}"
    with pytest.raises(RowError, match="far more steps"):
        ChatTemplate(swallowed + "{{ ns.x == ns.y }}").render(MESSAGES)


@cases("expression", SNIPPETS["expressions"])
def test_expressions_mean_what_they_mean_without_a_budget(expression: str) -> None:
    source = expression if "{%" in expression else "{{ " + expression + " }}"
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    assert ChatTemplate(source).render(MESSAGES) == plain.from_string(source).render(messages=MESSAGES)
