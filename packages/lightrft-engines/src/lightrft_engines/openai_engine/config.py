"""Options of the engine openai."""

from lightrft_core.sections import Section
from pydantic import Field


class OpenaiConfig(Section):
    """A running server of OpenAI's kind: `lightrft serve`, vLLM's, or another's. It keeps the weights that it has."""

    url: str = Field(pattern=r"^https?://[^/\s?#@]+(/[^\s?#@]*)?$")
    """Its address, with or without `/v1`, and without a password: `http://127.0.0.1:8000`."""
    model: str | None = Field(default=None, min_length=1)
    """Name of the model there; by default the only one that it has."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the key; the key itself is written nowhere."""
    max_connections: int = Field(default=32, ge=1, le=1024)
    """Completions that are asked for at once."""
    timeout: float = Field(default=600, gt=0)
    """Seconds that the server may take for one completion."""
    time_limit: float | None = Field(default=None, gt=0)
    """Seconds that one call may generate; completions that are not back by then are empty, with the finish reason
    `abort`. By default there is no limit."""
    retries: int = Field(default=5, ge=0, le=20)
    """How often a completion is asked for again when the server is busy (429), failing (5xx) or cut off."""
