"""What the first lines of a TRL script import: its parser, its groups of arguments, and what is made of them.

```python
from boresight import GRPOConfig, GRPOTrainer, ModelConfig, ScriptArguments, TrlParser, get_peft_config

parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
script_args, training_args, model_args = parser.parse_args_and_config()
```
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from transformers import HfArgumentParser
from transformers.hf_argparser import DataClassType

from boresight.cli.adapter import lora_config
from boresight.cli.config_file import as_words, read_yaml
from boresight.cli.options import NOT_HERE, AdapterFlags, ModelFlags
from boresight.cli.quantised import check_quantisation, quantisation_config
from boresight.errors import ConfigError, nearest
from boresight.option_checks import check_options
from boresight.options import option


@dataclass
class ScriptArguments:
    """The data set of a script, as in TRL."""

    dataset_name: str | None = option(None, "The rows: a hub id, a folder or a file.")
    dataset_config: str | None = option(None, "Which configuration of a data set on the hub.")
    dataset_train_split: str = option("train", "Which split to train on.")
    dataset_test_split: str = option("test", "Which split to evaluate on.")
    dataset_streaming: bool = option(False, "Stream the rows instead of loading them first.")
    ignore_bias_buffers: bool = option(False, "No supported model needs it.")


@dataclass
class ModelConfig(ModelFlags, AdapterFlags):
    """The model and its adapter, as in TRL, except that `dtype` unset keeps the checkpoint's own type for frozen weights."""

    lora_task_type: str = option("CAUSAL_LM", "Every supported model is a causal language model.")
    bnb_4bit_quant_storage: str | None = option(
        None, "It serves FSDP alone, which cannot divide quantised weights here."
    )

    def __post_init__(self) -> None:
        check_options(self)


class TrlParser(HfArgumentParser):
    """transformers' parser of dataclasses, which also reads a YAML file named by `--config`.

    The command line overrides the file. The file's `env` sets environment variables.
    """

    def parse_args_and_config(
        self,
        args: Iterable[str] | None = None,
        return_remaining_strings: bool = False,
        fail_with_unknown_args: bool = True,
    ) -> tuple[DataClassType, ...]:
        """One instance of each dataclass.

        Args:
            args: the command line; None: that of the process.
            return_remaining_strings: also return the words that belong to no dataclass, as a last element.
            fail_with_unknown_args: raise where a word or a key of the file belongs to none.

        Raises:
            ConfigError: the file cannot be read, or holds an unknown option.
        """
        words = list(sys.argv[1:] if args is None else args)
        unknown: list[str] = []
        if "--config" in words:
            place = words.index("--config")
            if place + 1 == len(words):
                raise ConfigError("--config needs the path of a YAML file.")
            path = words[place + 1]
            del words[place : place + 2]
            unknown = self._take(
                path, read_yaml(path), keep_unknown=return_remaining_strings or not fail_with_unknown_args
            )
        found = self.parse_args_into_dataclasses(
            args=words, return_remaining_strings=return_remaining_strings or not fail_with_unknown_args
        )
        if return_remaining_strings:
            return (*found[:-1], [*found[-1], *unknown])
        return found if fail_with_unknown_args else found[:-1]

    def _take(self, path: str, content: Mapping[str, Any], *, keep_unknown: bool) -> list[str]:
        """Make the file's values the defaults, and return the words of unknown ones."""
        actions = {action.dest: action for action in self._actions}
        unknown: list[str] = []
        for name, value in content.items():
            if name not in actions:
                if not keep_unknown:
                    raise ConfigError(f"{path}: there is no option {name!r}.{nearest(name, actions)}")
                unknown += as_words(name, value)
                continue
            actions[name].default, actions[name].required = value, False
        return unknown


def get_peft_config(model_args: ModelConfig) -> Any:
    """The adapter's configuration, or None if the weights themselves are trained (`use_peft=False`)."""
    return lora_config(model_args) if model_args.use_peft else None


def get_quantization_config(model_args: ModelConfig) -> Any:
    """transformers' `BitsAndBytesConfig`, or None if neither `load_in_4bit` nor `load_in_8bit` is set.

    Raises:
        ConfigError: both are set, or the codes are to be stored in another dtype.
    """
    if model_args.bnb_4bit_quant_storage is not None:
        raise ConfigError(f"bnb_4bit_quant_storage: {NOT_HERE['bnb_4bit_quant_storage']}. Leave it unset.")
    check_quantisation(model_args, trains_adapter=True)
    return quantisation_config(model_args, None)


def get_kbit_device_map() -> dict[str, int] | None:
    """The device of this process for a quantised model; None on a CPU."""
    state = PartialState()
    device = "cpu" if state.device is None else state.device.type
    return {"": state.local_process_index} if device not in ("cpu", "mps") else None
