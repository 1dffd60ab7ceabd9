"""What runs inside the engine's process. vLLM imports it by name; the trainer's side never does.

plugin          makes vLLM know the rest
delivery        how weights arrive, and where each went
fingerprints    what modules do to fixed vectors, by which a sync is verified
worker          what a trainer can call, and which ids are never sampled
"""
