#!/usr/bin/env bash
# The tests with the newest of everything but torch, which constraints.txt does not pin then: what users get who install
# today. Run it now and then, and before a release; write what passed into constraints.txt (pip freeze), with
# a marker where it is not made for Python 3.10 (tests/test_readme.py finds these).
#
#   dev/newest.sh [ENVIRONMENT]    a folder for the virtual environment (a new one by default)
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-$(mktemp -d)/newest}

python3 -m venv "$environment"
torch=$(grep '^torch==' constraints.txt)
"$environment/bin/pip" install -q "$torch"
"$environment/bin/pip" install -q -U -e ".[dev]"
"$environment/bin/pip" freeze --exclude-editable | grep -iE '^(torch|transformers|langchain|langchain-core|langgraph|llama-index-core|pydantic)=='
HF_HUB_OFFLINE=1 "$environment/bin/python" -m pytest -q -n 2 -p no:cacheprovider
