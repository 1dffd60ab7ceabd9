"""Sampling with vLLM, in the training process or on a server. Everything that an engine reports or returns is checked.

The trainer's side:

build         the sampler, built from the options
options       the options of vLLM
engine        the interface of an engine
local         an engine in the training process
cleanup       the clean-up in that process when an engine ends
server        an engine behind HTTP
client        calls to a server that may become unavailable
calls         HTTP calls with a deadline
inference     requests for completions, and responses
sync_folder   folders that pass weights to a server
nccl          weights to a server by NCCL
child         a server that the trainer starts itself
serve         starts such a server: stock vLLM with the settings that training needs
sampler       prompts to completions; each prompt is compared with the one that the engine read
sync          sends new weights to the engine, and verifies that they arrived
adapter       the same for an adapter that is sent without its base

`inside` runs in the engine's process, and the trainer's side never imports it. `protocol` is what both sides share.
"""
