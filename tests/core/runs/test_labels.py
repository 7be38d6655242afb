"""Labels of a run: written, read back, and whatever a foreign file holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.runs.record.store import (
    LABELS_LIMIT,
    MOST_TAGS,
    NAME_LIMIT,
    NO_LABELS,
    NOTE_LIMIT,
    TAG_LIMIT,
    Labels,
    Run,
    clean_tags,
    clean_text,
    find_run,
    labels_path,
    read_labels,
    write_labels,
)
from tests.cases import cases
from tests.examples import examples
from tests.tui.harness import FORBIDDEN, HOSTILE


def test_labels_come_back_as_they_were_written(run: Run) -> None:
    labels = Labels("more data", ("keep", "déjà-vu"), "best so far, 好", archived=True)
    write_labels(run.path, labels)
    assert read_labels(run.path) == labels
    assert labels_path(run.path).stat().st_mode & 0o777 == 0o600
    write_labels(run.path, NO_LABELS)
    assert not labels_path(run.path).exists()
    assert read_labels(run.path) == NO_LABELS


@cases(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"name": 3, "tags": "keep", "note": [], "archived": "yes"}',
        b'{"tags": ["two words", "", null, "a,b", {}]}',
        b'{"name": "' + b"x" * LABELS_LIMIT + b'"}',
    ],
)
def test_a_file_that_makes_no_sense_has_no_labels(run: Run, content: bytes) -> None:
    labels_path(run.path).write_bytes(content)
    assert read_labels(run.path) == NO_LABELS


def test_a_pipe_is_not_waited_for(run: Run) -> None:
    import os

    os.mkfifo(labels_path(run.path))
    assert read_labels(run.path) == NO_LABELS


@settings(max_examples=examples(25))
@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.text() | st.lists(st.text()) | st.booleans() for name in ("name", "tags", "note", "archived")
        },
    )
)
def test_whatever_a_file_says_is_safe_to_show_and_short(values: dict[str, object]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        labels_path(path).write_text(json.dumps({**values, "extra": HOSTILE}), encoding="utf-8")
        labels = read_labels(path)
        assert len(labels.name) <= NAME_LIMIT
        assert len(labels.note) <= NOTE_LIMIT
        assert len(labels.tags) <= MOST_TAGS
        assert all(0 < len(tag) <= TAG_LIMIT and tag.split() == [tag] for tag in labels.tags)
        shown = labels.name + labels.note + "".join(labels.tags)
        assert not FORBIDDEN & set(shown)
        assert "\n" not in shown
        # What is read can be written, and is then the same.
        write_labels(path, labels)
        assert read_labels(path) == labels


def test_tags_are_words_each_once() -> None:
    assert clean_tags(["#keep, try", "keep", " x "]) == ("keep", "try", "x")
    with pytest.raises(UserError, match="is no tag"):
        clean_tags(["x" * (TAG_LIMIT + 1)])
    with pytest.raises(UserError, match="17 tags"):
        clean_tags([f"t{number}" for number in range(MOST_TAGS + 1)])


def test_a_long_text_is_refused() -> None:
    assert clean_text("  a\nb ", 10, "note") == "a⏎b"
    with pytest.raises(UserError, match="The note has 11 characters"):
        clean_text("x" * 11, 10, "note")


def test_a_run_is_found_by_its_display_name(run: Run) -> None:
    write_labels(run.path, Labels(name="More data"))
    assert find_run("more data") == run
    # An id that is meant comes first.
    assert find_run("tickets") == run
