"""A model and its processor, and the facts that other rooms need."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from boresight.errors import ConfigError, ModelError
from boresight.families import family_of
from boresight.files import missing_path
from boresight.model.part_options import PartPlan
from boresight.model.parts import check_float, check_plan, planned, restricted, trained_in_full
from boresight.model.quantised import quantised_options, settle
from boresight.modules import is_quantised, unwrap
from boresight.types import ModelFacts

logger = logging.getLogger(__name__)

MODALITY_TOKENS = ("image", "video", "audio", "vision", "img", "boi", "eoi", "<row_")
"""Parts of the names, in configs and tokenizers, of ids that only a processor may place (`<row_1_col_2>` labels a tile)."""

WHERE = ("revision", "cache_dir", "token", "subfolder", "local_files_only", "force_download")
"""Options of `from_pretrained` that choose files, for a model and its processor alike."""

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "task_type": "CAUSAL_LM"}
"""The adapter of a plan that asks for one without a `peft_config`: the defaults of the command line."""

AS_IT_IS = PartPlan()
"""The plan that changes nothing."""


def load_model(model: str | Path | nn.Module, *, dtype: str | torch.dtype = "auto", **options: Any) -> nn.Module:
    """A model by hub id, folder or object.

    Args:
        dtype: the dtype to load weights in; `"auto"` keeps the checkpoint's. Trainable weights become float32 afterwards
            (`promote_trainable`) unless a dtype is given here.
        options: further arguments of `from_pretrained`, for ids and folders only. A `quantization_config` may be a mapping
            (`quantised_options`).

    Raises:
        ModelError: the model does not exist, reads no images, or needs a package that is not installed.
        ConfigError: options were given for a model that is already loaded, or the dtype is unknown.
    """
    if isinstance(model, nn.Module):
        if dtype != "auto":
            options["dtype"] = dtype
        if options:
            raise ConfigError(
                f"model_init_kwargs ({', '.join(options)}) have no effect on a model that is already loaded: drop them."
            )
        return settle(model)
    if isinstance(dtype, str) and dtype != "auto":
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ConfigError(f"dtype={dtype!r} is neither 'auto' nor a torch dtype such as 'float32' or 'bfloat16'.")
        dtype = getattr(torch, dtype)
    if (missing := missing_path(str(model))) is not None:
        raise ModelError(f"There is no model at {str(model)!r} {missing}")
    options = quantised_options(model, options)
    try:
        return settle(_from_pretrained(model, dtype=dtype, **options))
    except OSError as error:
        raise ModelError(
            f"There is no model at {str(model)!r} (neither a folder nor a hub id that can be reached): {error}"
        ) from error
    except ImportError as error:  # as Gemma 3n asks for timm
        raise ModelError(
            f"{str(model)!r} needs a package that is not installed: {' '.join(str(error).split())}"
        ) from error
    except ValueError as error:
        raise ModelError(
            f"{str(model)!r} is not a vision-language model that transformers supports.{_model_inside(Path(model))} ({error})"
        ) from error


def _model_inside(folder: Path) -> str:
    """A hint where a folder, such as a run's, has a model in a folder of its own."""
    inside = sorted(path.parent for path in folder.glob("*/config.json"))
    return f" There is a model in {inside[-1]}: name that." if inside else ""


def _from_pretrained(model: str | Path, **options: Any) -> nn.Module:
    try:
        return AutoModelForImageTextToText.from_pretrained(model, **options)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        config = AutoConfig.from_pretrained(
            model, **{key: options[key] for key in (*WHERE, "trust_remote_code") if key in options}
        )
        if (thinker := getattr(config, "thinker_config", None)) is not None:
            logger.warning(
                "Of %s, only the thinker is loaded, trained and saved: it reads images and writes text.", model
            )
            kind: Any = AutoModelForImageTextToText._model_mapping[type(thinker)]
            return kind.from_pretrained(model, **options)
        # Models that read images and sounds are listed elsewhere (Phi-4-multimodal).
        return AutoModelForMultimodalLM.from_pretrained(model, **options)


def load_processor(
    processing_class: Any, model: nn.Module, source: str | Path | None = None, **options: Any
) -> ProcessorMixin:
    """The processor to use with a model.

    A bare tokenizer is not enough for a model that reads images. In that case the processor is loaded from the model's folder, and uses
    the given tokenizer, and its chat template if that differs from the folder's.

    Args:
        processing_class: a processor, a tokenizer, or None.
        model: its config gives the folder or hub id if `source` is None.
        source: the folder or hub id that the model was loaded from.
        options: the options that the model was loaded with. Those that choose files, and `trust_remote_code`, apply to the processor too.

    Raises:
        ModelError: the folder has no processor, or `processing_class` is neither a processor nor a tokenizer.
    """
    if isinstance(processing_class, ProcessorMixin):
        return processing_class
    name = str(source or getattr(model.config, "_name_or_path", ""))
    try:
        shared = {key: options[key] for key in (*WHERE, "trust_remote_code") if key in options}
        processor = AutoProcessor.from_pretrained(name, **shared)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"No processor was given and none could be loaded from {name!r}: pass processing_class=…. ({error})"
        ) from error
    if not isinstance(processor, ProcessorMixin):
        raise ModelError(
            f"{name!r} holds a tokenizer but no processor, so it cannot prepare images: pass processing_class=…."
        )
    if processing_class is not None:
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise ModelError(
                f"processing_class is a {type(processing_class).__name__}: pass a processor, a tokenizer, or None."
            )
        own: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        if processing_class.chat_template not in (None, own.chat_template):
            processor.chat_template = processing_class.chat_template  # pyright: ignore[reportAttributeAccessIssue]
        processor.tokenizer = processing_class  # pyright: ignore[reportAttributeAccessIssue]
    return processor


def adapt(model: nn.Module, peft_config: PeftConfig | None, plan: PartPlan = AS_IT_IS) -> nn.Module:
    """The model with its adapter, and with those weights trainable that the plan trains.

    Args:
        peft_config: the adapter's configuration, which is not changed. Without a plan, its layers are the language model's unless their
            names ask for others (`restricted`). None where the plan asks for an adapter: LoRA of rank 16 on every linear layer.
        plan: how each part is trained. Without `how`, an adapter is added if there is a `peft_config`, and nothing else changes.

    Raises:
        ConfigError: PEFT already wraps the model, an adapter finds no layer in a part, or the plan and the configuration disagree.
    """
    if plan.how is None and peft_config is None:
        return model
    if isinstance(model, PeftModel):
        option = "peft_config" if plan.how is None else "train"
        raise ConfigError(f"The model has an adapter already: drop {option}, or pass the model without the adapter.")
    if plan.how is None:
        try:
            return get_peft_model(model, restricted(peft_config, model))  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            words = {name.split(".")[-1] for name, each in model.named_modules() if isinstance(each, nn.Linear)}
            linear = ", ".join(sorted(filter(str.isidentifier, words)))
            raise ConfigError(
                f"peft_config: {error} The model's linear layers are called {linear}: name some of them in "
                "lora_target_modules."
            ) from error
    family = family_of(unwrap(model).config.model_type)
    there = {family.part(name) for name, _ in model.named_parameters()}
    if missing := [part for part, how in plan.how.items() if how != "frozen" and part not in there]:
        raise ConfigError(f"train: this model has no weights in {', '.join(missing)}: leave it out.")
    if plan.parts("lora"):
        config = planned(peft_config or LoraConfig(**LORA), plan, model)
        try:
            adapted = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            raise ConfigError(
                f"train: no layer takes an adapter of the parts that train adapts ({', '.join(plan.parts('lora'))}); train them in "
                f"full, or change target_modules. ({error})"
            ) from error
        check_plan(adapted, plan)
        return adapted
    if peft_config is not None:
        raise ConfigError(
            "peft_config (use_peft) has no effect, because train adapts no part: write language=lora, or drop it."
        )
    for name, weight in model.named_parameters():
        trained = plan.how[family.part(name)] == "full"
        check_float(name, weight, trained=trained)
        weight.requires_grad_(trained)
    return model


def places_whole(model: nn.Module) -> bool:
    """Whether the whole model is placed on this process's device: no quantized weights, and not several devices. FSDP2 divides it later."""
    inner = unwrap(model)
    is_placed = hasattr(inner, "hf_device_map") or getattr(inner, "quantization_method", None) is not None
    return not is_placed


def promote_trainable(model: nn.Module, *, keep: bool = False) -> None:
    """Cast trainable weights to float32; leave frozen weights unchanged.

    bf16 weights under AdamW at a learning rate of 1e-6 make only 2 % of the intended update, because steps smaller than their
    resolution are lost. A family that casts image features (`Family.casts_features`) needs one dtype, so it is cast as a whole. So are
    vision tower and projector together if some of their weights are trained in full, because features pass from one to the other.

    Args:
        keep: the user chose a dtype, so nothing is cast.
    """
    if keep:
        return
    inner = unwrap(model)
    family = family_of(inner.config.model_type)
    images = [(name, weight) for name, weight in model.named_parameters() if family.part(name) != "language"]
    full = trained_in_full(model)
    if any(id(weight) in full for _, weight in images):
        _promote(weight for _, weight in images)
    _promote(parameter for parameter in model.parameters() if parameter.requires_grad)
    if family.casts_features and inner.get_input_embeddings().weight.dtype != inner.dtype:
        _promote(model.parameters())


def _promote(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.dtype in (torch.bfloat16, torch.float16) and not is_quantised(parameter):
            parameter.data = parameter.data.float()


def model_facts(model: nn.Module, processor: ProcessorMixin) -> ModelFacts:
    """The facts that other rooms need, from the model's config, its generation config and its tokenizer.

    Raises:
        ModelError: the model cannot be trained here, or no end token is known.
    """
    model = unwrap(model)
    if (reason := why_unsupported(model)) is not None:
        raise ModelError(f"{type(model).__name__} cannot be trained: {reason}.")
    tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    generation = getattr(model, "generation_config", None)
    stops = getattr(generation, "eos_token_id", None)
    stop_ids = {tokenizer.eos_token_id, *([stops] if isinstance(stops, int) else stops or ())} - {None}
    if not stop_ids:
        raise ModelError(
            "Neither the tokenizer nor the generation config has an end token, so completions would never end."
        )
    pad = tokenizer.pad_token_id
    head: Any = model.get_output_embeddings()
    vocab = len(head.weight)
    modality = _modality_ids(model, processor) - stop_ids
    return ModelFacts(
        stop_ids=tuple(sorted(stop_ids)),
        pad_id=min(stop_ids) if pad is None else pad,
        modality_ids=tuple(sorted(id for id in modality if id < vocab)),
        image_token_id=getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", None)),
        vocab_size=vocab,
        family=family_of(model.config.model_type),
        window=_window(model.get_decoder().config),
    )


def _window(config: Any) -> int | None:
    """The smallest window of a text config, whatever its name."""
    names = ("sliding_window", "sliding_window_size", "attention_chunk_size")
    windows = [getattr(config, name, None) for name in names]
    return min((window for window in windows if isinstance(window, int)), default=None)


def why_unsupported(model: PreTrainedModel) -> str | None:
    """Why completions of a prompt cannot be learnt by this class at all; None if they can."""
    config = model.config
    if config.is_encoder_decoder or config.get_text_config().is_encoder_decoder:
        return "it is an encoder-decoder, which reads the prompt in another model than the one that continues it"
    if "qformer_input_ids" in inspect.signature(model.forward).parameters:
        return "its Q-Former reads the text beside the image, and would see an answer before it is predicted"
    try:
        head: Any = model.get_output_embeddings()
        model.get_decoder()
    except (AttributeError, NotImplementedError):
        head = None
    if getattr(head, "weight", None) is None:
        return "it has no language-model head over a decoder (of a Qwen-Omni model, train the thinker)"
    return None


def _modality_ids(model: PreTrainedModel, processor: ProcessorMixin) -> set[int]:
    """Ids whose name in the model's config, or whose special token in the tokenizer, contains the name of a modality."""
    named = {
        value
        for name, value in model.config.to_dict().items()
        if isinstance(value, int)
        and name.endswith(("_token_id", "_token_index"))
        and any(word in name for word in MODALITY_TOKENS)
    }
    added: dict[int, Any] = processor.tokenizer.added_tokens_decoder  # pyright: ignore[reportAttributeAccessIssue]
    special = {id for id, token in added.items() if any(word in token.content.lower() for word in MODALITY_TOKENS)}
    return named | special
