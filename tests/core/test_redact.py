from __future__ import annotations

from core.redact import is_secret_name, redact
from core.secrets import find_secret
from tests.cases import cases

TOKEN = "hf_" + "aB3dE" * 7
SECRETS = {
    "a Hugging Face token": TOKEN,
    "an OpenAI key": "sk-proj-" + "aB3dE6gH" * 6,
    "an AWS key": "AKIA" + "ABCD1234EFGH5678",
    "a GitHub token": "ghp_" + "a1B2c3" * 6,
    "a JWT": "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.c2lnbmF0dXJlMTIz",
}


@cases("secret", SECRETS.values(), ids=list(SECRETS))
@cases("around", ["{}", "Bearer {}\n", "url?token={}&x=1", 'File "a.py": {!r}', "«{}»"])
def test_what_is_written_like_a_key_is_gone_and_the_rest_stays(secret: str, around: str) -> None:
    text = around.format(secret)
    redacted = redact(text, {})
    assert secret not in redacted
    assert redacted in (around.format("***"), "url?token=***&x=1")
    assert redact(redacted, {}) == redacted
    assert find_secret(redacted) is None


def test_the_environments_secrets_are_gone_whatever_they_look_like() -> None:
    environment = {"MY_SERVICE_TOKEN": "correct horse battery", "WANDB_API_KEY": "0123abcd" * 5, "HOME": "/home/anna/x"}
    text = "401 for correct horse battery of /home/anna/x (0123abcd0123abcd0123abcd0123abcd0123abcd)"
    assert redact(text, environment) == "401 for *** of /home/anna/x (***)"
    # Too short: it could be a word.
    assert redact("a token", {"X_TOKEN": "token"}) == "a token"


def test_a_url_keeps_its_host_and_an_assignment_its_name() -> None:
    assert redact("https://anna:hunter22@example.net/x", {}) == "https://***@example.net/x"
    assert redact('{"api_key": "k1j2h3g4f5", "n": 1}', {}) == '{"api_key": "***", "n": 1}'
    assert redact("password=Tr0ub4dor3xyz end", {}) == "password=*** end"


def test_a_private_key_is_gone_with_its_lines() -> None:
    body = "\n".join(["MIIEpAIBAAKCAQEA7v" * 3] * 4)
    text = f"before\n-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----\nafter"
    redacted = redact(text, {})
    assert "MIIE" not in redacted
    assert redacted.startswith("before\n***")
    assert redacted.endswith("\nafter")


@cases(
    "text",
    [
        "There is no model /models/sk-tickets-2024-cleaned-final here.",
        "[data]\ntrain = 'rows.jsonl'",
        "Set HF_TOKEN, or password = <your password>.",
        "step 12 of 120: loss 0.412, 318 tok/s",
        "https://huggingface.co/org/name",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text, {}) == text


@cases(("name", "is_one"), [
    ("HF_TOKEN", True), ("wandb_api_key", True), ("AWS_SECRET_ACCESS_KEY", True), ("PASSWORD", True),
    ("max_new_tokens", False), ("special_tokens", False), ("TOKENIZERS_PARALLELISM", False), ("PATH", False),
])  # fmt: skip
def test_names_of_secrets(name: str, is_one: bool) -> None:
    assert is_secret_name(name) is is_one
