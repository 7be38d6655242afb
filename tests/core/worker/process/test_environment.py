import json
import os
import subprocess
import sys
from pathlib import Path


def run_python(code: str, **variables: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **variables}
    )
    return result.stdout


def test_the_private_variables_are_set_whatever_the_user_has() -> None:
    code = (
        "import json, os; from core.worker.process import environment; environment.prepare(); "
        "print(json.dumps(dict(os.environ)))"
    )
    found = json.loads(run_python(code, HF_HUB_OFFLINE="0", WANDB_MODE="online", TOKENIZERS_PARALLELISM="true"))
    assert found["HF_HUB_OFFLINE"] == found["TRANSFORMERS_OFFLINE"] == found["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert found["WANDB_MODE"] == "offline"
    assert found["TOKENIZERS_PARALLELISM"] == "true"
    assert "expandable_segments:True" in found["PYTORCH_ALLOC_CONF"]


def test_no_native_code_is_fetched_for_bitsandbytes(tmp_path: Path) -> None:
    """A package called kernels, as the hub's is, must not even be asked."""
    (tmp_path / "kernels.py").write_text(
        "def __getattr__(name):\n"
        f"    open({str(tmp_path / 'asked')!r}, 'a').write(name + '\\n')\n"
        "    raise AttributeError(name)\n"
    )
    run_python(
        "from core.worker.process import environment; environment.prepare(); import bitsandbytes, transformers",
        PYTHONPATH=str(tmp_path),
        OMP_NUM_THREADS="1",
    )
    assert not (tmp_path / "asked").exists()
