"""DPO, MPO and their kin on a tiny Qwen2.5-VL and real images."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoTokenizer

from boresight import DPOConfig, DPOTrainer
from boresight.errors import ConfigError, DataError
from boresight.loss.objectives import PREFERENCES
from boresight.loss.preference_options import MPO
from boresight.loss.shift import RewardShift
from tests.trainer.conftest import QUIET, records


def preferences(num_rows: int = 24) -> list[dict[str, Any]]:
    """Real questions, the right answer preferred to another; lengths uneven, every fourth row without an image."""
    rows = []
    for index, row in enumerate(records(num_rows)):
        right, wrong = row["solution"], "teal" if row["solution"] != "teal" else "red"
        chosen = " ".join(["it is"] * (index % 3) + [right])
        rejected = " ".join([wrong] + ["I think"] * (index % 2))
        rows.append({"prompt": row["prompt"], "image": row["image"]})
        rows[-1] |= {
            name: [{"role": "assistant", "content": text}]
            for name, text in (("chosen", chosen), ("rejected", rejected))
        }
    return rows


def trainer(
    folder: Path | nn.Module, out: Path, rows: list[dict[str, Any]] | None = None, **options: Any
) -> DPOTrainer:
    given = {
        name: options.pop(name)
        for name in ("ref_model", "peft_config", "eval_dataset", "processing_class")
        if name in options
    }
    settings = {"per_device_train_batch_size": 4, "max_steps": 3, "use_cpu": True} | QUIET | options
    return DPOTrainer(
        str(folder) if isinstance(folder, Path) else folder,
        args=DPOConfig(output_dir=str(out), **settings),
        train_dataset=preferences() if rows is None else rows,
        **given,
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def logged(run: DPOTrainer, name: str) -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry]


def test_the_first_step_is_log_2_and_then_margins_grow(model_folder: Path, tmp_path: Path) -> None:
    run = trainer(model_folder, tmp_path, max_steps=6)
    run.train()
    assert logged(run, "loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    assert logged(run, "rewards/margins")[0] == pytest.approx(0, abs=1e-5)
    assert logged(run, "rewards/margins")[-1] > 0.01
    assert {
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "loss/sigmoid",
        "loss/sigmoid_weighted",
    } <= run.state.log_history[0].keys()
    assert distance(weights(AutoModelForImageTextToText.from_pretrained(model_folder)), weights(run.model)) > 1e-4


@pytest.mark.parametrize("name", PREFERENCES)
def test_every_loss_trains(model_folder: Path, tmp_path: Path, name: str) -> None:
    options = {"label_smoothing": 0.1} if name in ("exo_pair", "robust") else {}
    run = trainer(model_folder, tmp_path, loss_type=name, max_steps=2, gradient_accumulation_steps=2, **options)
    run.train()
    assert all(math.isfinite(value) for value in logged(run, "loss") + logged(run, "grad_norm"))
    assert logged(run, "grad_norm")[0] > 0


@pytest.mark.parametrize(
    "options",
    [
        dict(MPO),
        {"loss_type": ["aot"]},
        {"use_weighting": True, "ld_alpha": 0.5},
    ],
    ids=["mpo", "aot", "weighted"],
)
def test_how_a_step_is_cut_changes_nothing(model_folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Eight pairs in one pass, in two, in eight, and under a token budget."""
    cuts: list[dict[str, Any]] = [
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"per_device_train_batch_size": 8, "max_tokens_per_pass": 150},
    ]
    ends, shifts = [], []
    for number, cut in enumerate(cuts):
        run = trainer(model_folder, tmp_path / str(number), **options, **cut)
        run.train()
        ends.append(weights(run.model))
        shifts.append(run.shift.value)
    for end, shift in zip(ends[1:], shifts[1:], strict=True):
        assert distance(ends[0], end) < 2e-5
        assert shift == pytest.approx(shifts[0], abs=1e-7)


def test_the_running_shift_is_the_mean_of_the_steps_before(model_folder: Path, tmp_path: Path) -> None:
    """MATHS: δ of step t is the cumulative mean of (R_c + R_r)/2 over all pairs of the steps before t. Recomputed literally."""
    run = trainer(model_folder, tmp_path, **MPO, max_steps=5)
    means: list[float] = []
    shifts: list[float] = []
    inner = run.loss

    def watched(model: nn.Module, items: Any, total: Tensor, metrics: Any) -> Tensor:
        shifts.append(run.shift.value)
        with torch.no_grad():
            stats = run.policy([item.group for item in items])
        policy = (stats.logp * stats.mask).sum(1)
        rewards = run.args.beta * (policy - torch.cat([item.reference for item in items]))
        means.append(float(rewards.view(-1, 2).mean()))
        return inner(model, items, total, metrics)

    run.loss = watched  # pyright: ignore[reportAttributeAccessIssue]
    run.train()
    assert shifts[0] == 0
    assert shifts[1:] == pytest.approx([sum(means[:step]) / step for step in range(1, 5)], abs=1e-6)
    assert max(abs(shift) for shift in shifts) > 1e-4
    # MPO's reference code takes the current micro-batch in as well: one step sooner, so another number.
    including = [sum(means[: step + 1]) / (step + 1) for step in range(5)]
    assert max(abs(one - other) for one, other in zip(shifts, including, strict=True)) > 1e-4


def test_resumed_is_uninterrupted_bit_for_bit(model_folder: Path, tmp_path: Path) -> None:
    """MPO with a reference that follows: weights, shift and reference."""
    options = dict(MPO) | {
        "sync_ref_model": True,
        "ref_model_sync_steps": 2,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole = trainer(model_folder, tmp_path / "whole", **options)
    whole.train()
    again = trainer(model_folder, tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert distance(weights(whole.model), weights(again.model)) == 0
    assert again.shift.state_dict() == whole.shift.state_dict()
    assert whole.reference is not None and again.reference is not None
    assert distance(weights(whole.reference.forward.model), weights(again.reference.forward.model)) == 0


def test_the_reference_follows(model_folder: Path, tmp_path: Path) -> None:
    """After one move with share 0.25 each weight stands a quarter of the way."""
    run = trainer(model_folder, tmp_path, sync_ref_model=True, ref_model_sync_steps=3, ref_model_mixup_alpha=0.25)
    before = weights(run.policy.model)
    run.train()
    assert run.reference is not None
    after, moved = weights(run.policy.model), weights(run.reference.forward.model)
    for name, start in before.items():
        torch.testing.assert_close(moved[name], start + 0.25 * (after[name] - start), atol=1e-7, rtol=0)


# ---- The reference ------------------------------------------------------------------------------------------------------------------


def test_an_adapters_reference_is_the_model_without_it(model_folder: Path, tmp_path: Path) -> None:
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    run = trainer(model_folder, tmp_path, peft_config=lora)
    assert run.reference is not None and run.reference.forward is run.policy
    groups = [run.encode(row) for row in _some_rows(run)]
    plain = trainer(model_folder, tmp_path / "plain")
    assert torch.allclose(run._logps(groups, run.reference), plain._logps(groups, plain.policy), atol=1e-5)
    assert not torch.allclose(run._logps(groups, run.policy), plain._logps(groups, plain.policy), atol=1e-2)


def _some_rows(run: DPOTrainer) -> list[Any]:
    from boresight.data.sources import RowDataset

    rows = RowDataset(run.train_dataset)
    return [rows[index] for index in range(4)]


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_precomputed_is_computed(model_folder: Path, tmp_path: Path, adapted: bool) -> None:
    """The same weights after training, without a second model; the file serves the next run; evaluation included."""
    options: dict[str, Any] = {"eval_dataset": preferences(6), "eval_strategy": "steps", "eval_steps": 3}
    if adapted:
        options["peft_config"] = LoraConfig(target_modules=["q_proj", "v_proj"], r=4)
    computed = trainer(model_folder, tmp_path / "computed", **options)
    computed.train()
    ends = []
    for name in ("pre", "again"):
        run = trainer(
            model_folder, tmp_path / name, precompute_ref_log_probs=True, precompute_ref_batch_size=7,
            precomputed_ref_path=str(tmp_path / "reference.safetensors"), **options,
        )  # fmt: skip
        assert run.reference is None
        run.train()
        ends.append(weights(run.model))
        assert logged(run, "eval_loss") == pytest.approx(logged(computed, "eval_loss"), abs=1e-5)
    assert distance(ends[0], weights(computed.model)) < 1e-5
    assert distance(ends[0], ends[1]) == 0


def test_a_valid_table_needs_no_reference_model(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _trained_copy(model_folder, tmp_path / "other")
    options = {"precompute_ref_log_probs": True, "ref_model": str(other)}
    trainer(model_folder, tmp_path / "run", **options)
    loaded: list[str] = []
    monkeypatch.setattr("boresight.trainer.reference.load_model", lambda name, **_: loaded.append(name))
    again = trainer(model_folder, tmp_path / "run", **options)
    assert loaded == []
    assert again.precomputed is not None and len(again.precomputed.entries) == 24


def _trained_copy(folder: Path, out: Path) -> Path:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_pixels": 28 * 28 * 4}, "processor or pixel budget"),
        ({"chat_template_kwargs": {"mood": "calm"}}, "chat template"),
        ({"max_length": 500, "overlong_pairs": "truncate_completion"}, "length policy"),
        ({"ld_alpha": 0.5}, "ld_alpha"),
        ({"bf16": True}, "dtype"),
        ({"model": "scaled"}, "model weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_stale_table_is_refused_with_the_reason(
    model_folder: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    table = str(tmp_path / "table.safetensors")
    options = {"precompute_ref_log_probs": True, "precomputed_ref_path": table}
    trainer(model_folder, tmp_path / "one", **options)
    model = AutoModelForImageTextToText.from_pretrained(model_folder)
    if change.pop("model", None):
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.01)
    with pytest.raises(ConfigError, match=f"another {named}.*delete it"):
        trainer(model, tmp_path / "two", processing_class=_processor(model_folder), **options, **change)


def _processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder)


def test_new_samples_are_computed_and_old_ones_kept(model_folder: Path, tmp_path: Path) -> None:
    """Another image under the same words is another sample."""
    few = trainer(model_folder, tmp_path, preferences(8), precompute_ref_log_probs=True)
    assert few.precomputed is not None
    old = dict(few.precomputed.entries)
    rows = preferences(8)
    rows[0]["image"] = preferences(24)[21]["image"]
    more = trainer(model_folder, tmp_path, rows, precompute_ref_log_probs=True)
    assert more.precomputed is not None
    assert len(more.precomputed.entries) == 9
    assert all(torch.equal(more.precomputed.entries[digest], pair) for digest, pair in old.items())


# ---- Pairs that are not as one hopes ------------------------------------------------------------------------------------------------


def test_overlong_pairs(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = preferences(12)
    rows[5]["rejected"] = [{"role": "assistant", "content": "no " * 300}]
    fitting = trainer(model_folder, tmp_path, rows, max_length=700)
    longest = max(
        group.num_prompt_tokens + max(len(c.ids) for c in group.completions)
        for group in map(fitting.encode, _all_rows(fitting))
    )
    limit = longest - 1
    with pytest.raises(DataError, match=rf"1 of 12 pairs are longer .*row 5 \({longest} tokens\).*truncate_completion"):
        trainer(model_folder, tmp_path, rows, max_length=limit)
    dropped = trainer(model_folder, tmp_path, rows, max_length=limit, overlong_pairs="drop")
    assert len(dropped.train_dataset) == 11
    assert "1 of 12 training pairs are longer" in capsys.readouterr().out
    cut = trainer(model_folder, tmp_path, rows, max_length=limit, overlong_pairs="truncate_completion")
    group = cut.encode(_all_rows(cut)[5])
    assert group.num_prompt_tokens + len(group.completions[1].ids) == limit
    assert [completion.truncated for completion in group.completions] == [False, True]
    with pytest.raises(DataError, match="leave no room for an answer"):
        trainer(model_folder, tmp_path, rows, max_length=10, overlong_pairs="truncate_completion")
    with pytest.raises(DataError, match="none is left"):
        trainer(model_folder, tmp_path, rows, max_length=5, overlong_pairs="drop")


def _all_rows(run: DPOTrainer) -> list[Any]:
    from boresight.data.sources import RowDataset

    rows = RowDataset(run.train_dataset)
    return [rows[index] for index in range(len(rows))]


def test_equal_answers_teach_nothing(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = preferences(4)
    for row in rows:
        row["rejected"] = row["chosen"]
    run = trainer(model_folder, tmp_path, rows, max_steps=1)
    assert "4 of 4 training pairs have the same answer" in capsys.readouterr().out
    run.train()
    assert logged(run, "loss") == pytest.approx([math.log(2)], abs=1e-6)
    assert logged(run, "grad_norm")[0] < 1e-5


def test_empty_answers_are_the_end_token(model_folder: Path, tmp_path: Path) -> None:
    rows = preferences(4)
    rows[0]["rejected"] = [{"role": "assistant", "content": ""}]
    run = trainer(model_folder, tmp_path, rows, max_steps=2, **MPO)
    assert len(run.encode(_all_rows(run)[0]).completions[1].ids) == 1
    run.train()
    assert all(map(math.isfinite, logged(run, "loss")))


def test_an_image_in_one_answer_is_refused(model_folder: Path, tmp_path: Path) -> None:
    """The chosen answer shows an image, the rejected one does not: nothing says which prompt they share."""
    rows = preferences(4)
    rows[2]["chosen"] = [{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "red"}]}]
    with pytest.raises(DataError, match="row 2"):
        trainer(model_folder, tmp_path, rows)


def test_pairs_of_one_prompt_encode_its_image_once(model_folder: Path, tmp_path: Path) -> None:
    rows = preferences(4)
    rows[1] |= {"prompt": rows[0]["prompt"], "image": rows[0]["image"]}
    run = trainer(model_folder, tmp_path, rows, max_steps=1)
    run.train()
    # Of rows 0 to 3, three have an image and two share it; the policy encodes them and so does the reference.
    assert logged(run, "work/vision_encodes") == [2 + 2]
    assert logged(run, "work/unshared_vision_encodes") == [2 * 3 * 2]
    alone = [trainer(model_folder, tmp_path, [row], per_device_train_batch_size=1) for row in rows[:2]]
    both = run._logps([run.encode(row) for row in _all_rows(run)[:2]], run.reference)  # pyright: ignore[reportArgumentType]
    assert run.reference is not None
    for number, one in enumerate(alone):
        assert one.reference is not None
        expected = one._logps([one.encode(row) for row in _all_rows(one)], one.reference)
        torch.testing.assert_close(both[2 * number : 2 * number + 2], expected, atol=1e-5, rtol=0)


def test_evaluation_uses_the_same_losses_and_leaves_the_shift_alone(model_folder: Path, tmp_path: Path) -> None:
    options = dict(MPO) | {"max_steps": 4, "eval_dataset": preferences(8), "eval_strategy": "steps"}
    watched = trainer(model_folder, tmp_path / "a", eval_steps=1, **options)
    watched.train()
    alone = trainer(model_folder, tmp_path / "b", eval_steps=4, **options)
    alone.train()
    assert {"eval_loss", "eval_rewards/accuracies", "eval_loss/bco_pair", "eval_loss/sft_weighted"} <= _keys(watched)
    assert distance(weights(watched.model), weights(alone.model)) == 0
    assert watched.shift.state_dict() == alone.shift.state_dict()
    assert isinstance(watched.shift, RewardShift)


def _keys(run: DPOTrainer) -> set[str]:
    return {key for entry in run.state.log_history for key in entry}


# ---- Options ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "sigmod"}, "sigmoid"),
        ({"loss_tpye": "sigmoid"}, "loss_type"),
        ({"overlong_pairs": "drop"}, "set max_length"),
        ({"precompute_ref_log_probs": True, "sync_ref_model": True}, "set one of them"),
        ({"precomputed_ref_path": "x"}, "set precompute_ref_log_probs=True"),
        ({"ref_model_sync_steps": 3}, "set sync_ref_model=True"),
        ({"sync_ref_model": True, "ref_model_mixup_alpha": 0.0}, "above 0"),
        ({"bco_shift": "ema"}, "bco_pair"),
        ({"loss_weights": [1.0, 2.0]}, "give one each"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DPOConfig(use_cpu=True, **options)


def test_an_adapter_cannot_be_followed_by_itself(model_folder: Path, tmp_path: Path) -> None:
    lora = LoraConfig(target_modules=["q_proj"], r=4)
    with pytest.raises(Exception, match="pass a ref_model"):
        trainer(model_folder, tmp_path, peft_config=lora, sync_ref_model=True)


def test_dropout_is_off_unless_asked_for(model_folder: Path, tmp_path: Path) -> None:
    lora = LoraConfig(target_modules=["q_proj"], r=4, lora_dropout=0.5)
    for disable in (True, False):
        run = trainer(model_folder, tmp_path, peft_config=copy.deepcopy(lora), disable_dropout=disable)
        rates = {module.p for module in run.policy.outer.modules() if isinstance(module, nn.Dropout)}
        assert (0.5 in rates) is not disable


def test_what_is_saved_is_loaded_by_peft(model_folder: Path, tmp_path: Path) -> None:
    run = trainer(model_folder, tmp_path, peft_config=LoraConfig(target_modules=["q_proj"], r=4))
    run.train()
    run.save_model(str(tmp_path / "adapter"))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4
    loaded = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(model_folder), tmp_path / "adapter")
    trained = {name: tensor for name, tensor in weights(run.policy.outer).items() if "lora_" in name}
    assert trained and distance(trained, weights(loaded)) == 0
