"""The help, and what is said of words that are no flags."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from boresight.cli import TRAINING, main
from boresight.cli.command import parser_of, read_command
from boresight.cli.env import gpus
from boresight.cli.flags import nearest_flag
from boresight.cli.help import examples, help_text
from boresight.cli.methods import METHODS, first_options, options_of
from boresight.cli.options import NOT_HERE
from boresight.errors import ConfigError


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("everything", [False, True])
def test_the_help_fits_a_terminal(name: str, everything: bool) -> None:
    lines = help_text(METHODS[name], f"boresight {name}", everything=everything).splitlines()
    assert max(map(len, lines[1:])) <= 80
    assert len(lines) < (140 if not everything else 760)


@pytest.mark.parametrize("name", TRAINING)
def test_help_all_has_every_option_once_and_names_the_refused(name: str) -> None:
    refused = METHODS[name].unsupported
    text = help_text(METHODS[name], f"boresight {name}", everything=True)
    for option in options_of(name):
        flags = text.count(f"\n  --{option} ") + text.count(f"\n  --{option}\n")
        flags += text.count(f"\n  --no_{option} ") + text.count(f"\n  --no_{option}\n")
        assert flags == (option not in refused), option
        assert option not in refused or option in text.split("refused")[1]


@pytest.mark.parametrize("name", TRAINING)
def test_every_option_that_the_help_shows_first_is_there(name: str) -> None:
    first = first_options(METHODS[name])
    assert {option for options in first.values() for option in options} <= options_of(name).keys()


def test_the_rooms_are_the_headings_in_the_order_of_causation() -> None:
    headings: dict[str, str] = {}
    heading = ""
    for line in help_text(METHODS["grpo"], "boresight grpo", everything=True).splitlines():
        if line.endswith(":") and not line.startswith(" "):
            heading = line.removesuffix(":")
        elif line.startswith("  --"):
            headings[line.split()[0]] = heading
    rooms = ["model", "data", "rollout", "tools", "rewards", "advantage", "loss", "trainer", "report"]
    assert [room for room in dict.fromkeys(headings.values()) if room in rooms] == rooms
    placed = {
        "--beta": "loss",
        "--num_generations": "rollout",
        "--gold_check": "rewards",
        "--save_steps": "checkpointing & saving",
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
        (
            ["--ignore_bias_buffers"],
            "--ignore_bias_buffers is an option of TRL that boresight does not have: no supported model needs it.",
        ),
        (["--max_steps", "many"], "invalid int value: 'many'"),
        (["--lr_scheduler_type", "cosin"], "'cosin' is not one of linear, cosine"),
        (["--lr_scheduler_type", "cosin"], "Did you mean 'cosine'? See boresight sft --help."),
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


HEAVY = ("torch", "transformers", "datasets", "vllm", "accelerate", "peft", "pyarrow", "PIL", "numpy", "pandas")


@pytest.mark.parametrize(
    "words",
    [["--help"], ["env"], *([name, flag] for name in TRAINING for flag in ("--help", "--help-all")),
     *([name, "--help"] for name in ("vllm-serve", "report", "compare", "eval", "export", "demo", "doctor"))],
    ids=" ".join,
)  # fmt: skip
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    """Seconds of importing torch and transformers, for a page of text."""
    if words == ["env"] and gpus():
        pytest.skip("the names of GPUs are torch's to tell")
    source = (
        "import sys; from boresight.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), len(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout
    heavy, _, count = printed.splitlines()[-1].rpartition(" ")
    assert heavy == "[]"
    assert int(count) < 400
    assert len(printed.splitlines()) > 5


def test_a_mistake_is_answered_before_anything_heavy_is_loaded() -> None:
    source = (
        "import sys; from boresight.cli import main\n"
        "assert main(['grpo', '--modle_name_or_path', 'x']) == 2\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_first_help_names_every_training_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"    {name}" in printed for name in TRAINING)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--bf16", "false"], False),
        (["--bf16", "None"], None),
        (["--no_use_bias_correction_kl"], False),
        (["--vllm_max_model_length", "none"], None),
        (["--reward_weights", "None"], None),
        (["--include_num_input_tokens_seen"], True),
        (["--include_num_input_tokens_seen", "non_padding"], "non_padding"),
        (["--dtype", "None"], None),
        (["--layout", "Rows"], "rows"),
        (["--run_name", "None"], "None"),
        (["--chat_template_kwargs", '{"a": 1}'], '{"a": 1}'),
    ],
)
def test_values(words: list[str], value: object) -> None:
    assert list(parser_of("grpo").read(words).values()) == [value]


def test_only_what_was_typed_is_read() -> None:
    assert parser_of("grpo").read(["--beta", "0"]) == {"beta": 0.0}


def test_no_flag_that_is_there_is_said_to_be_missing() -> None:
    known = {name for method in METHODS for name in options_of(method)}
    assert not NOT_HERE.keys() & known


def test_help_about_one_thing_shows_only_that(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["grpo", "--help", "sleep"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^  (--\w+)", shown, re.MULTILINE) == ["--vllm_enable_sleep_mode"]


def test_help_about_nothing_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "--help", "advantag"]) == 2  # SFT has none
    assert "no option of boresight sft is about 'advantag'" in capsys.readouterr().err


@pytest.mark.parametrize("name", METHODS)
def test_the_examples_of_the_help_are_commands(name: str) -> None:
    method = METHODS[name]
    assert method.examples
    for example in method.examples:
        read_command(name, example.split())
        assert example.split()[0] in "\n".join(examples(method, f"boresight {name}"))
    joined = " ".join(" ".join(examples(method, f"boresight {name}")).replace("\\", " ").split())
    assert joined == " ".join(f"boresight {name} {example}" for example in method.examples)


def test_doctor_without_a_subject_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 2
    shown = capsys.readouterr().out
    for line in ("boresight doctor grpo ", "--probe --model", "--plan --model", "--replay FILE"):
        assert line in shown
