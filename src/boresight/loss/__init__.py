"""Losses: functions from tensors to a scalar. They do not depend on models, images or samplers."""
