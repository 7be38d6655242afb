"""Model directory checks: unloadable or unsafe models are refused with a clear error before anything is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.models.check import check_model_config, check_model_directory
from core.models.description import read_record, refuse_foreign
from tests.cases import cases
from tests.unprivileged import unprivileged

from .spoiling import (
    copy_model,
    drop_tensors,
    edit_json,
    read_safetensors,
    rename_token,
    split_weights,
    write_safetensors,
)

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return copy_model(tiny_model_dir, tmp_path / "model")


def test_a_whole_model_is_accepted_in_one_file_and_in_shards(model: Path) -> None:
    assert check_model_directory(model) == model
    split_weights(model)
    assert check_model_directory(model) == model


def test_a_hub_cache_of_links_is_accepted(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in model.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert check_model_directory(snapshot) == snapshot
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="not a file that is there"):
        check_model_directory(snapshot)


def _config(**changes: object) -> Callable[[Path], None]:
    return lambda model: edit_json(model / "config.json", **changes)


def _edit(name: str, **changes: object) -> Callable[[Path], None]:
    return lambda model: edit_json(model / name, **changes)


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda model: (model / name).write_text(text)


def _as_pickle(suffix: str) -> Callable[[Path], object]:
    return lambda model: (model / "model.safetensors").rename(model / f"pytorch_model{suffix}")


def _cut(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def _without_shard(model: Path) -> None:
    split_weights(model)
    (model / "model-1.safetensors").unlink()


def _with_shard_cut(model: Path) -> None:
    split_weights(model)
    os.truncate(model / "model-2.safetensors", 2000)


def _with_index(text: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        split_weights(model)
        (model / "model.safetensors.index.json").write_text(text)

    return spoil


def _with_wrong_index(model: Path) -> None:
    split_weights(model)
    index = json.loads((model / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.extra"] = "model-1.safetensors"
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def _as_adapter(model: Path) -> None:
    (model / "config.json").unlink()
    edit_json(model / "adapter_config.json", base_model_name_or_path="org/the-base-7b", peft_type="LORA")


def _as_gguf(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model-q4.gguf").write_bytes(b"GGUF")


def _emptied(model: Path) -> None:
    for path in model.iterdir():
        path.unlink()


def _looped(name: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        (model / name).unlink()
        (model / name).symlink_to(model / name)

    return spoil


def _pipe(name: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        (model / name).unlink()
        os.mkfifo(model / name)

    return spoil


def _with_bigger_vocabulary(model: Path) -> None:
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["zzzz"] = 5000
    path.write_text(json.dumps(content))


def _with_empty_weights(model: Path) -> None:
    write_safetensors(model / "model.safetensors", {}, b"")


def _with_experts(*numbers: int) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        header, data = read_safetensors(model / "model.safetensors")
        for number in numbers:
            name = f"model.layers.0.mlp.experts.{number}.up_proj.weight"
            header[name] = {"dtype": "U8", "shape": [2], "data_offsets": [len(data), len(data) + 2]}
            data += b"ab"
        write_safetensors(model / "model.safetensors", header, data)

    return spoil


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"pickle {suffix}": (_as_pickle(suffix), "pickles only") for suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")},
    "code in config.json": (_config(auto_map={"AutoModel": "evil.Model"}), "config.json has auto_map"),
    "code of the tokenizer": (
        _edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}),
        "tokenizer_config.json has auto_map",
    ),
    "no model_type": (_config(model_type=None), "no model_type"),
    "an encoder": (_config(model_type="bert", architectures=["BertForMaskedLM"]), r"an encoder \(BertForMaskedLM\)"),
    "an encoder without a head": (_config(model_type="xlm-roberta", architectures=None), "an encoder"),
    "an encoder-decoder": (
        _config(model_type="t5", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True),
        "an encoder-decoder",
    ),
    "speech": (_config(model_type="whisper", architectures=None), "an encoder-decoder"),
    "vision": (_config(model_type="vit", architectures=["ViTForImageClassification"]), "a vision model"),
    "images and captions": (_config(model_type="clip", architectures=["CLIPModel"]), "images and their captions"),
    "a classifier": (_config(architectures=["LlamaForSequenceClassification"]), "it classifies texts"),
    "weights cut short": (_cut, "cut short"),
    "a pointer for weights": (_write("model.safetensors", LFS_POINTER), "a Git LFS pointer"),
    "a pointer for the tokenizer": (_write("tokenizer.json", LFS_POINTER), "tokenizer.json is a Git LFS pointer"),
    "no tensors": (_with_empty_weights, "without a single tensor"),
    "a missing shard": (_without_shard, r"lacks model-1\.safetensors, of 2 files"),
    "a shard cut short": (_with_shard_cut, r"model-2\.safetensors"),
    "a damaged index": (_with_index("{"), "is not JSON"),
    "an index without metadata": (_with_index('{"weight_map": {"a": "model-1.safetensors"}}'), "it has no metadata"),
    "an empty index": (_with_index('{"weight_map": {}}'), "names no weights"),
    "an index of other shards": (_with_wrong_index, r"lacks model\.norm\.extra"),
    "other sizes": (_config(hidden_size=128), r"embed_tokens\.weight is \d+ x 64, and should be \d+ x 128"),
    "another width inside": (
        _config(intermediate_size=256),
        r"mlp\.gate_proj\.weight is 128 x 64, and should be 256 x 64",
    ),
    "more layers": (_config(num_hidden_layers=3), "have 2 layers and config.json says 3"),
    "fewer layers": (_config(num_hidden_layers=1), "have 2 layers and config.json says 1"),
    "other heads": (_config(num_key_value_heads=4), "k_proj.weight"),
    "a layer without a part": (lambda model: drop_tensors(model, "layers.1.mlp.up_proj"), "layer 1, mlp.up_proj"),
    "no head": (_config(tie_word_embeddings=False), "no output head"),
    "a bigger vocabulary": (_with_bigger_vocabulary, "tokens up to 5000"),
    "the end's token outside": (
        lambda model: rename_token(model, "<|im_end|>", 7000),
        "<|im_end|>, the eos_token, is token 7000",
    ),
    "an end outside": (_config(eos_token_id=[2, 9999]), "eos_token_id is 9999"),
    "padding outside": (_config(pad_token_id=-2), "pad_token_id is -2"),
    "a generation's end outside": (_edit("generation_config.json", eos_token_id=9999), "generation_config.json: eos"),
    "no vocabulary": (_write("tokenizer.json", "{}"), "has no vocabulary"),
    "a damaged tokenizer": (_write("tokenizer.json", '{"model":'), "tokenizer.json is damaged"),
    "a damaged tokenizer_config": (_write("tokenizer_config.json", "["), "tokenizer_config.json is damaged"),
    "an adapter": (_as_adapter, "an adapter for org/the-base-7b, not a model"),
    "an adapter beside": (
        _edit("adapter_config.json", base_model_name_or_path="x/y"),
        "a model and an adapter for x/y",
    ),
    "a GGUF": (_as_gguf, "has no safetensors, but model-q4.gguf"),
    "no config.json": (lambda model: (model / "config.json").unlink(), "no config.json"),
    "a config.json that is no object": (_write("config.json", "[]"), "not a JSON object"),
    "a deep config.json": (_write("config.json", "[" * 100_000), "is not JSON"),
    "a rather deep config.json": (_write("config.json", '{"a":' * 70 + "1" + "}" * 70), "more than 64 levels deep"),
    "a large config.json": (_write("config.json", " " * (9 << 20)), "is larger than 8 MiB"),
    "a config.json of empty lists": (_write("config.json", '{"a":[' + "[]," * 300_000 + "1]}"), "too many objects"),
    "an immense number of layers": (_config(model_type="unknown", num_hidden_layers=10**8), "says that num_hidden"),
    "an immense part": (
        _config(text_config={"model_type": "llama", "num_hidden_layers": 10**8}),
        r"says that text_config\.num_hidden_layers is 100000000",
    ),
    "experts with a gap": (_with_experts(0, 2), r"lacks model\.layers\.0\.mlp\.experts\.1\.up_proj\.weight"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "no tokenizer"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), r"has no model\.safetensors"),
    "empty": (_emptied, "is empty"),
    "config.json a loop": (_looped("config.json"), "Too many levels of symbolic links"),
    "weights a loop": (_looped("model.safetensors"), "not a file that is there"),
    "config.json a pipe": (_pipe("config.json"), "it is a named pipe"),
    "weights a pipe": (_pipe("model.safetensors"), "not a file that is there"),
}


@cases("name", CASES)
def test_what_cannot_be_loaded_safely_is_refused(tmp_path: Path, tiny_model_dir: Path, name: str) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    spoil, says = CASES[name]
    spoil(model)
    with pytest.raises(UserError, match=says) as caught:
        check_model_directory(model)
    assert caught.value.hint.endswith(".")
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message


def test_a_bert_that_writes_and_a_gpt2_for_pretraining_are_no_encoders(model: Path) -> None:
    edit_json(model / "config.json", model_type="bert", architectures=["BertLMHeadModel"], is_decoder=True)
    check_model_config(model)
    edit_json(model / "config.json", model_type="gpt2", architectures=["GPT2ForPreTraining"], is_decoder=None)
    check_model_config(model)


def test_a_token_outside_that_nothing_uses_is_accepted(model: Path) -> None:
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "content": "<image>", "id": 9000})
    path.write_text(json.dumps(content))
    check_model_directory(model)
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + "<image>")
    with pytest.raises(UserError, match="which the chat template writes, is token 9000"):
        check_model_directory(model)


def test_pickles_and_code_beside_safetensors_do_not_matter(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"whatever")
    (model / "modeling_evil.py").write_text("raise SystemExit")
    assert check_model_directory(model) == model


def test_weights_of_another_family_are_told(model: Path) -> None:
    header, data = read_safetensors(model / "model.safetensors")
    renamed = {name.replace("self_attn", "attention"): entry for name, entry in header.items()}
    write_safetensors(model / "model.safetensors", renamed, data)
    # The present shapes fit; missing weights show when the model is loaded.
    check_model_directory(model)


@cases("name", ["config.json", "model.safetensors", "tokenizer.json", ""])
def test_what_may_not_be_read_is_said_to_be_so(model: Path, name: str) -> None:
    (model / name).chmod(0)
    with pytest.raises(UserError) as caught, unprivileged():
        check_model_directory(model)
    (model / name).chmod(0o755)
    assert caught.value.message == f"{model / name} cannot be read: Permission denied."
    assert caught.value.hint == "Check its permissions."


CODE = {"AutoModel": "evil.Model"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"auto_map": CODE}, r"has auto_map"),
    ({"text_config": {"auto_map": CODE}}, r"has text_config\.auto_map"),
    ({"parts": [{"a": [{"auto_map": "evil.Model"}]}]}, r"has parts\[0\]\.a\[0\]\.auto_map"),
    ({"custom_generate": "owner/name"}, "has custom_generate"),
    ({"_attn_implementation": "kernels-community/x"}, "_attn_implementation names kernels-community/x"),
    ({"attn_implementation": "paged|owner/x@main:f"}, r"names paged\|owner/x@main:f"),
    ({"attn_implementation": {"": "sdpa", "text_config": {"": "o/x"}}}, "names o/x"),
    ({"attn_implementation": ["o/x"]}, "names o/x"),
    ({"vision_config": {"_attn_implementation_internal": "o/x"}}, r"vision_config\._attn_implementation_internal"),
    ({"_experts_implementation": "o/x"}, "_experts_implementation names o/x"),
    ({"a": {"b": {"mamba_kernel": "o/x"}}}, r"a\.b\.mamba_kernel"),
    ({"use_kernels": True}, "use_kernels asks for native code"),
    ({"text_config": {"kernel_config": {"RMSNorm": "o/x"}}}, r"text_config\.kernel_config asks"),
    ({"transformers_weights": "other.safetensors"}, "transformers_weights names other.safetensors"),
]
ACCEPTED: list[dict[str, Any]] = [
    {"_attn_implementation": "eager", "text_config": {"attn_implementation": "sdpa", "linear_conv_kernel_dim": 4}},
    {"attn_implementation": {"": "sdpa", "vision_config": "eager"}, "use_kernels": False, "kernel_config": None},
    {"auto_map": None, "vocabulary_map": {"auto_map": 7, "use_kernels": 8, "Ġkernel": 9}},
    {"auto_map": {}, "_name_or_path": "owner/name", "rope_scaling": {"type": "a/b"}},
]


@cases(("content", "says"), REFUSED)
def test_what_asks_for_the_code_of_others_is_refused_with_its_key(
    tmp_path: Path, tiny_model_dir: Path, content: dict[str, Any], says: str
) -> None:
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        model = copy_model(tiny_model_dir, tmp_path / name)
        edit_json(model / name, **content)
        with pytest.raises(UserError, match=says) as caught:
            check_model_config(model)
        assert name in caught.value.message
        assert caught.value.hint


@cases("content", ACCEPTED)
def test_what_only_looks_like_it_is_accepted(content: dict[str, Any]) -> None:
    description: dict[str, Any] = json.loads(json.dumps(content))
    refuse_foreign(description, Path("config.json"))
    assert description == content, "it is looked at, not changed"
    with pytest.raises(UserError, match=r"inner\.auto_map"):
        refuse_foreign({**description, "inner": {**description, "auto_map": CODE}}, Path("config.json"))


@cases(
    "content",
    [b"", b"[" * 100_000, b"null", b'{"files": []}', b'{"files": {}}', b'{"files": {"a\\u0000": 1}}', b"\xff"],
)
def test_what_is_no_record_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "localtune.json").write_bytes(content)
    assert read_record(tmp_path) is None
