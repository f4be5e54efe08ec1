"""Samplers: prompts and an engine become groups of rollouts."""
