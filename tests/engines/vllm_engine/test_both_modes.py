"""What holds in this process holds in a server, on a real vLLM."""

import pytest

from tests.engines.served_checks import *  # noqa: F403  # each is a test of this engine

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
