#!/usr/bin/env bash
# Fetch into bench/gpu/wheels what an image with torch and transformers lacks: bash bench/gpu/bring.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$here/wheels" \
    --constraint "$here/../../constraints.txt" \
    peft accelerate psutil pydantic pydantic_core annotated-types typing-inspection
