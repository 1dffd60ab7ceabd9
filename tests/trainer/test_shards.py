"""Two processes whose weights FSDP2 divides learn what one process would, each holds half of the weights, and their number may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from boresight.demo.tiny import build_tiny
from boresight.errors import ConfigError
from boresight.export.job import source_of
from tests import forks

from .shards import KEPT, sft

SHORT = ("sft", "text-only", "mpo", "grpo", "gspo-lora")
BY_LAYERS = ("uneven", "passes")
BF16 = ("uneven-bf16", "uneven-bf16-as-fsdp2")
LONG = ("sft-lora", "dpo", "dpo-lora", "precomputed", "follows", "grpo-lora", "gspo", "parts", "cut")


EXACT = ("sft-64", "grpo-64")


def train(model: Path, folder: Path, ranks: int, *cases: str, **environment: str) -> Path:
    words = ("tests.trainer.shards", str(model), str(folder), *cases)
    done = forks.run(*words, ranks=ranks, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr[-10_000:]
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of more layers than are whole at once where they are gathered one after another."""
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("tiny"), vocab_size=512, num_layers=4)


@pytest.fixture(scope="module")
def alone(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short cases on one rank."""
    return train(model_folder, tmp_path_factory.mktemp("alone"), 1, *SHORT, *EXACT, *BY_LAYERS, "sent")


@pytest.fixture(scope="module")
def divided(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short cases, and a resumed run, on two ranks."""
    return train(model_folder, tmp_path_factory.mktemp("divided"), 2, *SHORT, "sent", "resumed")


@pytest.fixture(scope="module")
def by_layers(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases on two ranks that gather one layer after another, and one where they gather all."""
    return train(
        model_folder,
        tmp_path_factory.mktemp("layers"),
        2,
        *BY_LAYERS,
        *BF16,
        "as-fsdp2",
        "kept-as-shards",
        BY_LAYERS="1",
    )


@pytest.mark.timeout(500)
def test_the_runs_end(alone: Path, divided: Path) -> None:
    """Two minutes of work on an idle machine, which the limit of a single test would cut off on a busy one."""
    names = [{folder.name for folder in runs.iterdir()} for runs in (alone, divided)]
    assert names[0] - {*EXACT, *BY_LAYERS} | {"resumed"} == names[1]


def weights_of(case: Path) -> dict[str, torch.Tensor]:
    return load_file(case / "model" / "model.safetensors")


def assert_equal(one: Path, two: Path, tolerance: float) -> None:
    """Equal names and weights."""
    (file,) = one.glob("*.safetensors")
    weights, others = load_file(file), load_file(two / file.name)
    assert weights.keys() == others.keys()
    furthest = max((weights[name].double() - others[name].double()).abs().max().item() for name in weights)
    assert furthest <= tolerance


def assert_case_equal(one: Path, two: Path, model_folder: Path) -> None:
    assert_equal(one / "model", two / "model", 1e-6)
    found, other = (torch.load(folder / "found.pt", weights_only=False) for folder in (one, two))
    assert (found["share"], other["share"]) == (1.0, pytest.approx(0.5, abs=0.02))
    for line, same in zip(found["log"], other["log"], strict=True):
        for name in {"loss", "grad_norm", "reward", "kl", "rewards/margins", "completions/mean_length"} & line.keys():
            assert same[name] == pytest.approx(line[name], rel=1e-4, abs=1e-5), name
    # A control: training moved the weights by more than the tolerance.
    if (one / "model" / "model.safetensors").exists():
        before, after = (load_file(folder / "model.safetensors") for folder in (model_folder, one / "model"))
        assert max((after[name] - before[name]).abs().max().item() for name in before) > 1e-4


@pytest.mark.parametrize("case", SHORT)
def test_two_ranks_with_shards_equal_one(case: str, alone: Path, divided: Path, model_folder: Path) -> None:
    assert_case_equal(alone / case, divided / case, model_folder)


@pytest.mark.timeout(500)
@pytest.mark.parametrize("case", BY_LAYERS)
def test_layers_that_are_gathered_one_after_another_equal_one_process(
    case: str, alone: Path, by_layers: Path, model_folder: Path
) -> None:
    """With passes of old policy, reference and entropies; one rank text only; other numbers of micro-batches on each rank."""
    assert_case_equal(alone / case, by_layers / case, model_folder)
    experts = {name: weight for name, weight in weights_of(by_layers / case).items() if name.endswith("expert")}
    assert case != "uneven" or all(weight.abs().min() > 0 for weight in experts.values())


def test_both_ways_to_gather_are_equal_in_bf16(by_layers: Path, model_folder: Path) -> None:
    """One rank reads only text in a step, so that its vision tower has no gradient."""
    one, two = (weights_of(by_layers / case) for case in BF16)
    before = load_file(model_folder / "model.safetensors")
    assert max((one[name] - two[name]).abs().max().item() for name in one) <= 1e-5
    assert all((one[name] - before[name]).abs().max() > 0 for name in before if ".blocks." in name and "weight" in name)


def test_two_layers_at_most_are_whole(by_layers: Path) -> None:
    uneven, control = (torch.load(by_layers / case / "found.pt", weights_only=False) for case in ("uneven", "as-fsdp2"))
    assert 1 <= uneven["whole"] <= 2
    assert uneven["whole_gradients"] <= 1
    assert uneven["repeats"] > 0
    assert (control["whole"], control["repeats"]) == (4, 0)
    assert control["whole_gradients"] >= 4  # torch 2.15 counts 8


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_engine_is_sent_whole_weights(kind: str, alone: Path, divided: Path) -> None:
    """An adapter is merged into them."""
    one, two = (torch.load(folder / "sent" / f"{kind}.pt") for folder in (alone, divided))
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) <= 1e-6
    # Gathered and copied one layer after another, a rank holds one layer and the same numbers.
    copies, held = (torch.load(divided / "sent" / f"{kind}-{name}.pt") for name in ("copies", "whole"))
    assert copies.keys() == two.keys()
    assert all(torch.equal(copies[name], two[name]) for name in two)
    assert held == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_resumed_run_of_shards_has_the_same_bits(kind: str, divided: Path) -> None:
    folder = divided / "resumed" / kind
    assert_equal(folder / "uninterrupted", folder / "run" / "checkpoint-4", 0.0)
    assert_equal(folder / "uninterrupted", folder / "resumed", 0.0)


@pytest.mark.parametrize("kind", KEPT)
def test_a_checkpoint_of_shards_is_resumed_on_any_number_of_ranks(
    kind: str, by_layers: Path, model_folder: Path, tmp_path: Path
) -> None:
    """On two ranks with the same bits, on one within rounding. No rank has written the whole weights."""
    run = shutil.copytree(by_layers / "kept-as-shards" / kind, tmp_path / kind)
    assert_equal(run / "uninterrupted", run / "resumed", 0.0)
    checkpoint = run / "run" / "checkpoint-2"
    files = {file.name for file in checkpoint.rglob("*")}
    assert {"__0_0.distcp", "__1_0.distcp"} <= files
    assert not any(name.endswith((".safetensors", "optimizer.pt")) for name in files)
    trainer = sft(str(model_folder), str(run / "run"), **KEPT[kind])
    trainer.train(resume_from_checkpoint=str(checkpoint))
    trainer.save_model(str(run / "one"))
    assert_equal(run / "uninterrupted", run / "one", 2e-6)
    with pytest.raises(ConfigError, match="holds shards"):
        source_of(checkpoint)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "environment", [{"WHOLE_WEIGHTS": "1"}, pytest.param({}, marks=pytest.mark.soak)], ids=["ddp", "fsdp2"]
)
def test_a_run_goes_on_over_another_number_of_ranks(
    environment: dict[str, str], model_folder: Path, tmp_path: Path
) -> None:
    """Two ranks, then one, then two, each from the middle of a rollout, equal one that was never interrupted."""
    for ranks, until in ((2, 1), (1, 3), (2, 4)):
        train(model_folder, tmp_path / "changing", ranks, f"until={until}", **environment)
    train(model_folder, tmp_path / "whole", 1, "until=4")
    for method in ("grpo", "mpo"):
        whole, changing = (tmp_path / name / method / "checkpoint-4" for name in ("whole", "changing"))
        assert_equal(whole, changing, 2e-6)
        log, other = (torch.load(tmp_path / name / f"{method}.pt") for name in ("whole", "changing"))
        assert [line["step"] for line in log] == [line["step"] for line in other]
        for name in {"loss", "reward", "kl", "rewards/margins", "loss/bco_shift", "num_tokens"} & log[-2].keys():
            assert other[-2][name] == pytest.approx(log[-2][name], rel=1e-4, abs=1e-6), name


@pytest.mark.timeout(500)
@pytest.mark.parametrize("environment", [{"WHOLE_WEIGHTS": "1"}, {}], ids=["ddp", "fsdp2"])
def test_two_ranks_equal_one_in_float64(
    environment: dict[str, str], alone: Path, model_folder: Path, tmp_path: Path
) -> None:
    """Gradients, which are what a step of SGD at a rate of 1 changes, are equal within 1e-9."""
    two = train(model_folder, tmp_path, 2, *EXACT, **environment)
    for case in EXACT:
        assert_equal(alone / case / "model", two / case / "model", 1e-9)
        before, after = (load_file(folder / "model.safetensors") for folder in (model_folder, alone / case / "model"))
        assert {weight.dtype for weight in after.values()} == {torch.float64}
        assert max((after[name] - before[name]).abs().max().item() for name in after) > 1e-3


@pytest.mark.soak
def test_all_methods_with_shards_equal_one_process(model_folder: Path, tmp_path: Path) -> None:
    every = (*SHORT, *LONG, "passes-lora")
    one = train(model_folder, tmp_path / "one", 1, *every)
    for name, environment in (("whole", {}), ("layers", {"BY_LAYERS": "1"})):
        two = train(model_folder, tmp_path / name, 2, *every, **environment)
        for case in every:
            assert_case_equal(one / case, two / case, model_folder)
