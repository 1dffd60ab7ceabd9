from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from boresight.cli.launch import launch_words, shipped
from boresight.cli.options import StartFlags
from boresight.errors import ConfigError

WORDS = ["--accelerate_config", "multi_gpu", "--max_steps", "3"]


@pytest.mark.parametrize("name", ["single_gpu", "multi_gpu", "cpu"])
def test_accelerate_reads_what_is_shipped(name: str) -> None:
    config = load_config_from_file(str(shipped()[name]))
    assert config.mixed_precision == "no"  # --bf16 says it
    assert config.use_cpu is (name == "cpu")


def test_accelerate_understands_what_it_is_told() -> None:
    words = launch_words(
        StartFlags(
            accelerate_config="multi_gpu", num_processes=16, num_machines=2, machine_rank=1, main_process_ip="10.0.0.1"
        ),
        ("boresight", "sft"),
        WORDS,
    )
    told = launch_command_parser().parse_args(words)
    assert (told.num_processes, told.num_machines, told.machine_rank, told.main_process_ip) == (16, 2, 1, "10.0.0.1")
    assert Path(told.config_file).name == "multi_gpu.yaml"
    assert (told.module, told.training_script, told.training_script_args) == (True, "boresight.cli", ["sft", *WORDS])


def test_a_script_and_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"distributed_type": "NO", "num_processes": 1}))
    words = launch_words(StartFlags(accelerate_config=str(file)), ("python", "examples/scripts/sft_vlm.py"), WORDS)
    told = launch_command_parser().parse_args(words)
    assert not told.module
    assert (told.training_script, told.config_file) == ("examples/scripts/sft_vlm.py", str(file))


def test_no_such_configuration() -> None:
    known = "cpu, fsdp2, fsdp2_layers, fsdp2_offload, multi_gpu, single_gpu"
    with pytest.raises(ConfigError, match=rf"neither a file nor one of {known}\. Did you mean 'single_gpu'\?"):
        launch_words(StartFlags(accelerate_config="single_gp"), ("boresight", "sft"), WORDS)
