"""S4 and S5: the article's GRPO sample, its two reward functions, and GSPO (S6), as printed but for the import and S5's line."""

from __future__ import annotations

from collections.abc import Callable

DATA = """
import os
from boresight.demo.easy_vqa import load_easy_vqa
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(os.environ["MODEL"])
processor = AutoProcessor.from_pretrained(os.environ["MODEL"])
train_dataset = load_easy_vqa("train", num_rows=8).map(lambda row: {"solution": f"${row['solution']}$"})
"""

REWARDS = '''
import re
from math_verify import LatexExtractionConfig, parse, verify

def format_reward(completions, **kwargs):
    """Reward function that checks if the completion has a specific format."""
    pattern = r"^<think>.*?</think>\\s*<answer>.*?</answer>$"
    matches = [re.match(pattern, content if isinstance(content, str) else content[0]["content"]) for content in completions]
    rewards_list = [1.0 if match else 0.0 for match in matches]
    rewards = [1.0 if match else 0.0 for match in matches]
    print(completions)
    print(rewards)
    return rewards

def accuracy_reward(completions, **kwargs):
    """Reward function that checks if the completion is the same as the ground truth."""
    solutions = kwargs['solution']
    completion_contents = [completion[0]["content"] for completion in completions]
    rewards = []
    for content, solution in zip(completion_contents, solutions):
        gold_parsed = parse(solution, extraction_mode="first_match", extraction_config=[LatexExtractionConfig()])
        answer_parsed = parse(content, extraction_mode="first_match", extraction_config=[LatexExtractionConfig()])
        if len(gold_parsed) != 0:
            try:
                rewards.append(float(verify(answer_parsed, gold_parsed)))
            except Exception:
                rewards.append(0.0)
        else:
            rewards.append(1.0)
    return rewards
'''

TRAIN = """
from boresight import GRPOConfig, GRPOTrainer

training_args = GRPOConfig(
    learning_rate=1e-5,
    remove_unused_columns=False,
    max_prompt_length=None,
    {options}
)
trainer = GRPOTrainer(
    model=model,
    reward_funcs=[format_reward, accuracy_reward],
    args=training_args,
    train_dataset=train_dataset,
    processing_class=processor
)
trainer.train()
print("logged", sorted(trainer.state.log_history[0]))
"""

CHOICE = 'max_steps=4, num_generations=4, per_device_train_batch_size=4, max_completion_length=8, logging_steps=1, report_to="none",'


def test_s4_grpo_with_the_articles_rewards(run_script: Callable[[str], str]) -> None:
    printed = run_script(DATA + REWARDS + TRAIN.replace("{options}", CHOICE))
    assert "'rewards/accuracy_reward/mean'" in printed
    assert "'rewards/format_reward/mean'" in printed


def test_s5_each_reward_unchanged_on_its_own_prompt_form(run_script: Callable[[str], str]) -> None:
    """As printed, `format_reward` takes strings: with prompts that are strings it runs without S5's line."""
    plain = (
        DATA
        + 'train_dataset = train_dataset.map(lambda row: {"prompt": row["prompt"][0]["content"][1]["text"]}, remove_columns="prompt")\n'
    )
    plain = plain.replace(
        'train_dataset.map(lambda row: {"prompt"', 'type(train_dataset).from_list([{**row, "prompt"'
    ).replace('}, remove_columns="prompt")', "} for row in train_dataset])")
    rewards = REWARDS.replace('content if isinstance(content, str) else content[0]["content"]', "content")
    printed = run_script(
        plain
        + rewards
        + TRAIN.replace("{options}", CHOICE).replace("[format_reward, accuracy_reward]", "format_reward")
    )
    assert "'rewards/format_reward/mean'" in printed


def test_s6_gspo(run_script: Callable[[str], str]) -> None:
    recipe = 'importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4, beta=0.0, loss_type="grpo", steps_per_generation=4,'
    printed = run_script(DATA + REWARDS + TRAIN.replace("{options}", CHOICE + recipe))
    assert "'clip_ratio/high_mean'" in printed
