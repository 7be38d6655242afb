from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.helper import Helper
from tests.core.export.tiny_gguf import write_tiny_gguf
from tests.core.export.trained_run import merged_model

pytest.importorskip("llama_cpp_py_sync")

_PROGRAM = """
import sys
import numpy as np
from pathlib import Path
from core.worker.export.llama.model import GgufModel
model = GgufModel(Path(sys.argv[1]), exact=True)
tokens = np.load(sys.argv[2]).tolist()
np.save(sys.argv[3], np.stack(list(model.logits(tokens, range(0, len(tokens), 2)))))
print("[]")
"""


def test_logits_of_long_rows_are_those_of_transformers(tmp_path: Path, tiny_model_dir: Path) -> None:
    import torch

    model, tokenizer = merged_model(tiny_model_dir, None)
    model.config.max_position_embeddings = 2048
    path = write_tiny_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    tokens = np.random.default_rng(0).integers(3, 300, 1300)
    np.save(tmp_path / "tokens.npy", tokens)
    # In a process of its own, as a crash in the library must not take the tests along.
    command = (sys.executable, "-c", _PROGRAM, str(path), str(tmp_path / "tokens.npy"), str(tmp_path / "found.npy"))
    with Helper(command) as helper:
        assert list(helper.answers()) == [[]]
    found: Any = np.load(tmp_path / "found.npy")
    with torch.no_grad():
        wanted = model(input_ids=torch.from_numpy(tokens)[None]).logits[0, ::2].numpy()
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-3)
