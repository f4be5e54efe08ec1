"""Advantages: rewards of siblings become a number per token. One file per estimator."""
