"""Code that runs inside the engine's process. vLLM imports it by name; the trainer's side never imports it.

plugin          registers the rest with vLLM
delivery        receives weights, and records where each tensor went
fingerprints    the numbers that verify a sync, from products of modules and fixed vectors
worker          the methods that a trainer can call, and the logits processor that bans ids
"""
