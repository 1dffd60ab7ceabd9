"""How an engine in the training process gets its first weights: none, since the trainer sends them all."""

from __future__ import annotations

from torch import nn
from vllm.config import ModelConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

from boresight.rollout.vllm.names import LOAD_FORMAT


@register_model_loader(LOAD_FORMAT)
class AwaitingLoader(DummyModelLoader):
    """Random parameters, to be replaced by a sync.

    vLLM's own dummy loader also overwrites buffers that no checkpoint holds (the scale and shift of a tower's input, say), and nothing
    that is sent later would mend them.
    """

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        super().load_weights(model, model_config)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
