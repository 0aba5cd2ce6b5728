#!/usr/bin/env bash
# Creates a virtual environment with everything that mtfixmatch needs.
#   tools/setup_env.sh [FOLDER=.venv]
# PYTHON          interpreter to build it from (>= 3.10; default python3)
# DETECTRON2_GIT  set it to install Detectron2 from a git source instead of the wheel, e.g.
#                 git+https://github.com/facebookresearch/detectron2.git@<commit>
# TORCH           requirement for PyTorch, e.g. "torch==2.15.0" (default: setup.py's range)
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo "error: $python is $("$python" --version 2>&1), but Python >= 3.10 is needed" >&2; exit 1; }

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

# detectron2 imports pkg_resources, which newer setuptools have dropped.
"${pip[@]}" install -q "setuptools>=64,<81" wheel
echo "Installing PyTorch and the other requirements (several minutes, several GB with CUDA) ..."
"${pip[@]}" install -q ${TORCH:+"$TORCH"} -r tools/requirements-detectron2.txt -e ".[dev]"

if [ -n "${DETECTRON2_GIT:-}" ]; then
    "${pip[@]}" install -q --no-build-isolation "$DETECTRON2_GIT"
elif ! "$venv/bin/python" -c "import detectron2" 2>/dev/null; then
    # Detectron2 is not on PyPI under its own name. This wheel is its main branch of 2024; all that
    # this package uses of it is pure Python, so that it runs on any Python once it is renamed.
    deps=$(mktemp -d)
    trap 'rm -rf "$deps"' EXIT
    file=sal_detectron2-0.7.2-cp310-none-any.whl
    sha256=491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561
    "${pip[@]}" download -q --no-deps --only-binary=:all: --python-version 3.10 \
        --implementation cp --abi none --platform any -d "$deps" sal-detectron2==0.7.2
    found=$("$venv/bin/python" -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$deps/$file")
    [ "$found" = "$sha256" ] ||
        { echo "error: $file has sha256 $found instead of $sha256" >&2; exit 1; }
    mv "$deps/$file" "$deps/${file/cp310/py3}"
    "${pip[@]}" install -q --no-deps "$deps/${file/cp310/py3}"
fi
"$venv/bin/python" -W ignore -c "import detectron2, mtfixmatch, torch
print('Installed: torch', torch.__version__, 'detectron2', detectron2.__version__)"
