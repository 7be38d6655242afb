from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

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


@pytest.mark.long
def test_nothing_is_compiled_before_its_first_call_and_models_are_read_once() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert not told["compilers"]
    assert (told["own"], told["collects"]) == ("torch", True), "torch and Python are left as they were"
    assert (told["before"], told["values"], told["options"]) == (0, [4, 6, 6], [{"dynamic": True}, {}])
    models = Path(transformers.__file__).parent / "models"
    assert told["directories"] < 1.5 * sum(entry.is_dir() for entry in models.iterdir())
    assert told["model"] == "LlamaForCausalLM"
