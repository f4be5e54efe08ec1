"""Shapers: rewards are changed before the baseline."""
