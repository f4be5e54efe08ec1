"""Losses, not reduced. One file per loss."""
