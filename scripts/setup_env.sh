#!/usr/bin/env bash
# Make .venv and install this package into it, with the versions of constraints.txt.
#
#   bash scripts/setup_env.sh [EXTRA ...]       e.g. `bash scripts/setup_env.sh dev`
#
# A second run with nothing new to install returns at once. Environment:
#   PYTHON       the interpreter to build .venv from (default: python3, else the newest python3.1x on the path)
#   TORCH_INDEX  a package index to take torch from, where pip's own sources have no CPU build
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"
stamp="$venv/.alignment-setup"
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 2
}

# The content of the stamp: what was installed from, where, and with which extras.
fingerprint() {
    "$venv/bin/python" -I - "$root" "$@" <<'PY'
import hashlib, pathlib, re, sys
root, *extras = sys.argv[1:]
# The commands in .venv/bin name their interpreter by its full path: a clone that was moved or copied needs a new .venv.
# Half an environment (without pyvenv.cfg) would run as the interpreter it was made from, and pip would install into that.
bin = pathlib.Path(root, ".venv", "bin")
if sys.prefix == sys.base_prefix or pathlib.Path(sys.prefix).resolve() != bin.parent.resolve():
    sys.exit("not a virtual environment")
named = re.search(r"(/.*)/python", (bin / "pip").read_text())
if named is None or pathlib.Path(named[1]).resolve() != bin.resolve():
    sys.exit("the environment was made for another place")
inputs = b"".join(pathlib.Path(root, name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
print(root, sys.version.split()[0], hashlib.sha256(inputs).hexdigest())
print(*sorted(set(extras)))
PY
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed; found $("${PYTHON:-python3}" --version 2>&1 || echo none)." \
        "Install one, or name it: PYTHON=/path/to/python3.11 bash $0"
}

# What an earlier run left: nothing to do if it covers what is asked, and its extras are kept if not.
extras="$*"
if [[ -f "$stamp" ]]; then
    had="$(sed -n 2p "$stamp")"
    extras="$(printf '%s\n' $extras $had | sort -u | tr '\n' ' ')"
    if wanted="$(fingerprint $extras 2>/dev/null)" && [[ "$wanted" == "$(cat "$stamp")" ]]; then
        say "$venv is up to date"
        exit 0
    fi
fi

started=$SECONDS
if ! fingerprint >/dev/null 2>&1 || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python="$(find_python)"
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        die "$python has no venv module. On Debian and Ubuntu: apt-get install python3-venv"
    say "making $venv with $("$python" --version 2>&1)"
    rm -f "$venv/bin/pip" # should this be interrupted, the next run starts here again
    "$python" -m venv --clear "$venv" || {
        rm -rf "$venv"
        die "'$python -m venv' failed; its message is above"
    }
fi
rm -f "$stamp"

# --no-compile: pip compiles on one core, and mostly modules that nobody imports; see the end.
pip_install() { PIP_REQUIRE_VIRTUALENV=1 "$venv/bin/python" -m pip install -qq --no-compile -c "$root/constraints.txt" "$@"; }

# The build of torch that pip takes by itself on Linux brings several GB of CUDA libraries; without a GPU the CPU build
# does the same. --no-deps: an index of torch builds need not hold the pinned versions of what torch depends on; the
# install below brings those.
torch="$(sed -n 's/^torch==//p' "$root/constraints.txt")"
have_torch="$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true)"
if [[ "${have_torch%%+*}" != "$torch" && "$(uname -s)" == Linux ]] && ! nvidia-smi -L >/dev/null 2>&1; then
    say "no GPU found: installing the CPU build of torch $torch"
    if pip_install --no-deps "torch==$torch+cpu" >/dev/null 2>&1; then
        :
    elif [[ -n "${TORCH_INDEX:-}" ]]; then
        pip_install --no-deps --index-url "$TORCH_INDEX" "torch==$torch" || die "no torch $torch at TORCH_INDEX=$TORCH_INDEX"
    else
        say "pip's sources have no CPU build, so the default build of torch comes next: a download of about 3 GB." \
            "To avoid it: stop now, set TORCH_INDEX to the CPU package index of the torch project, and run this again."
    fi
fi

list="$(echo $extras | tr ' ' ',')"
say "installing the package${list:+ with extras: $list}"
pip_install -e "$root${list:+[$list]}" || die "pip failed; its message is above. Running this again resumes."

# Here and not at the first import, which leaves no bytecode behind where PYTHONDONTWRITEBYTECODE is set (as in many
# container images): every command would then start some ten seconds later. Its exit code tells of files that no Python
# can parse, such as a package's own test data.
"$venv/bin/python" -m compileall -q -j 0 -x '/(tests?|testing|transformers/models)/' "$venv"/lib/python3.*/site-packages \
    >/dev/null 2>&1 || true

fingerprint $extras >"$stamp.new"
mv "$stamp.new" "$stamp"
say "done in $((SECONDS - started)) s: $venv, torch $("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))')"
