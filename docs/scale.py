"""The tables of seconds and prices in docs/how-to/many-gpus.md and of memory in docs/install.md, by the code of `boresight doctor --plan`.

    .venv/bin/python docs/scale.py

The sizes are those of the published configs of Qwen2.5-VL. A test compares the page with what this prints.
"""

from __future__ import annotations

from collections.abc import Iterator

from transformers import Qwen2_5_VLConfig

from boresight.doctor.cost import CARDS, Rates, Work, price
from boresight.doctor.plan import MAX_TOKENS, assumptions, plan_of
from boresight.doctor.size import Size, size_of_config

GPUS = (1, 8, 64)
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
NAMES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)
MODELS = {
    "3B": (2048, 36, 16, 2, 11008, 151936),
    "7B": (3584, 28, 28, 4, 18944, 152064),
    "32B": (5120, 64, 40, 8, 27648, 152064),
}
"""Published size of Qwen2.5-VL → the values of `NAMES`."""


def published(name: str) -> Size:
    """The size of a published Qwen2.5-VL."""
    text = dict(zip(NAMES, MODELS[name], strict=True))
    vision = {**VISION, "out_hidden_size": text["hidden_size"]} | ({"intermediate_size": 3456} if name == "32B" else {})
    return size_of_config(Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=name == "3B"))


def lines() -> Iterator[str]:
    """The table as Markdown, and what it assumes."""
    work, rates = Work(), Rates()
    headings = (
        "model",
        "GPUs",
        "set-up",
        "GB without activations",
        "tokens of a micro-batch",
        "sample s",
        "update s",
        "step s",
        "1,000 steps",
    )
    yield f"| {' | '.join(headings)} |"
    yield "|---" * len(headings) + "|"
    for name in MODELS:
        size = published(name)
        for num_gpus in GPUS:
            found = plan_of(size, num_gpus, CARDS["h100"].memory, work, rates)
            assert found.best is not None, name
            way, seconds = found.ways[found.best], found.seconds[found.best]
            assert seconds is not None, name
            cost = 1000 * price(seconds.total, rates, num_gpus)
            times = (f"{each:.1f}" for each in (seconds.sample, seconds.update, seconds.total))
            tokens = min(found.tokens[found.best], MAX_TOKENS)
            cells = (name, str(num_gpus), way.name, f"{way.num_bytes / 1e9:.1f}", f"{tokens:,}", *times, f"{cost:,.0f}")
            yield f"| {' | '.join(cells)} |"
    yield ""
    yield assumptions(work, rates)


def hardware() -> Iterator[str]:
    """The table of docs/install.md as Markdown: GB of weights, gradients and optimizer on one GPU, for each way to train there."""
    plans = [plan_of(published(name), 1, CARDS["h100"].memory, Work(), Rates()) for name in MODELS]
    yield f"| way to train | {' | '.join(MODELS)} |"
    yield "|---" * (len(MODELS) + 1) + "|"
    for ways in zip(*(found.ways for found in plans), strict=True):
        yield f"| {ways[0].name} | {' | '.join(f'{way.num_bytes / 1e9:.1f}' for way in ways)} |"


if __name__ == "__main__":
    print("\n".join([*lines(), "", *hardware()]))
