"""The help, and what is said of words that are no flags."""

from __future__ import annotations

import subprocess
import sys

import pytest

from boresight.cli import TRAINING, main
from boresight.cli.command import parser_of
from boresight.cli.flags import nearest_flag
from boresight.errors import ConfigError


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("everything", [False, True])
def test_the_help_fits_a_terminal(name: str, everything: bool) -> None:
    lines = parser_of(name).help_text(everything=everything).splitlines()
    assert max(map(len, lines[1:])) <= 80
    assert len(lines) < (140 if not everything else 700)


@pytest.mark.parametrize("name", TRAINING)
def test_help_all_has_every_option_once_and_names_the_refused(name: str) -> None:
    parser = parser_of(name)
    text = parser.help_text(everything=True)
    for option in parser.options:
        flags = text.count(f"\n  --{option} ") + text.count(f"\n  --{option}\n")
        flags += text.count(f"\n  --no_{option} ") + text.count(f"\n  --no_{option}\n")
        assert flags == (option not in parser.unsupported), option
        assert option not in parser.unsupported or option in text.split("refused")[1]


@pytest.mark.parametrize("name", TRAINING)
def test_every_option_that_the_help_shows_first_is_there(name: str) -> None:
    parser = parser_of(name)
    planned = {"use_vllm", "vllm_mode"}  # with the engine
    assert {option for options in parser.first.values() for option in options} - planned <= parser.options.keys()


def test_the_rooms_are_the_headings_in_the_order_of_causation() -> None:
    headings: dict[str, str] = {}
    heading = ""
    for line in parser_of("grpo").help_text(everything=True).splitlines():
        if line.endswith(":") and not line.startswith(" "):
            heading = line.removesuffix(":")
        elif line.startswith("  --"):
            headings[line.split()[0]] = heading
    rooms = ["model", "data", "rollout", "rewards", "advantage", "loss", "trainer", "report"]
    assert [room for room in dict.fromkeys(headings.values()) if room in rooms] == rooms
    placed = {
        "--beta": "loss",
        "--num_generations": "rollout",
        "--gold_check": "rewards",
        "--save_steps": "checkpoints",
    }
    assert {flag: headings[flag] for flag in placed} == placed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "boresight sft has no option --learning_rat. Did you mean --learning_rate?"),
        (["--per-device-batch-size", "4"], "Did you mean --per_device_eval_batch_size?"),
        (["--num_generations", "4"], "boresight sft has no option --num_generations"),
        (["--learn", "1"], "boresight sft has no option --learn."),  # no abbreviations
        (["extra"], "'extra' belongs to no option"),
        (["--load_in_4bit"], "--load_in_4bit is TRL's and not here: quantised weights are not tried yet."),
        (["--max_steps", "many"], "invalid int value: 'many'"),
        (["--lr_scheduler_type", "cosin"], "invalid choice: 'cosin'"),
        (["--output_dir"], "expected one argument"),
    ],
)
def test_words_that_are_no_flags(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parser_of("sft").read(words)
    assert message in str(caught.value)


def test_both_spellings_and_values_of_every_kind() -> None:
    words = [
        "--learning-rate",
        "1e-5",
        "--max_steps=3",
        "--no-gradient-checkpointing",
        "--bf16",
        "--epsilon-high",
        "None",
    ]
    words += ["--report_to", "none", "--lora-target-modules", "q_proj", "v_proj", "--reward_weights", "1", "2.5"]
    words += ["--torch_dtype", "bfloat16", "--eval-strategy", "steps", "--dataloader_in_order", "false"]
    read = parser_of("grpo").read(words)
    assert (read["learning_rate"], read["max_steps"], read["gradient_checkpointing"]) == (1e-5, 3, False)
    assert (read["bf16"], read["epsilon_high"], read["report_to"]) == (True, None, "none")
    assert (read["lora_target_modules"], read["reward_weights"]) == (["q_proj", "v_proj"], [1.0, 2.5])
    assert (read["dtype"], read["eval_strategy"], read["dataloader_in_order"]) == ("bfloat16", "steps", False)
    assert parser_of("grpo").read(["--report_to", "wandb", "trackio"])["report_to"] == ["wandb", "trackio"]


def test_a_hint_is_spelt_as_people_type() -> None:
    assert nearest_flag("learning_rat", ["learning_rate"]) == " Did you mean --learning_rate?"
    assert nearest_flag("zzz", ["learning_rate"]) == ""


def test_an_unknown_flag_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grpo", "--learning_rat", "1"]) == 2
    assert capsys.readouterr().err.startswith("boresight: boresight grpo has no option --learning_rat.")


def test_the_first_help_loads_no_torch() -> None:
    source = (
        "import sys; from boresight.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout
    assert printed.endswith("[]\n")
    assert all(f"    {name}" in printed for name in TRAINING)
