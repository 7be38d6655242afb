from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.export.request import ExportRequest
from tests.cases import cases

RUN = Path("/runs/20261126-120000-tickets")


@cases(
    ("values", "says"),
    [
        ({"kind": "onnx"}, "no kind of export called onnx"),
        ({"kind": "merged", "quant": "Q8_0"}, "An export to merged has no weights of type Q8_0"),
        ({"kind": "adapter", "quant": "F16"}, "has no type of weights to choose"),
        (
            {"kind": "gguf", "quant": "Q8_0", "adapter_only": True},
            "of the adapter alone has no type of weights to choose",
        ),
        ({"kind": "merged", "adapter_only": True}, "Only a GGUF file can be of the adapter alone"),
        ({"kind": "merged", "quant": "F16", "adapter_only": True}, "Only a GGUF file can be of the adapter alone"),
        ({"kind": "merged", "merge_from": "elsewhere"}, "not merged from elsewhere"),
        ({"kind": "gguf", "rows": -1}, "compared on 0 to 1000 rows, not -1"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ExportRequest(RUN, **values)
