# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: `set_up REPOSITORY` makes REPOSITORY/.venv complete.
# Everything is said on standard error, since the last line of standard output is a result.

# PyTorch's own index of builds without CUDA; the default build brings gigabytes of CUDA libraries.
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "error: $*"
  exit 2
}

# Run as root: directly, or through a sudo that does not ask; otherwise fail without a word.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo -n "$@"
  else
    return 1
  fi
}

# Install Debian packages; the package lists of a fresh machine are empty, hence the second try.
apt_install() {
  command -v apt-get >/dev/null || return 1
  as_root true || return 1
  say "installing system packages: $*"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2 && return
  as_root apt-get update -q >&2 || true
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2
}

is_python_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; }

# Print the first Python 3.11 that runs. $PYTHON, where set, is asked first.
find_python() {
  local candidate seen=""
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python; do
    command -v "$candidate" >/dev/null || continue
    if is_python_311 "$candidate"; then
      command -v "$candidate"
      return
    fi
    seen="$seen, $candidate is $("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo broken)"
  done
  fail "Python 3.11 is needed and was not found${seen}; install python3.11 and python3.11-venv, or name one with PYTHON=/path/to/python3.11"
}

# Print the Debian packages this Python lacks: for the off-screen GL that draws the cameras, for OpenCV,
# which LIBERO imports, and for making virtual environments.
missing_system_packages() {
  "$1" - "${MUJOCO_GL:-osmesa}" <<'PYTHON'
import ctypes
import ctypes.util
import sys

wanted = {"GL": "libgl1", "gthread-2.0": "libglib2.0-0"}
if sys.argv[1] == "egl":
    wanted["EGL"] = "libegl1"
elif sys.argv[1] == "osmesa":
    wanted["OSMesa"] = "libosmesa6"
missing = []
for library, package in wanted.items():
    try:
        # As PyOpenGL looks for it.
        ctypes.CDLL(ctypes.util.find_library(library) or f"lib{library}.so")
    except OSError:
        missing.append(package)
try:
    import ensurepip
except ImportError:
    missing.append("python3.11-venv")
print(*missing)
PYTHON
}

ensure_system_packages() {
  local python=$1 missing
  missing=$(missing_system_packages "$python")
  [ -n "$missing" ] || return 0
  # shellcheck disable=SC2086 # a list of packages
  if ! apt_install $missing || [ -n "$(missing_system_packages "$python")" ]; then
    fail "system packages are missing; install them with: sudo apt-get install $missing"
  fi
}

has_nvidia_driver() { [ -e /proc/driver/nvidia/version ] || nvidia-smi -L >/dev/null 2>&1; }

# Whether PyTorch's index of CPU builds answers now (or a `find-links` of pip's configuration does).
cpu_build_at_hand() {
  local python=$1 version=$2
  PIP_QUIET=0 timeout 60 "$python" -m pip index versions --timeout 10 --retries 0 \
    --index-url "$TORCH_CPU_INDEX" torch 2>/dev/null | grep -F "$version" >/dev/null
}

# Install torch before the project does, because only here the build can be chosen. `--no-deps`: the
# CPU index holds little else, the rest comes with the project.
install_torch() {
  local python=$1 version=$2
  if has_nvidia_driver; then
    say "torch $version: default build, since an NVIDIA driver is present"
  elif cpu_build_at_hand "$python" "$version"; then
    say "torch $version: CPU build, since there is no NVIDIA driver"
    "$python" -m pip install --timeout 30 --retries 2 --no-deps --index-url "$TORCH_CPU_INDEX" \
      "torch==$version" >&2 && return
    say "torch $version: default build (large), since the download of the CPU build failed"
  else
    say "torch $version: default build (large), since PyTorch's index of CPU builds did not answer"
  fi
  "$python" -m pip install "torch==$version" >&2
}

# Called where bash ignores `set -e`, hence the chain. Source distributions are built with the pinned
# tools of the first line, hence no build isolation.
install_everything() {
  local repository=$1 python=$1/.venv/bin/python constraints=$1/constraints.txt torch_version
  torch_version=$(sed -n 's/^torch==//p' "$constraints")
  "$python" -m pip install -c "$constraints" pip setuptools wheel >&2 &&
    install_torch "$python" "$torch_version" &&
    "$python" -m pip install --no-build-isolation -c "$constraints" -e "${repository}[sim,dev]" >&2
}

# What the environment was made from. The place counts: an editable install knows its absolute path.
fingerprint() {
  local repository=$1
  {
    echo "$repository"
    cat "$repository/pyproject.toml" "$repository/constraints.txt" "$repository/scripts/_setup.sh"
  } | sha256sum | cut -d ' ' -f 1
}

# Whether .venv was completed by this very set-up; a fraction of a second.
is_complete() {
  local repository=$1 venv=$1/.venv
  [ ! -e "$venv/set-up.unfinished" ] &&
    [ "$(cat "$venv/set-up.sha256" 2>/dev/null)" = "$(fingerprint "$repository")" ] &&
    is_python_311 "$venv/bin/python"
}

# Make REPOSITORY/.venv complete. A set-up that was killed leaves its marker, and the next one makes the
# environment afresh, because a half unpacked package looks installed to pip.
set_up() {
  local repository=$1 venv=$1/.venv base started=$SECONDS
  export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
  [ -t 2 ] || export PIP_QUIET=1
  unset PYTHONPATH PYTHONHOME

  if is_complete "$repository"; then
    ensure_system_packages "$venv/bin/python"
    return
  fi
  base=$(find_python)
  ensure_system_packages "$base"

  # One set-up at a time, counting a pip that outlived its killed script: it inherited the lock.
  exec 9<"$repository"
  flock 9
  if is_complete "$repository"; then
    exec 9<&-
    return
  fi
  if [ -e "$venv/set-up.unfinished" ] || ! is_python_311 "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "making .venv with $base"
    mkdir -p "$venv"
    touch "$venv/set-up.unfinished"
    "$base" -m venv --clear "$venv"
  fi
  touch "$venv/set-up.unfinished"
  rm -f "$venv/set-up.sha256"
  say "installing the project and what it needs (some minutes the first time)"
  install_everything "$repository" || fail "the installation failed; its messages are above, and a second run starts over"
  fingerprint "$repository" >"$venv/set-up.sha256"
  rm -f "$venv/set-up.unfinished"
  exec 9<&-
  say "environment ready after $((SECONDS - started)) s"
}
