"""Our own batched decoder on transformers models: a prompt is read once, its siblings are written side by side."""
