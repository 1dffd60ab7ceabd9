"""Losses: arrays in, one number out. Nothing here knows of models, images or samplers."""
