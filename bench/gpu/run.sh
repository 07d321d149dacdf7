#!/usr/bin/env bash
# Everything that only a GPU can prove, in one call: bash bench/gpu/run.sh
# On a machine without a package index: run bench/gpu/bring.sh elsewhere first, and bring wheels/.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ -d "$here/wheels" ]; then
    # Without their dependencies: torch and transformers are the image's own.
    python3 -m pip install --quiet --no-index --no-deps "$here"/wheels/*.whl
fi
exec python3 "$here/run.py" "$@"
