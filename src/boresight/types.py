"""The records that rooms exchange. How completions are sampled is in `sampling`.

Shape letters, everywhere in boresight:

    G  groups in a call            K  completions of one group      B  completions in a call (the sum of K)
    P  tokens of one prompt        C  tokens of one completion      T  the longest completion of the call
    L  tokens of one packed row    V  vocabulary                    R  reward functions
    N  counted tokens of a call    H  a hidden state's size         A  axes of positions (M-RoPE)
    D  the size of one attention head

Signs and units: log-probabilities and entropies are in nats; a reward is to be maximised, a loss minimised;
a mask is true where a token counts. Padding is on the right and its mask is false.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from boresight.families import UNKNOWN, Family

PerToken = Float[Tensor, "B T"]
PerSequence = Float[Tensor, "B"]
Mask = Bool[Tensor, "B T"]
Ids = Int[Tensor, "N"]

Message = Mapping[str, Any]
Conversation = Sequence[Message]


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image, still encoded: it occupies its file size until a worker decodes it.

    Two images are equal if their encoded bytes are equal, whatever their source.
    """

    source: bytes | str = field(compare=False, repr=False)
    """The encoded bytes, or the path of a local file."""
    digest: str
    """SHA-256 of the encoded bytes, in hexadecimal."""
    size: tuple[int, int] = field(compare=False)
    """Width and height in pixels after EXIF orientation."""
    remark: str | None = field(default=None, compare=False)
    """How the image is used where that is not plain, such as only the first frame of an animation."""


Observation = tuple[str | EncodedImage, ...]
"""Texts and images in order."""


@dataclass(frozen=True, slots=True)
class Row:
    """One validated row of a data set, independent of its original format.

    A conversation's messages carry explicit content parts (``{"type": "text", "text": …}``, ``{"type": "image"}``)
    with exactly one ``image`` part per image; a plain-text prompt stays a string.
    """

    index: int
    """Its position in the data set; error messages print ``row {index}``."""
    prompt: str | Conversation
    """The prompt. Empty for the `messages` format, where the whole conversation is the only completion."""
    completions: tuple[str | Conversation, ...]
    """Empty (GRPO), the demonstration (SFT), or chosen and rejected (DPO)."""
    images: tuple[EncodedImage, ...]
    """In the order of their placeholders: the prompt's first."""
    columns: Mapping[str, Any]
    """Every other column, for reward functions and reports."""


@runtime_checkable
class HasImages(Protocol):
    """Images with the tensors of the processor that ran them together: a prompt's, or those of an environment's turn."""

    @property
    def images(self) -> tuple[EncodedImage, ...]: ...

    @property
    def vision(self) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images that an environment put into a completion in one turn."""

    images: tuple[EncodedImage, ...]
    vision: Mapping[str, Tensor]
    """As `Prompt.vision`."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row's prompt after the processor, run once on this prompt alone.

    While a completion of several turns is sampled, its earlier turns are part of the prompt of the next one (`Prompt.followed_by`).
    """

    row: Row
    ids: Ids
    """[P] token ids with every image expanded to its placeholder tokens."""
    token_types: Ids
    """[P] 0 for text, 1 for an image's placeholder, 2 for a video's."""
    vision: Mapping[str, Tensor]
    """The processor's other tensors (`pixel_values`, `image_grid_thw`, …), as the model takes them. Empty without images."""
    unexpanded_ids: Int[Tensor, "U"]
    """The same prompt before images were expanded, as it is sent to a generation engine."""
    token_inputs: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """[P, …] the processor's outputs with one entry per token besides ids and mask (`mm_token_type_ids`, `cross_attention_mask`, …),
    as the model takes them."""
    observation: Observation = ()
    """What an environment added to the end of the row's prompt when it was reset; its images are the last of the row."""
    further_images: tuple[ImageSet, ...] = ()
    """Images of earlier turns that follow the row's own prompt."""
    begun: tuple[Prompt, Completion] | None = None
    """The row's own prompt and the turns after it, where there are any. `token_inputs` are then those of the row's own prompt alone: the
    model decides how they continue over the turns (`own_forward.sequence_tensors`)."""

    @property
    def images(self) -> tuple[EncodedImage, ...]:
        """The row's own images, whose tensors are in `vision`."""
        return self.row.images

    def room(self, max_completion_length: int) -> int:
        """How many tokens a completion of this length may still add, turns that are there counted."""
        return max_completion_length - (0 if self.begun is None else len(self.begun[1].ids))

    @property
    def image_sets(self) -> tuple[HasImages, ...]:
        """All images, in the order of their placeholders."""
        return (*((self,) if self.vision else ()), *self.further_images)

    def followed_by(self, turns: Completion) -> Prompt:
        """This prompt with a completion's turns after it, to be completed further."""
        types = torch.zeros_like(turns.ids) if turns.token_types is None else turns.token_types
        unexpanded = turns.ids if turns.unexpanded_ids is None else turns.unexpanded_ids
        return replace(
            self,
            ids=torch.cat([self.ids, turns.ids]),
            token_types=torch.cat([self.token_types, types]),
            unexpanded_ids=torch.cat([self.unexpanded_ids, unexpanded]),
            further_images=(*self.further_images, *turns.image_sets),
            begun=(self, turns),
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of a prompt: a text, or several turns, of which the policy produced some and an environment the others."""

    ids: Ids
    """[C] token ids, including the end token if one was produced."""
    mask: Bool[Tensor, "C"]
    """[C] true where the token counts in the loss: where the policy produced it."""
    text: str
    """Decoded without special tokens; of several turns, the last that the policy produced."""
    sampler_logp: Float[Tensor, "C"] | None = None
    """[C] log-probability that the sampler reported for each token, 0 where an environment produced it; None when no sampler produced the
    completion."""
    truncated: bool = False
    """True when generation hit the length limit before a stop token."""
    token_types: Ids | None = None
    """[C] as `Prompt.token_types`; set where the completion contains images."""
    token_inputs: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """[C, …] as `Prompt.token_inputs`; set together with `token_types`."""
    image_sets: tuple[ImageSet, ...] = ()
    """The images that an environment put into it, one set for each of its turns that has any. A demonstration's images (SFT) are all in
    `Prompt.vision`."""
    unexpanded_ids: Int[Tensor, "U"] | None = None
    """The same completion before images were expanded; None: as `ids`."""
    messages: tuple[Message, ...] | None = None
    """The turns as messages, those of tools included; None: one message with `text`."""
    sampler_step: int | None = None
    """The version of the weights that sampled it: the optimizer steps that they had behind them. None where no engine sampled it."""


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt with its images and K completions of it: the unit of data, of the forward pass and of a micro-batch."""

    prompt: Prompt
    completions: tuple[Completion, ...]

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt.ids)

    @property
    def num_completion_tokens(self) -> int:
        return sum(len(completion.ids) for completion in self.completions)

    @property
    def num_tokens(self) -> int:
        """Tokens of the shared layout: the prompt once, then every completion."""
        return self.num_prompt_tokens + self.num_completion_tokens

    @property
    def num_completion_images(self) -> int:
        """How many images environments put into the completions."""
        return sum(len(each.images) for completion in self.completions for each in completion.image_sets)

    def branches(self, start: int, stop: int) -> Group:
        """The same prompt with some of its completions."""
        return replace(self, completions=self.completions[start:stop])


@dataclass(frozen=True, slots=True)
class TokenStats:
    """What a forward pass returns for every completion token, completions in the order of their groups."""

    logp: PerToken
    """[B, T] log-probability of each token given all tokens before it."""
    mask: Mask
    """[B, T] true where the token counts."""
    entropy: PerToken | None = None
    """[B, T] entropy of the distribution each token was sampled from; None unless requested. It carries a gradient only on request."""
    greedy: Mask | None = None
    """[B, T] true where the token is the most likely one of its distribution; set together with `entropy`."""
    log_collision: PerToken | None = None
    """[B, T] log Σ_v p_v² of the distribution each token was sampled from, no gradient; None unless requested."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts about a model that other rooms need."""

    stop_ids: tuple[int, ...]
    """Every id that ends a completion, from the checkpoint's generation config and from the tokenizer."""
    pad_id: int
    modality_ids: tuple[int, ...]
    """Ids that only the processor may place (image, video and audio placeholders, vision start and end); banned in sampling."""
    image_token_id: int | None
    """The placeholder that the vision tower's features replace; None for a text-only model."""
    vocab_size: int
    """Columns of the language-model head."""
    family: Family = UNKNOWN
    """The properties of the model's family, for rooms that have no access to the model."""
    window: int | None = None
    """How many tokens back a query of a sliding or chunked layer attends at most; None if all layers attend to all."""


@dataclass(frozen=True, slots=True)
class Example:
    """A made-up group on which a model's layouts are compared with its own forward."""

    group: Group
    processed: Mapping[str, Tensor]
    """The processor's outputs for the group's prompt, by its own path from conversation to tensors: `input_ids` [1, P] and the others."""


@dataclass(frozen=True, slots=True)
class ExampleSource:
    """Makes examples when they are needed."""

    key: str
    """Equal keys make equal examples: the processor's configuration."""
    make: Callable[[], Sequence[Example]]


LayoutName = Literal["shared", "rows", "plain"]
"""How groups run through a model: a prompt once with its completions as branches, a row for each completion, or the model's own forward
for each completion with all of its processor's tensors."""
