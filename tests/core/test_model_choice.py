"""What a model's config.json says of its limits."""

import json

from lightrft_core.model_choice import Limits, limits


def test_limits_are_those_of_the_text_part(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "x", "vocab_size": 7, "text_config": {"vocab_size": 9, "max_position_embeddings": 32}}
        )
    )
    assert limits(str(tmp_path)) == Limits(9, 32)


def test_what_a_config_does_not_say_is_none(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "vocab_size": "many"}))
    assert limits(str(tmp_path)) == Limits(None, None)


def test_a_model_that_is_only_on_a_hub_has_none(tmp_path):
    assert limits("some/model", {"HF_HOME": str(tmp_path)}) == Limits()
