"""Conversion of models to GGUF with llama.cpp's converter, as a job.

The converter is imported from its own directory, whose package ``gguf`` is newer than the installed one.
:mod:`core.worker.export.gguf.write` prepares its inputs in a model's directory. One tensor at a time is in memory.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.data.conversation import RowError
from core.errors import UserError
from core.export.plan import READING_MODEL, WRITING
from core.jobs.process import Answers, growing
from core.template.render import ChatTemplate
from core.text import one_line
from core.worker.export.gguf.vocabulary import (
    adds_space_prefix,
    is_sentencepiece,
    name_for_blanks,
    plain_tokenizers,
    pre_tokenizer_name,
    prefix_difference,
    read_tokenizer,
    sentencepiece_vocabulary,
)

_TEMPLATE = "tokenizer.chat_template"
_NAME = "general.name"
_TOKENS = "tokenizer.ggml.tokens"
#: Keys of the tokens that end a text, a turn and a message; llama.cpp finds more of them by their texts.
_EOS_KEY, *_STOP_KEYS = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
#: Tokens that the converter sets by number for whole families.
_GUESSED = ("eot", "eom", "fim_pre", "fim_suf", "fim_mid", "fim_sep", "prefix", "suffix", "middle", "fsep")
#: Warnings of the converter about a part of the model that it drops.
_FATAL = re.compile(r"Unknown RoPE type: (?!default$)")


def convert(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Write a model as GGUF.

    Args:
        job: ``converter``, ``model`` and ``target`` (paths); ``quant``; ``entries`` of the metadata; ``stops``;
            ``template``, the chat template if there is one; ``base_gguf`` or None.
        answers: Receives the progress.

    Returns:
        ``notes``: sentences on differences between llama.cpp and the training.
    """
    answers.progress("importing the converter")
    import_converter(job["converter"])
    import torch

    model, target = Path(job["model"]), Path(job["target"])
    warnings = _Warnings()
    logger = logging.getLogger()
    logger.addHandler(warnings)
    try:
        with torch.inference_mode(), plain_tokenizers() as usual:
            answers.progress(READING_MODEL)
            instance = open_model(model, target, f"{'ALL' if job['quant'] == 'F32' else 'MOSTLY'}_{job['quant']}")
            instance.prepare_tensors()
            _prepare_vocabulary(instance, model, job, usual)
            instance.prepare_metadata(vocab_only=False)
            writer = instance.gguf_writer
            notes = _set_metadata(writer, model, job)
            _limit_context(writer, instance.hparams)
            warnings.refuse_fatal()
            total = sum(tensor.nbytes for tensor in writer.tensors[0].values())
            with growing(answers, WRITING, target, total):
                writer.write_header_to_file(path=target)
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
            writer.close()
    finally:
        logger.removeHandler(warnings)
    return {"notes": notes}


class _Warnings(logging.Handler):
    """Collects the converter's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def refuse_fatal(self) -> None:
        """Raise for a warning that means a wrong model.

        Raises:
            UserError: If there is one.
        """
        for text in self.texts:
            if _FATAL.match(text):
                raise UserError(
                    f"llama.cpp's converter cannot carry a part of this model over: {one_line(text, 200)}.",
                    "Export merged.",
                )


def _prepare_vocabulary(instance: Any, model: Path, job: dict[str, Any], usual: Callable[[Path], Any]) -> None:
    """Make the converter write the tokenizer of the training."""
    content = read_tokenizer(model)
    embeddings = instance.gguf_writer.tensors[0].get("token_embd.weight")
    rows = None if embeddings is None else int(embeddings.shape[0])
    if job["base_gguf"] is not None and _copied_tokens(Path(job["base_gguf"]), rows):
        instance.set_vocab = functools.partial(_copy_vocabulary, instance.gguf_writer, Path(job["base_gguf"]))
        return
    recognize = instance.get_vocab_base_pre
    instance.get_vocab_base_pre = lambda tokenizer: pre_tokenizer_name(recognize, tokenizer, model, usual)
    if content is not None and is_sentencepiece(content) and not (model / "tokenizer.model").is_file():
        size = rows or int(instance.hparams["vocab_size"])
        instance.set_vocab = functools.partial(_write_sentencepiece, instance.gguf_writer, content, model, size)


def _write_sentencepiece(writer: Any, content: dict[str, Any], model: Path, size: int) -> None:
    import gguf

    tokens, scores, kinds = sentencepiece_vocabulary(content, size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    gguf.SpecialVocab(model, n_vocab=size).add_to_gguf(writer, quiet=True)


def _copied_tokens(source: Path, rows: int | None) -> bool:
    """True if the tokenizer of a GGUF file fits a model with this many tokens."""
    import gguf

    field = gguf.GGUFReader(str(source)).fields.get(_TOKENS)
    return field is not None and len(field.data) == rows


def _copy_vocabulary(writer: Any, source: Path) -> None:
    """Copy the tokenizer of a GGUF file."""
    import gguf

    for field in gguf.GGUFReader(str(source)).fields.values():
        if field.name.startswith("tokenizer."):
            kind, *inner = field.types
            writer.kv_data[0][field.name] = gguf.GGUFValue(field.contents(), kind, inner[-1] if inner else None)


def _set_metadata(writer: Any, model: Path, job: dict[str, Any]) -> list[str]:
    """Set the export's entries, and those that keep a conversation's tokens as in training.

    Returns:
        Sentences on remaining differences.
    """
    import gguf

    found = writer.kv_data[0]
    template, content = job["template"], read_tokenizer(model)
    notes: list[str | None] = []
    if template is not None:
        for key in [key for key in found if key == "tokenizer.chat_templates" or key.startswith(_TEMPLATE)]:
            del found[key]
    for key, kind, value in job["entries"]:
        found[key] = gguf.GGUFValue(value, getattr(gguf.GGUFValueType, kind.upper()))
    _set_stops(found, job["stops"], gguf)
    if content is not None:
        name, note = name_for_blanks(str(found[_NAME].value) if _NAME in found else "", content)
        notes.append(note)
        if name:
            found[_NAME] = gguf.GGUFValue(name, gguf.GGUFValueType.STRING)
    if template is not None:
        notes.append(_set_prompt(found, template, content, is_copied=job["base_gguf"] is not None))
    return [note for note in notes if note is not None]


def _set_prompt(found: dict[str, Any], template: str, content: dict[str, Any] | None, *, is_copied: bool) -> str | None:
    """Set the tokens and spaces that programs put around a template's prompts.

    Args:
        found: The metadata.
        template: The chat template.
        content: The content of ``tokenizer.json``, if there is one.
        is_copied: The tokenizer comes from a GGUF file, which has its own rule for spaces before text.

    Returns:
        A sentence on places where llama.cpp adds a space and the training did not; None without any.
    """
    import gguf

    bos = _text(found, "tokenizer.ggml.bos_token_id")
    prompt = _prompt(template, {"bos_token": bos, "eos_token": _text(found, "tokenizer.ggml.eos_token_id")})
    if prompt is None:
        return None
    flag = functools.partial(gguf.GGUFValue, type=gguf.GGUFValueType.BOOL)
    # Programs add this token before the rendered prompt, unless it begins with it already.
    if not (bos and prompt.startswith(bos)):
        found["tokenizer.ggml.add_bos_token"] = flag(False)
    elif found["tokenizer.ggml.model"].value != "llama" and "tokenizer.ggml.add_bos_token" not in found:
        # Programs differ where the key is missing.
        found["tokenizer.ggml.add_bos_token"] = flag(_begins_texts(content, bos))
    # These tokens would go to the end of a prompt.
    for name in ("eos", "sep"):
        if (key := f"tokenizer.ggml.add_{name}_token") in found:
            found[key] = flag(False)
    if content is None or found["tokenizer.ggml.model"].value != "llama" or is_copied:
        return None
    begins = any(prompt.startswith(token["content"]) for token in content.get("added_tokens", ()))
    found["tokenizer.ggml.add_space_prefix"] = flag(adds_space_prefix(content, begins))
    return prefix_difference(content, begins)


def _begins_texts(content: dict[str, Any] | None, bos: str) -> bool:
    """True if a tokenizer puts a token before every text."""
    return bos in json.dumps((content or {}).get("post_processor"), ensure_ascii=False)


def _limit_context(writer: Any, settings: dict[str, Any]) -> None:
    """Limit the context of a model whose sliding window llama.cpp does not implement to that window: up to there the
    model is the same.
    """
    import gguf

    window, key = settings.get("sliding_window"), f"{writer.arch}.context_length"
    is_plain = settings.get("model_type") == "mistral" and writer.arch == "llama"
    if is_plain and isinstance(window, int) and key in writer.kv_data[0] and window < writer.kv_data[0][key].value:
        writer.kv_data[0][key] = gguf.GGUFValue(window, gguf.GGUFValueType.UINT32)


def _set_stops(found: dict[str, Any], stops: list[int], gguf: Any) -> None:
    """Name the tokens that end an answer: there is room for two besides the tokenizer's own end.

    The end itself stays, as templates may write its text. A token that the converter guessed from the architecture is
    removed if it is a normal one.
    """
    kinds = found.get("tokenizer.ggml.token_type")
    for name in _GUESSED:
        key = f"tokenizer.ggml.{name}_token_id"
        if key in found and kinds is not None and kinds.value[int(found[key].value)] == gguf.TokenType.NORMAL:
            del found[key]
    eos = found.get(_EOS_KEY)
    others = [stop for stop in stops if eos is None or stop != int(eos.value)]
    for key, stop in zip(_STOP_KEYS if eos is not None else (_EOS_KEY, *_STOP_KEYS), others, strict=False):
        found[key] = gguf.GGUFValue(int(stop), gguf.GGUFValueType.UINT32)


def _text(found: dict[str, Any], key: str) -> str:
    """The text of a special token; empty without one."""
    if key not in found:
        return ""
    token = found[_TOKENS].value[int(found[key].value)]
    return token.decode("utf-8", errors="replace") if isinstance(token, bytes) else str(token)


def _prompt(template: str, specials: dict[str, str]) -> str | None:
    """The prompt of a question; None if the template rejects it."""
    try:
        return ChatTemplate(template, specials).render([{"role": "user", "content": "a"}], add_generation_prompt=True)
    except RowError:
        return None


# The converter.

#: Names used by the wheel's model classes but missing in its slightly older package ``gguf``. Without stand-ins, whole
#: modules could not be imported because of classes that are not needed.
_MISSING = {
    "MODEL_TENSOR": ("DSPARK_CONF_PROJ", "DSPARK_MARKOV_W1", "DSPARK_MARKOV_W2"),
    "MODEL_ARCH": ("HY_V3", "LAGUNA", "MINIMAXM3", "NANBEIGE"),
}


def import_converter(directory: str) -> Any:
    """Import the converter; afterwards ``gguf`` is its own package of that name in the whole process.

    Args:
        directory: Its directory; see :mod:`core.worker.export.gguf.converter`.

    Returns:
        Its package ``gguf``.
    """
    if directory not in sys.path:
        sys.path.insert(0, directory)
    import gguf

    if not Path(gguf.__file__).is_relative_to(directory):
        raise RuntimeError("another package named gguf is imported already")
    for kind, names in _MISSING.items():
        for name in names:
            if not hasattr(getattr(gguf, kind), name):
                setattr(getattr(gguf, kind), name, f"missing {name}")
    return gguf


def open_model(directory: Path, target: Path, file_type: str) -> Any:
    """The converter's object for a model, which reads tensors lazily.

    Args:
        directory: The model's directory.
        target: The file to write.
        file_type: A member of ``gguf.LlamaFileType``.

    Raises:
        UserError: If the converter has no working class for the model's architecture.
    """
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    settings = _with_earlier_names(ModelBase.load_hparams(directory, False))
    name = get_model_architecture(settings, ModelType.TEXT)
    found = get_model_class(name)
    if found.model_arch not in gguf.MODEL_ARCH_NAMES:
        raise UserError(
            f"llama.cpp's converter in the version that is used here cannot write {one_line(name, 80)}.",
            "Export merged; a newer llama.cpp may write it.",
        )
    kind = getattr(gguf.LlamaFileType, file_type)
    return found(directory, kind, target, model_name=directory.name, hparams=settings)


def _with_earlier_names(settings: dict[str, Any]) -> dict[str, Any]:
    """A configuration with keys that transformers has moved, at the places where the converter looks for them."""
    rope = settings.get("rope_parameters")
    partial = rope.get("partial_rotary_factor") if isinstance(rope, dict) else None
    return settings if partial is None else {"rotary_pct": partial, "partial_rotary_factor": partial} | settings
