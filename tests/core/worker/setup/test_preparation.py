"""Preparation of a run: the chat template with the values of its variables."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from core.analysis.result import AnalysisRequest
from core.analysis.row_samples import try_first_rows
from core.config.schema import Config
from core.errors import UserError
from core.runs.catalog.trained import find_trained
from core.runs.record.events import NoticeEvent, StoppedEvent
from core.runs.record.store import Run, create_run
from core.sandbox import pool
from core.sandbox.pool import POOL
from core.worker.process.recorder import Recorder
from core.worker.setup import preparation
from core.worker.setup.preparation import Prepared, prepare
from tests.core.runs.test_trained import add_checkpoint
from tests.e2e.workers import only
from tests.hostile_templates import SLOW

THINKS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture
def model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A tiny model whose own chat template has a variable."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_model_dir, copy)
    (copy / "chat_template.jinja").write_text(THINKS)
    return copy


TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def prepared(
    model: Path,
    tmp_path: Path,
    data: Sequence[dict[str, Any]] = ({"messages": TALK},),
    check_stop: Callable[[], None] = lambda: None,
    **template: Any,
) -> tuple[Run, Prepared]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in data))
    values = {"model": {"base": str(model)}, "data": {"train": str(rows)}, "template": template}
    config = Config.model_validate(values)
    run = create_run(config, "test")
    recorder = Recorder(run)
    try:
        return run, prepare(config, model, recorder, check_stop, None)
    finally:
        recorder.close("stopped", "", StoppedEvent(reason="", step=0))


def test_template_variables_apply_to_training_and_to_the_chat_of_a_run_without_a_result(
    model: Path, tmp_path: Path
) -> None:
    _, plain = prepared(model, tmp_path)
    run, low = prepared(model, tmp_path, variables={"enable_thinking": False})
    assert plain.template is None
    assert low.template is not None
    assert low.template.endswith(THINKS)
    (with_block,), (without,) = low.dataset.rows[0].sequences, plain.dataset.rows[0].sequences
    assert len(with_block.input_ids) > len(without.input_ids), "the empty block of reasoning is in the prompt"
    assert with_block.supervised.sum() == without.supervised.sum(), "and is not learned"
    assert run.template_path.read_text() == low.template
    add_checkpoint(run, 5)
    assert find_trained(run).template == str(run.template_path)


def test_a_model_without_a_template_has_no_variables(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="no chat template"):
        prepared(model, tmp_path, variables={"enable_thinking": False})


def test_rows_with_pictures_and_unread_columns_are_reported(model: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": TALK, "video": "a.mp4"},
        {"messages": [{"role": "user", "content": "more"}, TALK[1]], "topic": "x\x1b[2J", "id": 3},
    ]
    run, found = prepared(model, tmp_path, rows)
    assert len(found.dataset.rows) == 1
    notices = {notice.code: notice for notice in only(NoticeEvent, run)}
    dropped, unread = notices["dropped_has_media"], notices["columns_not_read"]
    assert "1 row is not used. rows.jsonl, line 1: The column video holds video" in dropped.message
    assert (dropped.level, unread.level) == ("warning", "info")
    assert "Only text is read" in dropped.hint
    assert unread.message.endswith("rows.jsonl: columns not read: id, topic.")
    assert "data.columns" in unread.hint


def test_a_template_that_never_ends_is_refused_before_this_process_renders_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SECONDS", 0.5)
    monkeypatch.setattr(preparation, "stop_token_ids", lambda *_: pytest.fail("it was rendered here"))
    (model / "chat_template.jinja").write_text(SLOW)
    with pytest.raises(UserError, match=r"^The tokenizer or chat template of .* takes more than 0\.5 s, which none"):
        prepared(model, tmp_path)
    written = tmp_path / "slow.jinja"
    written.write_text(THINKS + "{% if messages[0].content == 'hello' %}" + SLOW + "{% endif %}")
    (model / "chat_template.jinja").write_text(THINKS)
    with pytest.raises(UserError, match=r"^The chat template takes more than 0\.5 s, which none should"):
        prepared(model, tmp_path, file=str(written))


def test_a_stop_is_heard_while_rows_are_tried(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_SECONDS_PER_CHECK", 0.01)
    begun = threading.Event()

    def tried(request: AnalysisRequest) -> None:
        begun.set()
        try_first_rows(request)

    monkeypatch.setattr(preparation, "try_first_rows", tried)
    (model / "chat_template.jinja").write_text(SLOW)

    def check_stop() -> None:
        if begun.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(model, tmp_path, check_stop=check_stop)
    assert not POOL._busy
