"""Filters: which groups train."""
