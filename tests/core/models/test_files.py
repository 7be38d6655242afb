"""Model records, read back from a model's directory."""

from __future__ import annotations

from pathlib import Path

from core.models.description import read_record
from tests.cases import cases


@cases(
    "content",
    [b"", b"[" * 100_000, b"null", b'{"files": []}', b'{"files": {}}', b'{"files": {"a\\u0000": 1}}', b"\xff"],
)
def test_what_is_no_record_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "localtune.json").write_bytes(content)
    assert read_record(tmp_path) is None
