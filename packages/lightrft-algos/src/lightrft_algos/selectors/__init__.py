"""Selectors: which tokens train."""
