"""The engine that asks a running server: it takes no weights, so it measures and never trains."""
