from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

#: In a process of its own, as imports happen once.
SCRIPT = """
import gc, json, sys
from core.worker.process import environment
environment.prepare()
from core.worker.libraries import compiling_on_first_call, import_libraries
import_libraries()
import torch
import transformers.utils.import_utils as utils
compilers = "torch._inductor.compile_fx" in sys.modules
compiled = []
at_once = torch.compile
torch.compile = lambda function, **options: compiled.append(options) or function
with compiling_on_first_call():
    @torch.compile(dynamic=True)
    def double(x): return 2 * x
    triple = torch.compile(lambda x: 3 * x)
before = len(compiled)
values = [double(2), double(3), triple(2)]
from transformers import LlamaForCausalLM
scan = utils.create_import_structure_from_path._read.cache_info()
print(json.dumps({
    "compilers": compilers, "collects": gc.isenabled(), "own": at_once.__module__, "before": before,
    "values": values, "options": compiled, "directories": scan.misses, "model": LlamaForCausalLM.__name__,
}))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.long
def test_the_compiler_is_not_loaded_for_functions_that_are_not_called(told: dict[str, Any]) -> None:
    assert not told["compilers"]


@pytest.mark.long
def test_torch_and_python_are_left_as_they_were(told: dict[str, Any]) -> None:
    assert told["own"] == "torch"
    assert told["collects"]


@pytest.mark.long
def test_what_is_called_is_compiled_then_and_once(told: dict[str, Any]) -> None:
    assert told["before"] == 0
    assert told["values"] == [4, 6, 6]
    assert told["options"] == [{"dynamic": True}, {}]


@pytest.mark.long
def test_transformers_reads_its_models_once_and_still_finds_them(told: dict[str, Any]) -> None:
    from pathlib import Path

    import transformers

    models = Path(transformers.__file__).parent / "models"
    below = sum(entry.is_dir() for entry in models.iterdir())
    assert told["directories"] < 1.5 * below
    assert told["model"] == "LlamaForCausalLM"
