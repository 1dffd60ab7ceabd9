"""An export from start to end: the model is loaded, written in the dtype of its base, loaded anew and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoProcessor

from boresight.errors import ConfigError, ModelError
from boresight.export.card import model_card
from boresight.export.verify import Verified, changed_tensors, log_probs, make_probes, shown_changes, verify_folder
from boresight.export.with_vllm import verify_with_vllm
from boresight.files import check_space, check_writable, share_as_umask, write_whole
from boresight.model.load import load_model
from boresight.model.quantised import dequantise
from boresight.own_forward import is_exact
from boresight.trainer.manifest import MANIFEST, check_whole
from boresight.trainer.run_folder import RUN_FILE, RunFolder
from boresight.trainer.sharding import SHARDS

ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Source:
    """What is exported."""

    run: Path
    """The run folder."""
    weights: Path
    """The folder with the weights: the run's final model, or a checkpoint."""
    base: str | None
    """The model that training began with; None if nothing says so."""
    step: int
    identity: Mapping[str, Any]

    @property
    def is_adapter(self) -> bool:
        return (self.weights / ADAPTER).exists()

    @property
    def quantization_config(self) -> Mapping[str, Any] | None:
        """How the base was quantised while the adapter was trained; None if it was not."""
        options = self.identity.get("options") or {}
        return (options.get("model_init_kwargs") or {}).get("quantization_config")


def source_of(path: Path, base: str | None = None) -> Source:
    """What a path means: a run with its final model (in it, or in its folder ``model``), else with its newest whole checkpoint; or a
    checkpoint.

    Args:
        base: the model that training began with, if the run does not say.

    Raises:
        ConfigError: there is no such folder, or no model in it.
        CheckpointError: its files are not those that were written.
    """
    if not path.is_dir():
        raise ConfigError(f"there is no folder {path}: name a run, or one of its checkpoints.")
    weights = next((folder for folder in (path, path / "model") if _holds_model(folder)), None)
    if weights is None and not RunFolder(path).checkpoints():
        raise ConfigError(f"{path} holds no model and no checkpoint: name a folder that does.")
    weights = weights or RunFolder(path).newest_whole()
    if (weights / SHARDS).is_dir():
        raise ConfigError(
            f"{weights} holds shards (fsdp_state_dict_type: SHARDED_STATE_DICT), which only a run reads: resume it to its end, on any "
            "number of processes, and name its folder."
        )
    manifest = check_whole(weights) if (weights / MANIFEST).exists() else None
    run = path if (path / RUN_FILE).exists() or not (path.parent / RUN_FILE).exists() else path.parent
    about = _json(run / RUN_FILE)
    identity = manifest.run if manifest is not None and manifest.run else about
    named = _json(weights / ADAPTER).get("base_model_name_or_path") or about.get("base_model")
    return Source(run, weights, base or named, 0 if manifest is None else manifest.step, identity)


@dataclass(frozen=True, slots=True)
class Exported:
    """A folder that was written and verified."""

    folder: Path
    lines: tuple[str, ...]
    """What was found, as sentences."""


@torch.no_grad()
def export(source: Source, output: Path, *, merge: bool, with_vllm: bool = False) -> Exported:
    """Write a model folder, verify it, and write its card.

    Args:
        output: a new or empty folder.
        merge: merge the adapter into the weights of its base. Without it, an adapter stays one.
        with_vllm: also load the folder with vLLM, and compare. What it finds is one of the lines and part of the card; it is no error,
            since the folder is the model whatever vLLM makes of it.

    Raises:
        ConfigError: `output` is not empty, or there is nothing to merge, or no base is known.
        DiskError: there is no room, or no permission.
        ModelError: the written folder is not the model.
    """
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty: name a new folder with --output.")
    if merge and not source.is_adapter:
        raise ConfigError(f"{source.weights} holds a whole model and no adapter: leave out --merge.")
    if source.is_adapter and source.base is None:
        raise ConfigError(f"{source.weights / ADAPTER} names no base model: name it with --base.")
    check_writable(output)
    model = _loaded(source)
    coarse = not is_exact(model)
    processor = AutoProcessor.from_pretrained(source.weights)
    probes = make_probes(model, processor)
    expected = log_probs(model, probes)
    check_space(output, _bytes(model, merge or not source.is_adapter), "The exported model")
    if merge:
        model = _dequantised(model, source).merge_and_unload(safe_merge=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(output))
    else:
        _as_base(model, source).save_pretrained(output)
    processor.save_pretrained(output)
    share_as_umask(output)
    del model
    is_adapter = (output / ADAPTER).exists()
    bits = source.quantization_config
    verified = verify_folder(output, probes, expected, quantization_config=bits if is_adapter else None, coarse=coarse)
    lines = [f"{verified}."]
    if bits is not None:
        lines.append(_about_quantised(bits, verified, is_adapter=is_adapter))
    if with_vllm and is_adapter:
        lines.append("vLLM was not asked, which loads whole models here: export with --merge to compare it too.")
    elif with_vllm:
        dtype = str(AutoConfig.from_pretrained(output).dtype or torch.float32).removeprefix("torch.")
        lines.append(f"{verify_with_vllm(output, probes, expected, dtype)}.")
    if not is_adapter and source.base is not None:
        changes = changed_tensors(source.base, output)
        lines.append(
            f"Compared with {source.base}: {shown_changes(changes)}."
            if changes is not None
            else f"{source.base} does not have the same tensors, or is not here: what changed is not known."
        )
    card = model_card(
        source.run,
        base=source.base or "unknown",
        is_adapter=is_adapter,
        verified=" ".join(lines)[:1].upper() + " ".join(lines)[1:],
        identity=source.identity,
        step=source.step,
    )
    write_whole(output / "README.md", card)
    return Exported(output, tuple(lines))


def push(folder: Path, repo_id: str, *, private: bool | None = None) -> str:
    """Upload an exported folder to the hub, and return its address. Needs a token, as for transformers' `push_to_hub`.

    Raises:
        ModelError: it could not be uploaded; the folder stays.
    """
    from huggingface_hub import HfApi  # only for this
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        api = HfApi()
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message="Model of boresight")
        return str(repo)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise ModelError(f"{folder} was written, but not uploaded to {repo_id}: {error}") from error


def _loaded(source: Source) -> Any:
    """The trained model in float32, in which adapters are merged without rounding twice."""
    if not source.is_adapter:
        return load_model(source.weights, dtype=torch.float32)
    quantised = {} if source.quantization_config is None else {"quantization_config": source.quantization_config}
    base = load_model(str(source.base), dtype=torch.float32, **quantised)
    return PeftModel.from_pretrained(base, str(source.weights))  # pyright: ignore[reportArgumentType]


def _dequantised(model: Any, source: Source) -> Any:
    """The model with its base as the floating-point numbers that it was trained beside, into which an adapter merges without rounding."""
    if source.quantization_config is None:
        return model
    base = dequantise(model.unload())
    return PeftModel.from_pretrained(base, str(source.weights))  # pyright: ignore[reportArgumentType]


def _about_quantised(config: Mapping[str, Any], verified: Verified, *, is_adapter: bool) -> str:
    bits = "load_in_4bit" if config.get("load_in_4bit") else "load_in_8bit"
    shown = (
        ("bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "bnb_4bit_use_double_quant") if bits == "load_in_4bit" else ()
    )
    kept = {name: config[name] for name in (bits, *shown, "llm_int8_skip_modules") if config.get(name)}
    how = ", ".join(f"{name}={value!r}" for name, value in kept.items())
    if is_adapter:
        return f"The base was quantised in training: load it with BitsAndBytesConfig({how}), for another base is another model."
    return (
        f"Merge error: the adapter was trained beside a quantised base ({how}) and merged into the numbers that it stands for; the merged "
        f"model's log-probabilities differ from the trained model's by {verified.gap:.1e} nats at most."
    )


def _as_base(model: nn.Module, source: Source) -> Any:
    """The model in the dtype that its base was published in. A checkpoint's weights are float32, which resuming needs."""
    return model.to(AutoConfig.from_pretrained(source.base or source.weights).dtype or torch.float32)


def _bytes(model: nn.Module, whole: bool) -> int:
    return sum(
        weight.numel() * weight.element_size() for name, weight in model.named_parameters() if whole or "lora_" in name
    )


def _holds_model(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.json", ADAPTER))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
