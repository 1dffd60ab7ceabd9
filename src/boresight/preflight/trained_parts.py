"""Whether something is trained, and nothing that was not asked for."""

from __future__ import annotations

from collections.abc import Iterator

from boresight.families import family_of
from boresight.model.parts import adapted_modules, summaries, targets
from boresight.modules import unwrap
from boresight.preflight.finding import Finding
from boresight.preflight.set_up import SetUp


def check_trained_parts(set_up: SetUp) -> Iterator[Finding]:
    """A trained weight, and adapters only on parts that were named."""
    found = summaries(set_up.model)
    if not any(part.num_trainable for part in found):
        yield Finding(
            "trained parts", "error", "train", "every weight is frozen, so nothing would be trained.",
            "Set train='language=full' or train='language=lora', pass a peft_config (use_peft), or call requires_grad_(True) on what is "
            "to be trained.",
        )  # fmt: skip
        return
    yield Finding(
        "trained parts", "note", "",
        "; ".join(f"{part.part} {part.how}, {part.num_trainable:,} of {part.num_weights:,} weights" for part in found) + ".",
    )  # fmt: skip
    if set_up.parts.how is None and not _names_a_part(set_up):
        for part in ("vision", "projector"):
            if modules := adapted_modules(set_up.model)[part]:
                named = ", ".join(f"{name} {count}" for name, count in list(modules.items())[:5])
                yield Finding(
                    "trained parts", "warning", "peft_config",
                    f"the adapter is on {sum(modules.values())} modules of the {part} too ({named}), which no name asks for.",
                    f"Write train='language=lora' to leave them out, or train='{part}=lora,language=lora' if they are meant.",
                )  # fmt: skip


def _names_a_part(set_up: SetUp) -> bool:
    """Whether a target of the adapter names a vision module or projector."""
    if set_up.peft_config is None:
        return False
    family = family_of(unwrap(set_up.model).config.model_type)
    return any(family.names_a_part(entry) for entry in targets(set_up.peft_config))
