"""Groups in, log-probabilities out.

load       a model and its processor, and the facts that other rooms need
vision     images through the tower, once each
positions  where every token of a group stands
packing    groups laid into one row
attention  branches that attend to their prompt and to themselves
head       hidden states to log-probabilities, in chunks
forward    the one function that all passes of all methods go through
reference  the model that the policy is compared with
"""
