#!/usr/bin/env bash
# Make .venv-vllm or .venv-sglang: an engine with LightRFT on CPUs, beside the workspace's own environment, which has none.
#   scripts/engine_environment.sh vllm|sglang         installs what environments/ENGINE-cpu.txt pins
#   scripts/engine_environment.sh vllm|sglang lock    pins anew what environments/ENGINE-cpu.in asks for
set -euo pipefail
cd "$(dirname "$0")/.."

engine="${1:-}"
if [[ "$engine" != vllm && "$engine" != sglang ]]; then
    echo "usage: scripts/engine_environment.sh vllm|sglang [lock]" >&2
    exit 2
fi
if [[ "${2:-}" == lock ]]; then
    other=()
    for kind in override exclude; do
        [[ -f "environments/$engine-cpu-${kind}s.txt" ]] && other+=("--${kind}s" "environments/$engine-cpu-${kind}s.txt")
    done
    uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header "${other[@]}" \
        --output-file "environments/$engine-cpu.txt" "environments/$engine-cpu.in"
    exit
fi
python=3.11
[[ -x .venv/bin/python ]] && python=.venv/bin/python
[[ -x ".venv-$engine/bin/python" ]] || uv venv --quiet --python "$python" ".venv-$engine"
uv pip sync --quiet --python ".venv-$engine/bin/python" "environments/$engine-cpu.txt"
