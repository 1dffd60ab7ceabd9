"""Sampling by vLLM: in the training process, or by a server. Everything that an engine reports or returns is checked.

Beside the trainer:

options       its options
engine        the interface of an engine, and what it returns
local         an engine in the training process
cleanup       what happens there when an engine ends
server        an engine behind HTTP
client        calls to a server that may go away
calls         HTTP calls with a deadline
inference     requests for completions, and responses
sync_folder   folders in which weights pass to a server
nccl          weights to a server by NCCL
child         a server that training starts for itself
serve         starts such a server: stock vLLM with what training needs
sampler       prompts to completions, each prompt compared with the engine's
sync          new weights to the engine, and the verification that they arrived
adapter       the same for an adapter that is sent by itself

Inside the engine's process, never imported by the trainer's side: `inside`. What both share: `protocol`.
"""
