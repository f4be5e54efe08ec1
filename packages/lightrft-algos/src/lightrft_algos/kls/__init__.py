"""Estimators of KL(policy || reference), per token. One file per estimator."""
