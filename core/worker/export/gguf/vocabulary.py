"""Vocabularies of GGUF files: exactly the tokenizer of the training, which is its ``tokenizer.json``.

llama.cpp's converter loads the tokenizer through transformers. For some model types that replaces the file's
pre-tokenizer by the type's, and a SentencePiece tokenizer without ``tokenizer.model`` gets the same score for all of
its tokens, which changes the tokens of a text. Both are corrected here. Behavior of the tokenizer that llama.cpp cannot
reproduce is reported in a sentence.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.text import one_line

#: Parts of the regular expressions of pre-tokenizers.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
#: Names of splits by the regular expression, and by whether whole words are looked up before merging.
_SPLITS = {(_WORDS + r"\p{N}{1,3}" + _REST, True): "llama-bpe", (_WORDS + r"\p{N}" + _REST, False): "qwen2"}
#: A text that distinguishes tokenizers.
_PROBE = "Hello  World 1234567 it's\n\n  we'RE 3.14, naïve 日本語 кот\t!?"
#: Scores of tokens without a merge, and of added ones, as in SentencePiece and llama.cpp's converter.
_UNMERGED, _ADDED = -1e4, -1000.0
#: llama.cpp's pattern for a model's name, in any case. Special tokens then strip the blanks after them, except for
#: three tokens; and the file does not load if one of these three or ``</s>`` is missing.
_PHI3 = re.compile(r"(phi)-?(3)", re.IGNORECASE)
_END, _SWALLOW_NOTHING = "</s>", frozenset({"<unk>", "<s>", "<|endoftext|>"})
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)


def read_tokenizer(directory: Path) -> dict[str, Any] | None:
    """The content of ``tokenizer.json``; None without one."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def is_sentencepiece(content: dict[str, Any]) -> bool:
    """True if a ``tokenizer.json`` is byte-pair encoding in SentencePiece's way, with byte fallback."""
    model = content.get("model") or {}
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


@contextlib.contextmanager
def plain_tokenizers() -> Iterator[Callable[[Path], Any]]:
    """Inside, transformers loads tokenizers exactly as in their files, and never code that comes with a model.

    Yields:
        Transformers' own way of loading a tokenizer.
    """
    import transformers

    original = transformers.AutoTokenizer.from_pretrained

    def usual(directory: Path) -> Any:
        return original(str(directory), local_files_only=True, trust_remote_code=False)

    def load(directory: Any, *_arguments: Any, **_options: Any) -> Any:
        if (Path(directory) / "tokenizer.json").is_file():
            return transformers.PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
        return usual(directory)

    transformers.AutoTokenizer.from_pretrained = load
    try:
        yield usual
    finally:
        transformers.AutoTokenizer.from_pretrained = original


def pre_tokenizer_name(
    recognize: Callable[[Any], str], tokenizer: Any, directory: Path, usual: Callable[[Path], Any]
) -> str:
    """llama.cpp's name of a tokenizer's pre-tokenizer.

    Args:
        recognize: The converter's recognition by the tokens of a text; it raises for an unknown one.
        tokenizer: The tokenizer as in its file.
        directory: The model's directory.
        usual: Loads the tokenizer in transformers' own way; some then add other tokens at the start of a text.

    Raises:
        UserError: If llama.cpp has no such pre-tokenizer.
    """
    with contextlib.suppress(NotImplementedError):
        return recognize(tokenizer)
    try:
        other = usual(directory)
    except Exception:  # of many kinds: a class that needs other files, or code that is not executed
        other = None
    if other is not None and other.encode(_PROBE, add_special_tokens=False) == tokenizer.encode(
        _PROBE, add_special_tokens=False
    ):
        with contextlib.suppress(NotImplementedError):
            return recognize(other)
    content = read_tokenizer(directory)
    name = None if content is None else _name_by_rules(content)
    if name is None:
        raise UserError(
            "llama.cpp's converter does not know this model's tokenizer: its way of splitting text into words.",
            "Export merged; a newer llama.cpp may know it.",
        )
    return name


def _name_by_rules(content: dict[str, Any]) -> str | None:
    """llama.cpp's name of a pre-tokenizer with exactly these rules; None for others."""
    normalizer, rules = content.get("normalizer"), content.get("pre_tokenizer") or {}
    model = content.get("model") or {}
    if model.get("type") != "BPE" or (normalizer is not None and normalizer.get("type") != "NFC"):
        return None
    steps = rules.get("pretokenizers", [rules])
    # A space at the beginning, and offsets, do not affect splitting.
    *before, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    regex, merges_last = bool(last.get("use_regex", True)), bool(model.get("ignore_merges"))
    if not before:
        return "gpt-2" if regex and not merges_last else None
    if len(before) != 1:
        return None
    step = before[0]
    if step.get("type") == "Digits":
        return "smollm" if step.get("individual_digits") and regex and not merges_last else None
    if step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert") or regex:
        return None
    return _SPLITS.get((str((step.get("pattern") or {}).get("Regex")), merges_last))


def sentencepiece_vocabulary(content: dict[str, Any], size: int) -> tuple[list[bytes], list[float], list[int]]:
    """Tokens, scores and types of a SentencePiece tokenizer, from its ``tokenizer.json``.

    Scores are the order of merges: llama.cpp first merges the pair whose result has the highest score, and
    ``tokenizer.json`` lists the merges in that order.

    Args:
        content: The content of the file.
        size: The model's number of tokens; missing ones are filled up.
    """
    vocabulary: dict[str, int] = content["model"]["vocab"]
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(content["model"]["merges"]):
        ranks.setdefault("".join(merge.split(" ", 1) if isinstance(merge, str) else merge), rank)
    tokens = [f"[PAD{number}]".encode() for number in range(size)]
    scores, kinds = [_UNMERGED] * size, [_UNUSED] * size
    unknown = content["model"].get("unk_token")
    for text, number in vocabulary.items():
        if number >= size:
            continue
        tokens[number] = text.encode("utf-8")
        scores[number] = -float(ranks[text]) if text in ranks else _UNMERGED
        is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        kinds[number] = _BYTE if is_byte else _UNKNOWN if text == unknown else _NORMAL
    for token in content.get("added_tokens", ()):
        number, text = int(token["id"]), str(token["content"])
        if number >= size or kinds[number] == _UNKNOWN:
            continue
        tokens[number] = (text if token.get("special") else text.replace("\u2581", " ")).encode("utf-8")
        kinds[number] = _CONTROL if token.get("special") else _USER_DEFINED
        scores[number] = _ADDED
    return tokens, scores, kinds


def adds_space_prefix(content: dict[str, Any], begins_with_token: bool) -> bool:
    """True if llama.cpp must put a space before a text: before each piece of text between special tokens.

    Args:
        content: The content of ``tokenizer.json``.
        begins_with_token: True if texts begin with a special token, so that none begins with plain text.
    """
    schemes = _prefix_schemes(content)
    return _prepends(content) or "always" in schemes or ("first" in schemes and not begins_with_token)


def prefix_difference(content: dict[str, Any], begins_with_token: bool) -> str | None:
    """A sentence on texts where llama.cpp adds a space and the tokenizer does not; None without any.

    Args:
        content: The content of ``tokenizer.json``, of a SentencePiece tokenizer.
        begins_with_token: As for :func:`adds_space_prefix`.
    """
    if _prepends(content) or not adds_space_prefix(content, begins_with_token):
        return None
    if "always" in _prefix_schemes(content):
        return (
            "Text that begins with a blank after a special token gets one more from llama.cpp, and none in training: "
            "there, a prompt has other tokens than in training."
        )
    return (
        "llama.cpp puts a space before the text after each special token, and training had one at the beginning alone: "
        "there, a prompt has other tokens than in training."
    )


def _prepends(content: dict[str, Any]) -> bool:
    """True if a space comes before every piece of text, whatever its beginning."""
    normalizer = content.get("normalizer") or {}
    return any(step.get("type") == "Prepend" for step in normalizer.get("normalizers", [normalizer]))


def _prefix_schemes(content: dict[str, Any]) -> list[str]:
    """Rules for a space before a piece of text that does not begin with one: ``always``, ``first`` or ``never``."""
    rules = content.get("pre_tokenizer") or {}
    return [
        step.get("prepend_scheme", "always")
        for step in rules.get("pretokenizers", [rules])
        if step.get("type") == "Metaspace"
    ]


def name_for_blanks(name: str, content: dict[str, Any]) -> tuple[str, str | None]:
    """A model's name with which llama.cpp strips the same blanks after special tokens as the tokenizer.

    llama.cpp decides by the name alone: with ``phi-3`` in it, special tokens strip blanks as in Phi 3; with any other
    name they do not.

    Args:
        name: The intended name of the model.
        content: The content of ``tokenizer.json``.

    Returns:
        The name, changed if necessary; and a sentence on blanks that only one of the two strips, None without any.
    """
    added: list[dict[str, Any]] = content.get("added_tokens") or []
    texts = {str(token["content"]) for token in added}
    swallowing = {str(token["content"]) for token in added if token.get("rstrip")}
    as_phi3 = (texts | {_END}) - _SWALLOW_NOTHING
    vocabulary = (content.get("model") or {}).get("vocab")
    known = texts | (vocabulary.keys() if isinstance(vocabulary, dict) else set())
    if known >= {_END, *_SWALLOW_NOTHING} and len(swallowing ^ as_phi3) < len(swallowing):
        different = swallowing ^ as_phi3
        name = name if _PHI3.search(name) else f"{name} (Phi-3)" if name else "Phi-3"
    else:
        different = swallowing
        name = _PHI3.sub(r"\1 \2", name)
    different |= {str(token["content"]) for token in added if token.get("lstrip")}
    if not different:
        return name, None
    return name, (
        f"Blanks beside some special tokens, such as {one_line(min(different), 60)}, are swallowed either by llama.cpp "
        "or by the training: there, a prompt has other tokens than in training."
    )
