"""Sampling by vLLM: in the training process, or by a server. Nothing it is told or answers is taken on trust.

options     what a user may say of it
engine      what boresight asks of an engine, and what comes back
local       an engine in the training process
process     what it shares with all else there
server      an engine behind HTTP
child       one that training starts for itself
serve       starts such a server: stock vLLM with what training needs
sampler     prompts to completions, each prompt compared with the engine's
sync        new weights to the engine, and the proof that they arrived
adapter     the same for an adapter that travels by itself

Inside vLLM, and never imported from outside:

plugin      makes vLLM know the rest
delivery    how weights arrive, and where each went
answers     what modules do with fixed vectors
worker      what can be asked, and which ids are never sampled
"""
