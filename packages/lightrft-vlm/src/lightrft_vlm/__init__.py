"""Vision, video and audio language models for LightRFT."""

__version__ = "0.1.0"
