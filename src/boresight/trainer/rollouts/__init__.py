"""Rollouts: a batch of completions sampled over all ranks, scored, and compared within their groups.

loop               `Rollouts`: the object that owns sampler, scorer, dynamic sampling and the store of completions
rollout            `Rollout`: what one batch over all ranks holds, and which rank learns from what
scored             `Scored`: a group with its advantage, on its way through the optimizer steps
dynamic_sampling   groups without spread replaced by groups of further prompts
engines            which engine the options ask for
"""
