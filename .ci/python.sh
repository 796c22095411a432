#!/usr/bin/env bash
# The path of a Python of a version, on PATH or under pyenv, or nothing: python.sh 3.10
for python in "$(command -v "python$1")" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
    if [ -x "$python" ] && [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null)" = "$1" ]; then
        echo "$python"
        exit
    fi
done
