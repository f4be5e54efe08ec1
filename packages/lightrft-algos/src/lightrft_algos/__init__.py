"""Advantages, losses, samplers, filters, shapers, selectors, corrections, and the algorithms that bundle them."""
