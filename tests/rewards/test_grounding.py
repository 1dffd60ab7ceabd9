from __future__ import annotations

import pytest

from boresight.errors import ConfigError, ModelError, RewardError
from boresight.rewards import (
    Scorer,
    get_iou_reward,
    get_point_in_box_reward,
    iou_reward,
    point_in_box_reward,
)
from boresight.rewards.boxes import stated_box, stated_point
from boresight.rewards.check_boxes import check_boxes
from boresight.rewards.grounding import Coordinates, box_iou, scale_to_original
from boresight.types import EncodedImage


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[1, 2, 30, 4.5]", (1, 2, 30, 4.5)),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]\n```', (1, 2, 3, 4)),
        ("the box (1,2,3,4) it is", (1, 2, 3, 4)),
        ("[-1, 2, 3, 4]", (-1, 2, 3, 4)),
        ("[1, 2, 3, 4] or [5, 6, 7, 8]", None),
        ("[3, 2, 1, 4]", None),
        ("[1, 2, 3, 2]", None),
        ("[1, 2, 3]", None),
        ("1, 2, 3, 4", (1, 2, 3, 4)),
        ("about 1, 2, 3, 4", None),
        ("", None),
    ],
)
def test_stated_box(text, box):
    assert stated_box(text) == box


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("[3, 4.5]", (3, 4.5)),
        ('{"point_2d": [3, 4]}', (3, 4)),
        ("(3, 4)", (3, 4)),
        ("[1, 2, 5, 10]", (3, 6)),
        ("[1, 2] then [3, 4]", None),
        ("3, 4", (3, 4)),
        ("at 3, 4", None),
    ],
)
def test_stated_point(text, point):
    assert stated_point(text) == point


@pytest.mark.parametrize(
    ("box", "other", "iou"),
    [
        ((0, 0, 4, 2), (0, 0, 4, 2), 1),
        ((0, 0, 4, 2), (1, 0, 5, 2), 6 / 10),
        ((0, 0, 10, 10), (2, 3, 4, 8), 10 / 100),
        ((0, 0, 4, 2), (3, 1, 9, 3), 1 / 19),
        ((0, 0, 4, 2), (4, 0, 8, 2), 0),
        ((0, 0, 4, 2), (0, 5, 4, 7), 0),
    ],
)
def test_box_iou(box, other, iou):
    assert box_iou(box, other) == box_iou(other, box) == pytest.approx(iou)


def test_scales():
    assert scale_to_original("original", (640, 480)) == (1, 1)
    assert scale_to_original("thousand", (640, 480)) == (0.64, 0.48)
    assert scale_to_original("model", (640, 480), (320, 120)) == (2, 4)
    with pytest.raises(RewardError, match="model_image_sizes"):
        scale_to_original("model", (640, 480))


def test_iou_reward_in_each_way_of_writing():
    sizes, seen, bbox = [[(640, 480)]], [[(320, 120)]], [[64, 48, 320, 240]]
    texts: dict[Coordinates, str] = {
        "original": "[64, 48, 320, 240]",
        "model": "[32, 12, 160, 60]",
        "thousand": "[100, 100, 500, 500]",
    }
    for way, own in texts.items():
        for other, text in texts.items():
            (reward,) = get_iou_reward(way)([f"<answer>{text}</answer>"], bbox, sizes, seen)
            assert reward == pytest.approx(1) if way == other else reward < 0.9, (way, other)
        assert get_iou_reward(way)([own], bbox, sizes, seen) == [pytest.approx(1)]


def test_iou_reward():
    texts = [
        "<think>[0, 0, 1, 1]</think><answer>[1, 0, 5, 2]</answer>",
        "<answer>left</answer>",
        "[0, 0, 4, 2]",
        "[0, 0, 4, 2]",
    ]
    bbox = [(0, 0, 4, 2), (0, 0, 4, 2), [0.0, 0.0, 4.0, 2.0], None]
    assert iou_reward(texts, bbox, [[(8, 8)], [(8, 8)], [(8, 8)], []]) == [pytest.approx(0.6), 0, 1, None]


def test_several_golds_are_matched_one_to_one():
    """The best pair first; a box too many or too few lowers the mean."""
    golds = [[[0, 0, 4, 2], [10, 0, 14, 2]]] * 4
    texts = [
        "[10, 0, 14, 2] [1, 0, 5, 2]",
        "[0, 0, 4, 2]",
        "[0, 0, 4, 2] [0, 0, 4, 2]",
        "[0, 0, 4, 2] [10, 0, 14, 2] [20, 0, 24, 2]",
    ]
    sizes = [[(30, 8)]] * 4
    assert iou_reward(texts, golds, sizes) == [pytest.approx(mark) for mark in (1.6 / 2, 0.5, 0.5, 2 / 3)]
    assert point_in_box_reward(["[11, 1]", "[6, 1]"], golds[:2], sizes[:2]) == [1, 0]


def test_what_states_no_box_is_counted():
    """Of five with a gold: none, a hedge, two corners swapped. A row without a gold is not asked."""
    logged = {}
    texts = ["left", "[0, 0, 4, 2] or [1, 0, 5, 2]", "[4, 2, 0, 0]", "[0, 0, 4, 2]", "(0,0),(4,2)", "left"]
    bbox = [[0, 0, 4, 2]] * 5 + [None]
    assert iou_reward(texts, bbox, [[(8, 8)]] * 6, log_metric=logged.__setitem__) == [0, 0, 0, 1, 1, None]
    point_in_box_reward(["nowhere", "[1, 1]"], bbox[:2], [[(8, 8)]] * 2, log_metric=logged.__setitem__)
    assert logged == {"rewards/iou_reward/unparsed": 0.6, "rewards/point_in_box_reward/unparsed": 0.5}


def test_golds_in_other_coordinates(make_group):
    reward = get_iou_reward("original", gold_coordinates="thousand")
    assert reward(["[64, 48, 320, 240]"], [[100, 100, 500, 500]], [[(640, 480)]]) == [pytest.approx(1)]
    (check,) = check_boxes_of(make_group, reward, [100, 100, 500, 500], [0, 0, 1000, 1000])
    assert check.is_sound and "bbox in thousandths of the image's sides (0 to 1000)" in str(check)


def check_boxes_of(make_group, reward, *boxes):
    image = EncodedImage(b"", "p", (640, 480))
    prompts = [make_group([], index=index, images=[image], bbox=bbox).prompt for index, bbox in enumerate(boxes)]
    return check_boxes(Scorer(reward), prompts)


def test_golds_that_do_not_suit_their_image_are_named(make_group):
    (check,) = check_boxes_of(make_group, "iou_reward", [10, 10, 700, 400], [4, 2, 0, 0], [1, 2, 3], [5, 5, 90, 90])
    assert not check.is_sound
    assert "finds 1 of them outside their image: row 0 ([10, 10, 700, 400] in 640×480 pixels)" in str(check)
    assert "cannot use 2 of them: row 1 (bbox [4, 2, 0, 0] is not" in str(check) and "row 2 (bbox [1, 2, 3]" in str(
        check
    )
    (check,) = check_boxes_of(make_group, "point_in_box_reward", [0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1])
    assert not check.is_sound and "such as 'unit'" in str(check)
    (check,) = check_boxes_of(make_group, "iou_reward", None)
    assert not check.is_sound and str(check) == "iou_reward applies to none of the rows: they have no bbox"
    assert check_boxes_of(make_group, "exact_answer_reward", [0, 0, 1, 1]) == []


def test_point_in_box_reward():
    texts = ["<answer>[4, 3]</answer>", "[4.5, 3]", "[4, 1]", "nowhere", "[1, 2, 5, 4]", "[3, 3]"]
    bbox = [[2, 2, 4, 6]] * 5 + [None]
    assert point_in_box_reward(texts, bbox, [[(8, 8)]] * 6) == [1, 0, 0, 0, 1, None]
    assert get_point_in_box_reward("thousand")(["[400, 300]"], [[2, 2, 4, 6]], [[(10, 10)]]) == [1]
    assert get_point_in_box_reward("thousand")(["[4, 3]"], [[2, 2, 4, 6]], [[(10, 10)]]) == [0]


def test_scored_with_the_sizes_that_they_ask_for(make_group):
    image = EncodedImage(b"", "p", (640, 480))
    group = make_group(["[32, 12, 160, 60]", "[64, 48, 320, 240]"], images=[image], bbox=[64, 48, 320, 240])
    funcs = ["iou_reward", "point_in_box_reward", get_iou_reward("model")]
    table = Scorer(funcs, model_sizes=lambda prompt: [(320, 120)]).score([group])
    assert table.names == ("iou_reward", "point_in_box_reward", "iou_reward_2")
    assert table.values[:, 2].tolist() == [1.0, pytest.approx(9216 / 433152)]
    assert table.values[1].tolist()[:2] == [1.0, 1.0]
    with pytest.raises(RewardError, match="needs the image's size as the model saw it"):
        Scorer(funcs).score([group])


def test_a_processor_that_cuts_tiles_is_no_obstacle_where_the_size_in_the_model_is_not_used(make_group):
    """As InternVL's, which writes thousandths."""

    def tiles(prompt):
        raise ModelError("it cuts images into tiles")

    group = make_group(["[100, 100, 500, 500]"], images=[EncodedImage(b"", "p", (640, 480))], bbox=[64, 48, 320, 240])
    assert Scorer(get_iou_reward("thousand"), model_sizes=tiles).score([group]).values.item() == pytest.approx(1)
    with pytest.raises(RewardError, match="model_image_sizes"):
        Scorer(get_iou_reward("model"), model_sizes=tiles).score([group])
    with pytest.raises(ModelError, match="tiles"):
        Scorer(lambda completions, model_image_sizes: [0.0], model_sizes=tiles).score([group])


@pytest.mark.parametrize(
    ("bbox", "sizes", "message"),
    [
        ([4, 2, 0, 0], [(8, 8)], r"bbox \[4, 2, 0, 0\] is not"),
        ([0, 0, 4, 2], [], "completion 0 has a bbox but no image"),
    ],
)
def test_bad_gold(bbox, sizes, message):
    with pytest.raises(RewardError, match=message):
        iou_reward(["[0, 0, 4, 2]"], [bbox], [sizes])


def test_unknown_coordinates():
    with pytest.raises(
        ConfigError, match="coordinates must be one of original, model, thousand, percent, unit, and is 'inches'"
    ):
        get_iou_reward("inches")  # pyright: ignore[reportArgumentType]
