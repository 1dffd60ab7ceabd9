"""Rollouts: a batch of completions sampled over all ranks, scored, and compared within their groups.

loop               `Rollouts`: owns the sampler, the scorer, dynamic sampling and the store of completions
rollout            `Rollout`: one batch over all ranks, and the assignment of groups to ranks
scored             `Scored`: a group with its advantage and the other inputs of the objective
dynamic_sampling   replaces groups without spread by groups of further prompts
engines            builds the sampler of the engine that the options choose
"""
