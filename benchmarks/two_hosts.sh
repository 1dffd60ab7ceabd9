#!/usr/bin/env bash
# Two network namespaces as two hosts: one serves a model by vLLM, the other trains it by GRPO. No root is needed, only user namespaces.
#
#     benchmarks/two_hosts.sh FOLDER_OF_A_MODEL DATASET OUTPUT_DIR
#     benchmarks/two_hosts.sh --network     # only the two hosts, and a message from one to the other
#
# The hosts share no loopback device: all that passes between them goes through the pair of devices 10.9.0.1 (trainer) and 10.9.0.2 (server).
set -euo pipefail

if [[ ${INSIDE:-} != 1 ]]; then
    INSIDE=1 exec unshare --user --map-root-user --net "$0" "$@"
fi

python=${PYTHON:-python}
ip link set lo up
unshare --net sleep infinity &
server=$!
trap 'for each in ${serving:-} $server; do kill $each 2>/dev/null && wait $each || true; done' EXIT
# An array: a function in the background would be a shell, which is killed in place of the server.
on_server=(nsenter --net --target "$server")
here=$(readlink /proc/self/ns/net)
until there=$(readlink /proc/$server/ns/net) && [[ -n $there && $there != "$here" ]]; do sleep 0.1; done

ip link add trainer0 type veth peer name server0
ip link set server0 netns "$server"
ip address add 10.9.0.1/24 dev trainer0
ip link set trainer0 up
"${on_server[@]}" ip link set lo up
"${on_server[@]}" ip address add 10.9.0.2/24 dev server0
"${on_server[@]}" ip link set server0 up

if [[ ${1:-} == --network ]]; then
    "${on_server[@]}" "$python" -c 'import socket; one = socket.create_server(("10.9.0.2", 8000)).accept()[0]; one.sendall(b"from the server"); one.close()' &
    serving=$!
    "$python" - <<'END'
import socket, time

for _ in range(100):
    try:
        print(socket.create_connection(("10.9.0.2", 8000), timeout=5).recv(100).decode())
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
END
    exit
fi

model=$1 dataset=$2 output=$3
"${on_server[@]}" "$python" -m boresight.cli vllm-serve --model "$model" --host 10.9.0.2 --port 8000 &
serving=$!
"$python" -m boresight.cli grpo --model_name_or_path "$model" --dataset_name "$dataset" --output_dir "$output" \
    --reward_funcs exact_answer_reward --use_vllm --vllm_mode server --vllm_server_base_url http://10.9.0.2:8000 --max_steps 2
