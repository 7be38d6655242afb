from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from core.chat.dialogue import Dialogue
from core.chat.transcripts import chats_dir, keep_transcript, list_transcripts, remove_transcript
from core.errors import UserError
from core.runs.record.store import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    found = Run(tmp_path / "20261126-101010-tickets")
    found.path.mkdir()
    found.config_path.write_text('[data]\ntrain = "rows.jsonl"\n')
    return found


def talk(question: str, answer: str = "yes") -> Dialogue:
    dialogue = Dialogue()
    reply = dialogue.ask(question, ("tuned",)).replies[0]
    reply.text, reply.state = answer, "done"
    return dialogue


def test_a_conversation_is_kept_and_gone_on_with_in_its_file(run: Run) -> None:
    dialogue = talk("one")
    path = keep_transcript(run, dialogue, "Be brief.")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(chats_dir(run).stat().st_mode) == 0o700
    (kept,) = list_transcripts(run)
    assert (kept.title, kept.system) == ("one", "Be brief.")
    on = kept.dialogue()
    on.ask_again(on.exchanges[0], "one, in other words", ("tuned",)).replies[0].text = "no"
    assert keep_transcript(run, on) == path
    (kept,) = list_transcripts(run)
    again = kept.dialogue()
    assert (kept.title, again.variants(again.exchanges[0])) == ("one, in other words", (1, 2))


def test_the_newest_is_first_and_what_is_none_is_left_out(run: Run) -> None:
    early, late = talk("early"), talk("late\nwith a line\x1b[2J")
    early.started -= 3600
    for dialogue in (late, early):
        keep_transcript(run, dialogue)
    for name, text in (
        ("20990101-000000-x.json", "{"),
        ("20990101-000001-x.json", "[" * 100_000),
        ("20990101-000002-x.json", json.dumps({"id": "../../x", "started": 1, "exchanges": [{}]})),
        ("20990101-000003-x.json", json.dumps({"id": "a", "started": True, "exchanges": [{}]})),
        ("20990101-000004-x.json", json.dumps({"id": "a", "started": 1, "exchanges": {}})),
    ):
        (chats_dir(run) / name).write_text(text)
    assert [one.title for one in list_transcripts(run)] == ["late⏎with a line\ufffd[2J", "early"]


def test_nothing_is_kept_or_removed_through_a_link(run: Run, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    kept = keep_transcript(run, talk("mine")).rename(tmp_path / "outside" / "20261126-101010-a.json")
    chats_dir(run).rmdir()
    chats_dir(run).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="it is a link"):
        keep_transcript(run, talk("another"))
    (listed,) = list_transcripts(run)
    with pytest.raises(UserError, match="cannot be removed: it is a link"):
        remove_transcript(listed)
    assert list((tmp_path / "outside").iterdir()) == [kept]


def test_a_run_that_was_deleted_gets_none(run: Run) -> None:
    run.config_path.unlink()
    with pytest.raises(OSError, match="deleted"):
        keep_transcript(run, talk("one"))
    assert not chats_dir(run).exists()
    assert list_transcripts(run) == []
