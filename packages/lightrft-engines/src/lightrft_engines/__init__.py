"""Training strategies, engines and the text model adapter of LightRFT."""
