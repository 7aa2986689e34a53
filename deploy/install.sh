#!/bin/sh
# Installs the server into a virtual environment: deploy/install.sh cpu|gpu FOLDER
# The Dockerfile and a bare machine take the same steps. Run it from the repository root.
# TORCH_INDEX_URL: PyTorch's wheel index for CPUs, where pip's own index holds no CPU build of torch.
set -eu

case "${1-}:${2-}" in
cpu:?* | gpu:?*) flavour=$1 target=$2 ;;
*)
  echo "usage: deploy/install.sh cpu|gpu FOLDER" >&2
  exit 2
  ;;
esac

install() { "$target/bin/python" -m pip install --disable-pip-version-check --no-input "$@"; }

"${PYTHON:-python3}" -m venv "$target"
if [ "$flavour" = cpu ]; then
  # The lock is complete. Left to resolve by itself, pip would add a CUDA build of torchvision that breaks transformers.
  install --no-deps ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} -r requirements.lock
  install --no-deps --no-build-isolation .
else
  install ".[gpu,postgres]"
fi
cd / && "$target/bin/python" -c "import demur.clients, demur.server"
