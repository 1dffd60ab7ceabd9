"""Prompts in, completions out: sampling from the policy."""
