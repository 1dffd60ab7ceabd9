"""Checks of a model before training."""
