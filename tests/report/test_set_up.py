from __future__ import annotations

from boresight.report.set_up import differing, set_up_of

RUN = {
    "method": "GRPOTrainer",
    "adapter": None,
    "train_dataset": "12 rows",
    "command": "boresight grpo --beta 0.1",
    "set": ["beta", "gone"],
    "options": {"beta": 0.1, "seed": 42, "loss_weights": [1.0, 0.5]},
}


def test_what_was_set_stands_before_the_rest() -> None:
    assert set_up_of(RUN) == {
        "command": "boresight grpo --beta 0.1",
        "about": [["method", "GRPOTrainer"], ["rows", "12 rows"]],
        "chosen": [["beta", "0.1"]],
        "others": [["loss_weights", "[1.0, 0.5]"], ["seed", "42"]],
    }
    assert set_up_of({}) == {"command": "", "about": [], "chosen": [], "others": []}


def test_runs_differ_in_options_and_data_but_not_in_where_they_are() -> None:
    other = RUN | {
        "train_dataset": "13 rows",
        "options": RUN["options"] | {"beta": 0.2, "output_dir": "b", "new": True},
    }  # pyright: ignore[reportOperatorIssue]
    assert differing([RUN, other]) == [
        ("rows", ["12 rows", "13 rows"]),
        ("beta", ["0.1", "0.2"]),
    ]
    # An option of another version of the class says something where it was set.
    assert differing([RUN, other | {"set": ["new"]}])[-1] == ("new", ["–", "true"])
    assert differing([RUN, RUN]) == []


def test_defaults_of_another_method_are_no_differences() -> None:
    sft = {"method": "SFTTrainer", "options": {"seed": 1, "packing": False}, "set": ["seed"]}
    grpo = {"method": "GRPOTrainer", "options": {"seed": 1, "beta": 0.0, "epsilon": 0.3}, "set": ["epsilon"]}
    assert differing([sft, grpo]) == [("method", ["SFTTrainer", "GRPOTrainer"]), ("epsilon", ["–", "0.3"])]
