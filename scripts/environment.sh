# Sets up the virtual environment .venv of this checkout. Sourced by demo.sh, test.sh and .ci/run:
#
#     set_up          # what the package and its demo need to run
#     set_up dev      # and the tools to check it
#
# Afterwards $ROOT is the checkout and $VENV its environment. A finished set-up leaves a stamp and is skipped from then on
# until a file that it depends on changes; an interrupted one is started again. PYTHON=... chooses the interpreter,
# VATT_VENV=... the folder of the environment, and VATT_CONSTRAINTS=... the file with the versions ("": the newest ones).

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="${VATT_VENV:-.venv}"
[[ "$VENV" == /* ]] || VENV="$ROOT/$VENV"
CONSTRAINTS="${VATT_CONSTRAINTS-$ROOT/constraints.txt}"
LOG="$VENV/setup.log"
UNFINISHED="$VENV/setup-unfinished"
CPU_INDEX="https://download.pytorch.org/whl/cpu"

set_up() {
    local extra="${1:-}"
    check_interpreter
    if stamp_is_valid "$extra"; then
        return
    fi
    {
        wait_for_other_set_ups
        if ! stamp_is_valid "$extra"; then # it may have become valid meanwhile
            build_environment "$extra"
        fi
    } 9<"$ROOT/scripts/environment.sh"
}

# Two set-ups of one checkout take turns. The lock is held on this very file and ends with its holder, however that ends.
wait_for_other_set_ups() {
    if command -v flock >/dev/null && ! flock -n 9; then
        explain "another set-up of this checkout is running, waiting for it"
        flock 9
    fi
}

# An environment of another Python than the one asked for is not used in its place, nor deleted.
check_interpreter() {
    local found wanted
    if [[ -n "${PYTHON:-}" && ! -e "$UNFINISHED" ]] && found="$("$VENV/bin/python" --version 2>/dev/null)"; then
        wanted="$("$PYTHON" --version 2>/dev/null || true)"
        if [[ "${found%.*}" != "${wanted%.*}" ]]; then
            fail "$VENV has $found, PYTHON is ${wanted:-no Python}: delete it, or name another folder," \
                "for example VATT_VENV=.venv-other"
        fi
    fi
}

build_environment() {
    local extra="$1"
    if [[ -e "$UNFINISHED" ]] || ! "$VENV/bin/python" -c "" 2>/dev/null; then
        create_environment
    elif [[ -e "$VENV/setup.stamp" ]]; then
        touch "$UNFINISHED" # not in an environment that was made by hand: that one must never be deleted
    fi
    install_torch
    stage "vatt and the packages it needs" pip_install ${CONSTRAINTS:+-c "$CONSTRAINTS"} -e "$ROOT${extra:+[$extra]}"
    write_stamp "" # an extra holds the packages of the demo too
    write_stamp "$extra"
    rm -f "$UNFINISHED"
}

create_environment() {
    local python
    python="$(find_python)" || exit 1
    mkdir -p "${VENV%/*}"
    check_disk
    rm -rf "$VENV"
    mkdir "$VENV"
    touch "$UNFINISHED"
    stage "virtual environment ${VENV##*/}" "$python" -m venv "$VENV"
}

# --- torch ---

install_torch() {
    local version
    version="$(sed -n 's/^torch==//p' "$ROOT/constraints.txt")"
    if has_gpu; then
        stage "torch $version with CUDA (about 3 GB)" pip_install "torch==$version,!=$version+cpu"
    elif [[ "$(uname -s)" != Linux ]]; then
        stage "torch $version" pip_install "torch==$version"
    elif ! attempt "torch $version for CPU (about 200 MB)" install_cpu_torch "$version"; then
        explain "$CPU_INDEX does not answer: taking torch with CUDA instead, which is larger but runs"
        stage "torch $version with CUDA (about 3 GB)" pip_install "torch==$version"
    fi
}

# A build that pip has at hand (find-links), else the PyTorch project's own index. Without --no-deps torch's dependencies would
# be looked for in these two places only.
install_cpu_torch() {
    local requirement="torch==$1+cpu"
    pip_install --no-deps --no-index "$requirement" ||
        pip_install --no-deps --index-url "$CPU_INDEX" --timeout 10 --retries 1 "$requirement"
}

has_gpu() {
    [[ "$(nvidia-smi -L 2>/dev/null)" == *GPU* ]]
}

# --- prerequisites ---

# Prints the first interpreter that is new enough and can make environments; exits with the reason if there is none.
find_python() {
    local candidate without_venv="" candidates=(python3.11 python3 python3.12 python3.13)
    if [[ -n "${PYTHON:-}" ]]; then
        candidates=("$PYTHON")
    fi
    for candidate in "${candidates[@]}"; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
        without_venv="${without_venv:-$candidate}"
    done
    if [[ -n "$without_venv" ]]; then
        fail "$without_venv has no venv module; on Debian or Ubuntu: apt-get install python3-venv"
    fi
    fail "Python 3.11 or newer is needed, found $("${PYTHON:-python3}" --version 2>/dev/null || echo none);" \
        "on Debian 12 or newer: apt-get install python3 python3-venv; elsewhere name it: PYTHON=/path/to/python3.11"
}

# Packages take 1.3 GB with torch for CPU and 7 GB with CUDA; the rest is for downloads and for what the demo writes.
check_disk() {
    local needed=4 needed_temporary=1
    if has_gpu; then
        needed=12 needed_temporary=4
    fi
    check_free "${VENV%/*}" "$needed" "free some, or clone into a larger disk"
    check_free "${TMPDIR:-/tmp}" "$needed_temporary" "free some, or set TMPDIR to a folder with more"
}

check_free() {
    local folder="$1" needed="$2" remedy="$3" free_kilobytes
    free_kilobytes="$(df -Pk "$folder" | tail -n 1 | { read -r _ _ _ free _ && echo "$free"; })"
    if ((free_kilobytes < needed * 1024 * 1024)); then
        fail "about $needed GB of disk are needed in $folder, $((free_kilobytes / 1024)) MB are free: $remedy"
    fi
}

# --- one step of the set-up: one line with its time; its output goes to the log ---

stage() {
    if ! attempt "$@"; then
        tail -n 15 "$LOG" >&2
        fail "'$1' failed; all of its output is in $LOG. Run the same command again to start over."
    fi
}

attempt() {
    local title="$1" start="$SECONDS"
    shift
    printf 'set-up: %s ... ' "$title" >&2
    if "$@" >>"$LOG" 2>&1 </dev/null; then
        echo "$((SECONDS - start)) s" >&2
    else
        echo "failed after $((SECONDS - start)) s" >&2
        return 1
    fi
}

pip_install() {
    "$VENV/bin/python" -m pip install --no-input --disable-pip-version-check "$@"
}

# The last line of a script, unless the environment is active already.
say_how_to_activate() {
    if [[ "${VIRTUAL_ENV:-}" != "$VENV" ]]; then
        explain "vatt is in an environment of its own; before you use it in a terminal: source $(printf %q "$VENV/bin/activate")"
    fi
}

explain() {
    echo "set-up: $*" >&2
}

fail() {
    explain "$@"
    exit 1
}

# --- stamp ---

# Changes with everything that decides what the environment holds, and when the checkout moves.
fingerprint() {
    (cd "$ROOT" && pwd -P && cat setup.py pyproject.toml constraints.txt scripts/environment.sh) | cksum
}

stamp_is_valid() {
    [[ ! -e "$UNFINISHED" ]] && [[ -x "$VENV/bin/python" ]] &&
        [[ "$(cat "$VENV/setup${1:+-$1}.stamp" 2>/dev/null)" == "$(fingerprint)" ]]
}

write_stamp() {
    fingerprint >"$VENV/setup.stamp.new"
    mv "$VENV/setup.stamp.new" "$VENV/setup${1:+-$1}.stamp"
}
