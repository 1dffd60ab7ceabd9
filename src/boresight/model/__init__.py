"""Groups in, log-probabilities out.

load       a model and its processor, and the facts that other rooms need
quantised  weights in 4 or 8 bits: how they are loaded, and what they are as floating-point numbers
vision     images through the vision tower, once each
positions  position ids of every token of a group
packing    groups packed into one row
attention  branches that attend to their prompt and to themselves, and the choice of how: merged_attention by flash_kernels, or SDPA
layouts    the two ways to run groups through a model, and the choice between them
head       hidden states to log-probabilities, in chunks
forward    the one function that all forward passes of all methods use
offloading activations in the CPU's memory between forward and backward pass
parts      a plan by part: where adapters go, and which weights are trained; part_options: the options that state it
reference  the model that the policy is compared with
export     the policy's weights under the names of its saved folder; adapter_export: its LoRA factors

`boresight.families` has one record per model family of what is special about it.
"""
