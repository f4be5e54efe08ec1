"""Rule rewards and tasks for LightRFT."""

__version__ = "0.1.0"
