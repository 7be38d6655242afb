"""Use of a run's result outside the app: Python code to paste."""

from __future__ import annotations

import os
from pathlib import Path

from core.errors import UserError
from core.models.adapters import CONFIG
from core.models.description import read_description

#: Answer length in the example, in tokens.
_LENGTH = 256


def python_code(result: Path, *, is_model: bool) -> str:
    """Python code that loads a result with PEFT and Transformers, and asks it a question.

    Args:
        result: Directory of the adapter or the model.
        is_model: Whether it is a whole model.
    """
    tokenizer = result if is_model or os.path.isfile(result / "tokenizer_config.json") else None
    if is_model:
        imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
        loading = [f'model = AutoModelForCausalLM.from_pretrained({_quoted(result)}, dtype="auto")']
    else:
        base = _base_of(result)
        tokenizer = tokenizer or Path(base)
        imports = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
        ]
        loading = [
            f'base = AutoModelForCausalLM.from_pretrained({_quoted(base)}, dtype="auto")',
            f"model = PeftModel.from_pretrained(base, {_quoted(result)})",
        ]
    return "\n".join(
        [
            *imports,
            "",
            *loading,
            f"tokenizer = AutoTokenizer.from_pretrained({_quoted(tokenizer or result)})",
            'messages = [{"role": "user", "content": "…"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
            f"output = model.generate(**inputs, max_new_tokens={_LENGTH})",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )


def _base_of(adapter: Path) -> str:
    """The base model that an adapter was trained on, as its configuration names it."""
    try:
        name = (read_description(adapter / CONFIG) or {}).get("base_model_name_or_path")
    except UserError:
        name = None
    return name if isinstance(name, str) and name else "the base model"


def _quoted(path: Path | str) -> str:
    """A path as a Python string; a repr is one whatever the path has in it."""
    text = os.fspath(path)
    return f'"{text}"' if text.isprintable() and '"' not in text and "\\" not in text else ascii(text)
