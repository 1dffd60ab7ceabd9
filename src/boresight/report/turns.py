"""The turns of a completion as people read them: what the policy wrote, its calls, and the results with their images in place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from boresight.types import Completion


def shown_turns(completion: Completion, image_names: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """Each turn's role, name, text, calls, and images by file name; None for a completion of one turn without a call.

    A text has `<image>` where an image stands.

    Args:
        image_names: from an image's digest to its file name.
    """
    messages = completion.messages or ()
    if len(messages) < 2 and not any(message.get("tool_calls") for message in messages):
        return None
    images = (image_names[image.digest] for each in completion.image_sets for image in each.images)
    return [_shown(message, images) for message in messages]


def _shown(message: Mapping[str, Any], images: Iterator[str]) -> dict[str, Any]:
    content = message["content"]
    parts: Sequence[Mapping[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    num_images = sum(part["type"] == "image" for part in parts)
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return {
        "role": message["role"],
        "name": message.get("name", ""),
        "text": "".join(part["text"] if part["type"] == "text" else "<image>" for part in parts),
        "calls": [f"{call['name']}({_arguments(call['arguments'])})" for call in calls],
        "images": [name for name, _ in zip(images, range(num_images), strict=False)] if num_images else [],
    }


def _arguments(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())


def transcript(turns: Sequence[Mapping[str, Any]]) -> str:
    """The turns as one text, for terminals, tables and search."""
    lines = []
    for turn in turns:
        if turn["role"] == "tool":
            lines.append(f"← {turn['name']}: {turn['text']}")
            continue
        lines += [turn["text"]] if turn["text"] else []
        lines += [f"→ {call}" for call in turn["calls"]]
    return "\n".join(lines)
