"""Groups in, log-probabilities out.

load       a model and its processor, and the facts that other rooms need
vision     images through the vision tower, once each
positions  where every token of a group stands
packing    groups laid into one row
attention  branches that attend to their prompt and to themselves; merged_attention does it faster on a CPU
layouts    the two ways to run groups through a model, and which of them a model gets
head       hidden states to log-probabilities, in chunks
forward    the one function that all passes of all methods go through
reference  the model that the policy is compared with
export     the policy's weights as its saved folder names them; adapter_export: its LoRA factors

What is special about a family of models stands in `boresight.families`, one record each.
"""
