"""The model's own forward on one row, with all of its processor's tensors: slow, and right by definition.

Every faster way to compute a number must agree with it, and a model that has no faster way trains and samples through it. Nothing here
knows a family. How the tensors of a prompt continue over a completion is the model's own knowledge, which it uses when it generates.

Processors return three kinds of tensors: ids with their attention mask, *token inputs* with one entry per token (types of tokens,
Mllama's `cross_attention_mask`), and image tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from boresight.errors import ModelError
from boresight.modules import computes_coarsely, is_quantised, matching_arguments, text_parameters
from boresight.types import Completion, HasImages, Ids, Prompt


def is_token_input(tensor: Tensor, length: int) -> bool:
    """Whether a processor's output [1, length, …] has one entry per token. Tensors of images are floating-point, or have other shapes."""
    return tensor.ndim >= 2 and tuple(tensor.shape[:2]) == (1, length) and not tensor.is_floating_point()


def token_inputs_of(part: Prompt | Completion) -> dict[str, Tensor]:
    """The token inputs [L, …] of a prompt or completion, its types of tokens among them under the name that most models give them."""
    types = torch.zeros_like(part.ids) if part.token_types is None else part.token_types
    return {**part.token_inputs, "mm_token_type_ids": types}


def is_pixels(tensor: Tensor) -> bool:
    """Whether an image tensor holds pixels, which the vision tower reads, and not grids or sizes, which positions depend on."""
    return tensor.is_floating_point() or tensor.ndim > 2


def joined_vision(sets: Sequence[HasImages], *, pixels: bool = True) -> dict[str, Tensor]:
    """The image tensors of one sequence whose images were processed in several sets, in order.

    Args:
        pixels: False leaves out pixels, of which ready features take the place.

    Raises:
        ModelError: the sets' tensors have shapes that cannot be joined.
    """
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for each in sets for name in each.vision):
        parts = [each.vision[name] for each in sets if name in each.vision]
        if not pixels and is_pixels(parts[0]):
            continue
        shapes = {tuple(part.shape[1:]) for part in parts}
        if len(shapes) > 1:
            raise ModelError(
                f"{name} of images in different turns have the shapes {', '.join(str(tuple(part.shape)) for part in parts)}, which the "
                "model's own forward cannot take together: let tools return images of equal sizes, or text."
            )
        found[name] = torch.cat(parts)
    return found


def prompt_tensors(prompt: Prompt) -> dict[str, Tensor]:
    """All tensors of a row's own prompt under the names of the model's forward, as the processor returned them: ids and token inputs
    [1, P, …]."""
    return {**_token_tensors(prompt), **prompt.vision}


def _token_tensors(prompt: Prompt) -> dict[str, Tensor]:
    ids = prompt.ids[None]
    tokens = {name: values[None] for name, values in token_inputs_of(prompt).items()}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **tokens}


def sequence_tensors(model: PreTrainedModel, prompt: Prompt, *, pixels: bool = True) -> dict[str, Tensor]:
    """As `prompt_tensors`, of a prompt that may have turns after it (`Prompt.begun`).

    Args:
        pixels: as for `joined_vision`.
    """
    vision = joined_vision(prompt.image_sets, pixels=pixels)
    if prompt.begun is None:
        return {**_token_tensors(prompt), **vision}
    tensors, further = completion_tokens(model, *prompt.begun)
    tokens = {name: values for name, values in tensors.items() if name not in ("input_ids", "attention_mask")}
    ids = prompt.ids[None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **continued_token_inputs(model, tokens, len(further)),
        **vision,
    }


def vision_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype of the vision tower's weights, which pixels must have."""
    text = text_parameters(model)
    for parameter in model.parameters():
        if parameter not in text and parameter.is_floating_point():
            return parameter.dtype
    return model.dtype


def on_model(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the model's device, floating-point ones in the dtype of its vision tower."""
    device = next(model.parameters()).device
    floats = vision_dtype(model) if any(tensor.is_floating_point() for tensor in tensors.values()) else None
    return {
        name: tensor.to(device, floats) if floats is not None and tensor.is_floating_point() else tensor.to(device)
        for name, tensor in tensors.items()
    }


def continued_token_inputs(model: PreTrainedModel, tokens: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Token inputs [1, P, …] of a prompt, continued over `length` tokens of text as the model continues them when it generates.

    Types that no model mentions there continue as text (0); any other input repeats its last entry.
    """
    if not length or not tokens:
        return dict(tokens)
    before = next(iter(tokens.values())).shape[1]
    # Without a cache among the outputs, this only continues the inputs. One token, as generation does: for more, transformers repeats as
    # many of the last types, an image's among them.
    update: Any = model._update_model_kwargs_for_generation
    grown = update(ModelOutput(), dict(tokens), False, num_new_tokens=1)
    found = {}
    for name, values in tokens.items():
        values = grown.get(name, values)
        missing = before + length - values.shape[1]
        last = values[:, -1:]
        if values.shape[1] == before and "token_type" in name:
            last = torch.zeros_like(last)
        found[name] = torch.cat([values, last.expand(-1, missing, *values.shape[2:])], 1)
    return found


def row_inputs(model: PreTrainedModel, tensors: Mapping[str, Tensor], ids: Ids) -> dict[str, Any]:
    """The arguments of the model's own forward on a prompt followed by a completion of text.

    Args:
        tensors: a processor's tensors for the prompt, `input_ids` [1, P] among them.
        ids: [C] of the completion.

    Raises:
        ModelError: the processor returned image tensors, and the model takes none of them.
    """
    length = tensors["input_ids"].shape[1]
    tokens = {name: tensor for name, tensor in tensors.items() if is_token_input(tensor, length)}
    images = {name: tensor for name, tensor in tensors.items() if name not in tokens}
    tokens.pop("labels", None)  # PaliGemma's processor returns them; they ask for a loss
    tokens = matching_arguments(model.forward, continued_token_inputs(model, tokens, len(ids)))
    taken = matching_arguments(model.forward, images)
    if images and not taken:
        raise ModelError(
            f"{type(model).__name__} takes none of {', '.join(sorted(images))}, which its processor returned for images: processor and "
            "model do not match."
        )
    tokens["input_ids"] = torch.cat([tensors["input_ids"], ids[None].to(tensors["input_ids"].device)], 1)
    return on_model(model, {**tokens, **taken})


def completion_tensors(model: PreTrainedModel, prompt: Prompt, completion: Completion) -> tuple[dict[str, Tensor], Ids]:
    """A prompt's tensors and the ids that follow it. A completion that contains images has tensors of its own: none follow.

    Raises:
        ModelError: see `joined_vision`.
    """
    tensors, further = completion_tokens(model, prompt, completion)
    sets: list[HasImages] = [*([prompt] if prompt.vision else []), *completion.image_sets]
    return {**tensors, **joined_vision(sets)}, further


def completion_tokens(model: PreTrainedModel, prompt: Prompt, completion: Completion) -> tuple[dict[str, Tensor], Ids]:
    """As `completion_tensors`, without image tensors.

    The processor did not know where such a completion begins, so its text has the types that the model gives to what it generates: in
    PaliGemma, those of an answer, which does not see its own future.
    """
    tensors = _token_tensors(prompt)
    if completion.token_types is None:
        return tensors, completion.ids
    own = {name: values[None] for name, values in token_inputs_of(completion).items()}
    if foreign := sorted(own.keys() ^ (tensors.keys() - {"input_ids", "attention_mask"})):
        raise ModelError(
            f"row {prompt.row.index}: the processor returned {', '.join(foreign)} for only one of the prompt and its completion's images: "
            f"{type(model).__name__} cannot take images in completions."
        )
    length, is_text = len(completion.ids), (completion.token_types == 0)[None]
    generated = continued_token_inputs(model, {name: tensors[name] for name in own}, length)
    for name, values in own.items():
        if "token_type" in name:
            values = torch.where(is_text, generated[name][:, -length:].to(values.dtype), values)
        tensors[name] = torch.cat([tensors[name], values], 1)
    tensors["input_ids"] = torch.cat([tensors["input_ids"], completion.ids[None]], 1)
    tensors["attention_mask"] = torch.ones_like(tensors["input_ids"])
    return tensors, completion.ids[:0]


def own_logits(
    model: PreTrainedModel, tensors: Mapping[str, Tensor], ids: Ids, *, num_last: int
) -> Float[Tensor, "n V"]:
    """Logits of the model's own forward on a prompt and a completion.

    Args:
        tensors: as in `row_inputs`.
        ids: [C] of the completion.
        num_last: how many logits to return, the last token's included.
    """
    inputs: dict[str, Any] = row_inputs(model, tensors, ids)
    inputs |= matching_arguments(model.forward, {"use_cache": False, "logits_to_keep": num_last})
    return model(**inputs).logits[0, -num_last:]


def is_exact(model: nn.Module) -> bool:
    """Whether all weights are float32 or finer, so that two ways to compute a log-probability agree to 1e-4 nats.

    Weights of 4 bits are exact numbers, if their layers compute in float32.
    """
    exact = {torch.float32, torch.float64}
    floats = (each for each in model.parameters() if each.is_floating_point() and not is_quantised(each))
    return all(each.dtype in exact for each in floats) and not computes_coarsely(model)


def final_states(model: PreTrainedModel, **inputs: Any) -> Float[Tensor, "B L H"]:
    """Hidden states before the head.

    A class whose base model is the model itself (Llama 4, Qwen-Omni's thinkers) returns none: they are taken where the head receives them,
    and the head computes a single token's logits.
    """
    base: Any = model.base_model
    if base is not model:
        return base(**inputs).last_hidden_state
    seen: list[Tensor] = []

    def take(head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(arguments[0])
        return (arguments[0][:, :1], *arguments[1:])

    head: Any = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(take)
    try:
        base(**inputs)
    finally:
        hook.remove()
    return seen[0]


def rope_positions(base: nn.Module, ids: Ids, token_inputs: Mapping[str, Tensor], vision: Mapping[str, Tensor]) -> Any:
    """Positions [A, L] of a model whose rotary embeddings have several axes (M-RoPE); None for a model that counts tokens.

    Args:
        base: the model without its head.
        ids: [L] of the sequence.
        token_inputs: [L, …] by name.
        vision: the processor's image tensors.

    Raises:
        ModelError: its `get_rope_index` asks for something that no processor returned.
    """
    rope_index: Any = getattr(base, "get_rope_index", None)
    if rope_index is None:
        return None
    known = {
        "attention_mask": torch.ones_like(ids)[None],
        **{name: values[None] for name, values in token_inputs.items()},
    }
    given = matching_arguments(rope_index, {**known, **vision})
    required = {
        name
        for name, parameter in inspect.signature(rope_index).parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    }
    if missing := required - {"input_ids", *given}:
        raise ModelError(
            f"{type(base).__name__}.get_rope_index needs {', '.join(sorted(missing))}, which was not given."
        )
    return rope_index(ids[None], **given)[0][:, 0]
