#!/usr/bin/env bash
# Create a virtual environment with everything that mtfixmatch needs.
#   tools/setup_env.sh [FOLDER=.venv]
# PYTHON          interpreter of the environment (>= 3.10; default python3)
# DETECTRON2_GIT  git source of Detectron2 to install instead of the wheel, e.g.
#                 git+https://github.com/facebookresearch/detectron2.git@<commit>
# TORCH           requirement for PyTorch, e.g. "torch==2.15.0" (default: the range in setup.py)
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo "error: $python is $("$python" --version 2>&1), but Python >= 3.10 is needed" >&2; exit 1; }

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

# detectron2 imports pkg_resources, which newer versions of setuptools do not have.
"${pip[@]}" install -q "setuptools>=64,<81" wheel
echo "Installing PyTorch and the other requirements (several minutes, several GB with CUDA) ..."
"${pip[@]}" install -q ${TORCH:+"$TORCH"} -r tools/requirements-detectron2.txt -e ".[dev]"

if [ -n "${DETECTRON2_GIT:-}" ]; then
    "${pip[@]}" install -q --no-build-isolation "$DETECTRON2_GIT"
elif ! "$venv/bin/python" -c "import detectron2" 2>/dev/null; then
    # PyPI has no Detectron2 under its own name. This wheel is its main branch of 2024. The parts
    # that this package uses are pure Python, so the renamed wheel runs on any Python.
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    wheel=sal_detectron2-0.7.2-cp310-none-any.whl
    sha256=491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561
    "${pip[@]}" download -q --no-deps --only-binary=:all: --python-version 3.10 \
        --implementation cp --abi none --platform any -d "$folder" sal-detectron2==0.7.2
    echo "$sha256  $folder/$wheel" | sha256sum --check --status ||
        { echo "error: $wheel does not have the sha256 $sha256" >&2; exit 1; }
    mv "$folder/$wheel" "$folder/${wheel/cp310/py3}"
    "${pip[@]}" install -q --no-deps "$folder/${wheel/cp310/py3}"
fi
"$venv/bin/python" -W ignore -c "import detectron2, mtfixmatch, torch
print('Installed: torch', torch.__version__, 'detectron2', detectron2.__version__)"
