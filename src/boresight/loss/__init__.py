"""Losses: arrays in, one number out. Nothing here knows of models, pictures or samplers."""
