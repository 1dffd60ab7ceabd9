from __future__ import annotations

from PIL import Image

from boresight.rewards import Scorer
from boresight.types import EncodedImage

CONVERSATION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what colour?"}]}]


def test_what_a_function_changes_reaches_nobody_else(make_group):
    """Not the next function, whose arguments are fresh; not the row, whose prompt is stored; not the next call."""
    state = {"step": 1}

    def changes(completions, prompts, completion_ids, solution, boxes, images, trainer_state):
        completions[0][0]["content"] = "changed"
        prompts[0][0]["content"][1]["text"] = "changed"
        completion_ids[0].append(-1)
        solution[:] = ["changed"] * len(solution)
        boxes[0][0][0] = -1
        images[0][0].putpixel((0, 0), (255, 0, 0))
        trainer_state["step"] = 99
        return [0.0] * len(completions)

    seen = []

    def looks(completions, prompts, completion_ids, solution, boxes, images, trainer_state):
        parts = [completions[0][0]["content"], prompts[0][0]["content"][1]["text"], completion_ids[0], solution[0]]
        seen.append((*parts, boxes[0], images[0][0].getpixel((0, 0)), trainer_state["step"]))
        return [0.0] * len(completions)

    image = Image.new("RGB", (2, 2))
    group = make_group(
        ["red", "blue"], prompt=CONVERSATION, images=[EncodedImage(b"", "p", (2, 2))], solution="red", boxes=[[1, 2]]
    )
    scorer = Scorer([changes, looks, changes, looks], decode_images=lambda images: [image])
    for _ in range(2):
        scorer.score([group], trainer_state=state)
    assert seen == [("red", "what colour?", [0], "red", [[1, 2]], (0, 0, 0), 1)] * 4
    assert group.prompt.row.prompt == CONVERSATION and group.prompt.row.columns["boxes"] == [[1, 2]]
    assert state == {"step": 1}
