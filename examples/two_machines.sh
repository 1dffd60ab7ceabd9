#!/bin/sh
# Two machines with eight GPUs each train one model. Start this script on both, with the address of the first:
#
#     sh examples/two_machines.sh 0 10.0.0.1 --dataset_name /data/shapes      on the first
#     sh examples/two_machines.sh 1 10.0.0.1 --dataset_name /data/shapes      on the second
#
# Both need the same data and the same version of boresight. The first writes checkpoints and the run page; with a run
# folder that both machines see, either can resume. PROCESSES counts all GPUs of both, MODEL sets another model.
set -eu
rank=$1
address=$2
shift 2

# 32 prompts per step over all GPUs, whatever their number: one machine takes the same step, only slower.
exec boresight grpo \
    --accelerate_config multi_gpu --num_machines 2 --num_processes "${PROCESSES:-16}" \
    --machine_rank "$rank" --main_process_ip "$address" --main_process_port "${PORT:-29500}" \
    --model_name_or_path "${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct}" \
    --output_dir runs/two_machines \
    --reward_funcs exact_answer_reward answer_format_reward \
    --num_prompts_per_step "${PROMPTS:-32}" \
    "$@"
