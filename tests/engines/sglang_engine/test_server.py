"""Servers that are not the SGLang that we need."""

import pytest
from lightrft_core.errors import UserError

from tests.engines.served_trials import refusing

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


def test_a_server_without_our_schedulers_says_how_to_start_it(start):
    with refusing(400) as url, pytest.raises(UserError, match="has none of LightRFT's schedulers") as caught:
        start(mode="server", url=url)
    assert caught.value.where == "engine.url"
    assert "python -m lightrft_engines.sglang_engine.serve" in caught.value.hint
