"""Engines that read decision-token log-probabilities."""
