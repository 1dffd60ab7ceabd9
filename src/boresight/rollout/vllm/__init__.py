"""Sampling by vLLM: in the training process, or by a server. Nothing it is told or answers is taken on trust.

options     what a user may say of it
engine      what boresight asks of an engine, and what comes back
local       an engine in the training process
server      an engine behind HTTP
serve       starts such a server: stock vLLM with what training needs
sampler     prompts to completions, each prompt compared with the engine's
sync        new weights to the engine, and the proof that they arrived
worker      what runs inside vLLM; nothing else in boresight imports it
"""
