"""Contradictions are refused before anything is loaded, each with the way out."""

from __future__ import annotations

from typing import Any

import pytest

from boresight.errors import ConfigError
from boresight.option_checks import check_options, read_json
from boresight.options import declarations
from boresight.rollout.vllm.options import RESERVED, VLLMOptions, check_vllm
from boresight.rollout.vllm.server import addresses

OTHER: dict[str, Any] = {
    "vllm_model_impl": "transformers",
    "vllm_enable_sleep_mode": True,
    "vllm_lora_sync": "adapter",
    "vllm_structured_outputs_regex": "a+",
    "vllm_server_base_url": "http://there:1",
    "vllm_server_host": "there",
    "vllm_server_port": 1,
    "vllm_server_timeout": 1.0,
    "vllm_request_timeout": 1.0,
    "vllm_group_port": 1,
    "rollout_lag": 1,
    "vllm_in_flight_sync": True,
    "vllm_sync_dir": "shared",
    "vllm_gpu_memory_utilization": 0.9,
    "vllm_max_model_length": 100,
    "vllm_tensor_parallel_size": 2,
    "vllm_engine_kwargs": {"max_num_seqs": 4},
    "vllm_mode": "server",
}
"""A value that is not the default, for every option but `use_vllm`."""

COLOCATE = ("vllm_enable_sleep_mode", "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_engine_kwargs")
CHILD = ("vllm_server_timeout", "vllm_request_timeout", "rollout_lag", "vllm_sync_dir")
SERVER = ("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_group_port")


def test_the_table_has_every_option() -> None:
    assert {declared.name for declared in declarations(VLLMOptions)} == {"use_vllm", *OTHER}


def check(corrects: bool = True, **options: Any) -> VLLMOptions:
    config = VLLMOptions(**options)
    read_json(config, declarations(VLLMOptions))
    check_options(config)
    check_vllm(config, corrects=corrects)
    return config


@pytest.mark.parametrize("name", OTHER)
def test_without_vllm_its_options_have_no_effect(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}=.* has no effect: set use_vllm=True, or drop it"):
        check(**{name: OTHER[name]})
    check()


@pytest.mark.parametrize("name", COLOCATE)
def test_a_server_has_flags_of_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=.* has no effect: pass it to boresight vllm-serve, or drop it"):
        check(use_vllm=True, vllm_mode="server", **{name: OTHER[name]})
    check(use_vllm=True, **{name: OTHER[name]})


def test_several_servers_are_listed_once_each() -> None:
    listed = ["http://a:1", "http://b:1/"]
    for given, expected in (("http://a:1", ["http://a:1"]), (listed, listed), (None, ["http://127.0.0.1:8000"])):
        assert addresses(check(use_vllm=True, vllm_mode="server", vllm_server_base_url=given)) == expected
    for wrong in ([], ["http://a:1", "http://a:1/"]):
        with pytest.raises(
            ConfigError, match=r"vllm_server_base_url=\[.*: name at least one server, and each of them once"
        ):
            check(use_vllm=True, vllm_mode="server", vllm_server_base_url=wrong)


def test_a_rollout_that_is_sampled_ahead_needs_the_correction_and_an_engine_that_is_awake() -> None:
    with pytest.raises(ConfigError, match="rollout_lag=1 learns from completions of older weights"):
        check(corrects=False, use_vllm=True, vllm_mode="server", rollout_lag=1)
    with pytest.raises(
        ConfigError, match="rollout_lag=1 samples during optimizer steps, and vllm_enable_sleep_mode=True"
    ):
        check(use_vllm=True, vllm_model_impl="transformers", vllm_enable_sleep_mode=True, rollout_lag=1)
    with pytest.raises(ConfigError, match=r"^rollout_lag=2: it must be "):
        check(use_vllm=True, vllm_mode="server", rollout_lag=2)


def test_who_shares_an_engine_is_the_servers_to_know() -> None:
    for other in ({"vllm_mode": "server"}, {"vllm_model_impl": "transformers"}):
        with pytest.raises(
            ConfigError, match=r"vllm_tensor_parallel_size=2 has no effect: .*pass --tensor-parallel-size to boresight"
        ):
            check(use_vllm=True, vllm_tensor_parallel_size=2, **other)
    check(use_vllm=True, vllm_tensor_parallel_size=2)


@pytest.mark.parametrize("name", [*SERVER, *CHILD])
def test_an_engine_in_the_process_has_no_address(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=.* has no effect: set vllm_mode='server'.*, or drop it"):
        check(use_vllm=True, **{name: OTHER[name]})
    check(use_vllm=True, vllm_mode="server", **{name: OTHER[name]})


@pytest.mark.parametrize("name", CHILD)
def test_an_engine_in_a_process_of_its_own_has_deadlines(name: str) -> None:
    check(use_vllm=True, vllm_model_impl="transformers", **{name: OTHER[name]})


@pytest.mark.parametrize(
    ("name", "value"),
    [("vllm_server_port", 0), ("vllm_gpu_memory_utilization", 1.5), ("vllm_tensor_parallel_size", 0)],
)
def test_what_is_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name}={value}: it must be "):
        check(use_vllm=True, vllm_mode="server" if "server" in name else "colocate", **{name: value})


def test_the_servers_model_classes_are_the_servers_to_choose() -> None:
    with pytest.raises(
        ConfigError, match=r"vllm_model_impl='transformers' has no effect: pass --model-impl to boresight vllm-serve"
    ):
        check(use_vllm=True, vllm_mode="server", vllm_model_impl="transformers")


@pytest.mark.parametrize("name", RESERVED)
def test_reserved_engine_options(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"vllm_engine_kwargs\['{name}'\] is boresight's to set: ."):
        check(use_vllm=True, vllm_engine_kwargs={name: 1})


def test_engine_options_may_be_json() -> None:
    assert check(use_vllm=True, vllm_engine_kwargs='{"max_num_seqs": 4}').vllm_engine_kwargs == {"max_num_seqs": 4}
    with pytest.raises(ConfigError, match="vllm_engine_kwargs='max_num_seqs=4' is not a JSON object"):
        check(use_vllm=True, vllm_engine_kwargs="max_num_seqs=4")


@pytest.mark.parametrize(("name", "value"), [("vllm_mode", "remote"), ("vllm_model_impl", "jax")])
def test_unknown_names(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}='{value}' is not one of '"):
        check(use_vllm=True, **{name: value})


def test_structured_outputs_need_the_correction() -> None:
    check(use_vllm=True, vllm_structured_outputs_regex="a+")
    with pytest.raises(ConfigError, match="leave vllm_importance_sampling_correction=True"):
        check(corrects=False, use_vllm=True, vllm_structured_outputs_regex="a+")
