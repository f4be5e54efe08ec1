import pytest
from lightrft_core.redaction import redact, redact_json

ENVIRON = {
    "WANDB_API_KEY": "0123456789abcdef",
    "HF_TOKEN_PATH": "/home/me/token",
    "TOKENIZERS_PARALLELISM": "disabled!",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key 0123456789abcdef used", "key *** used"),
        ("/home/me/token and disabled!", "/home/me/token and disabled!"),
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer ***"),
        ("https://user:password@host.org/path", "https://***@host.org/path"),
        ("  api_key: literal value\nlr: 1", "  api_key: ***\nlr: 1"),
        ("pad_token: <pad>\nstop_tokens: [1]", "pad_token: <pad>\nstop_tokens: [1]"),
        ("ghp_abcdefghijklmnopqrst", "***"),
    ],
)
def test_secrets_are_masked_and_nothing_else(text, expected):
    assert redact(text, ENVIRON) == expected


def test_values_under_secret_keys_are_masked_and_names_of_variables_stay():
    value = {"api_key": "x", "auth_env": "RM_TOKEN", "list": ["0123456789abcdef"], "n": 3, "pad_token": "<pad>"}
    expected = {"api_key": "***", "auth_env": "RM_TOKEN", "list": ["***"], "n": 3, "pad_token": "<pad>"}
    assert redact_json(value, ENVIRON) == expected
