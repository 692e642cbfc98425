#!/usr/bin/env bash
# Make .venv from the lock in requirements/: `cpu`, or `cuda` where there is an NVIDIA GPU.
# Does nothing when the lock has not changed since it last finished.
#
#   BETAFLOW_DEVICE=cpu|cuda   choose the lock yourself
#   PYTHON=python3.12          the interpreter to make .venv with
set -euo pipefail
cd "$(dirname "$0")/.."

device=${BETAFLOW_DEVICE:-}
if [ -z "$device" ]; then
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    device=cuda
  else
    device=cpu
  fi
fi
lock=requirements/$device.txt
[ -f "$lock" ] || { echo "error: no lock $lock; BETAFLOW_DEVICE is cpu or cuda" >&2; exit 2; }

python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
fi
[ -n "$python" ] || { echo "error: Python 3.11, 3.12 or 3.13 is needed; set PYTHON=…" >&2; exit 2; }

stamp=.venv/.betaflow-lock
want=$(cat "$lock" requirements/uv.txt pyproject.toml scripts/setup.sh | cksum; pwd)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
  exit 0
fi

echo "setting up .venv from $lock (a few minutes, once)"
# The programs in it name the folder that they were installed in: one that was moved or copied is made anew.
if [ -f "$stamp" ] && [ ! -L .venv ] && [ "$(tail -n 1 "$stamp")" != "$(pwd)" ]; then
  "$python" -m venv --clear .venv
fi
# One that was cut off has no pip yet; venv mends it.
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/uv.txt

# uv does not read pip's configuration: hand it the folders of files that pip would look in.
links=()
for folder in ${PIP_FIND_LINKS:-} $(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true); do
  case " ${links[*]-} " in *" $folder "*) ;; *) links+=(--find-links "$folder") ;; esac
done
export VIRTUAL_ENV="$PWD/.venv"
export UV_SYSTEM_CERTS=true # the machine's certificates, as pip and curl use them
quiet=$([ -t 2 ] || echo --quiet) # bars on a terminal, and no list of 330 packages elsewhere
install() {
  # The lock is complete, so nothing is resolved; byte code is made now, not at every first import.
  .venv/bin/uv pip install $quiet --no-deps --compile-bytecode ${links[@]+"${links[@]}"} "$@"
}

has_cpu_torch() {
  install --dry-run "$@" "$(grep -E '^torch==' "$lock")" >/dev/null 2>&1
}

if [ "$device" = cuda ] || has_cpu_torch; then
  install -r "$lock" # for cpu: a CPU torch is at hand
elif has_cpu_torch --torch-backend cpu; then
  install --torch-backend cpu -r "$lock" # PyTorch's own index of CPU builds
else
  # Neither can be reached: the package index's torch is a CUDA build, which runs on a CPU too.
  sed 's/^\(torch==[0-9.]*\)+cpu/\1/' "$lock" > .venv/lock-cuda-torch.txt
  install -r .venv/lock-cuda-torch.txt
  .venv/bin/uv pip install $quiet --compile-bytecode "$(grep -E '^torch==' .venv/lock-cuda-torch.txt)"
  echo "note: no CPU build of torch could be found; the index's CUDA build was installed" >&2
fi
.venv/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
echo "$want" > "$stamp"
