#!/usr/bin/env bash
# Names every tool of the arguments that is missing, with its remedy, one a line.
# Usage: scripts/tools.sh [cargo] [c++] [cmake] [nasm] [python3] [pip] [venv]
set -uo pipefail

missing=0
say() {
  echo "mixd: $1" >&2
  missing=1
}

for tool in "$@"; do
  case $tool in
    cargo)
      wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
      if ! command -v cargo >/dev/null; then
        say "cargo not found: mixd is written in Rust (install Rust $wanted or newer with rustup)"
      else
        found=$(cargo --version | cut -d' ' -f2)
        [[ $(printf '%s\n' "$wanted" "$found" | sort -V | head -n1) == "$wanted" ]] ||
          say "cargo $found is too old: mixd needs Rust $wanted or newer (rustup update)"
      fi
      ;;
    c++)
      # The cc crate's own rule: $CXX, else c++. CXX may carry arguments.
      read -r compiler _ <<<"${CXX:-c++}"
      command -v "$compiler" >/dev/null ||
        say "C++ compiler $compiler not found: libtorch's bindings are C++ (apt-get install g++, or set CXX)"
      ;;
    cmake | nasm)
      command -v "$tool" >/dev/null ||
        say "$tool not found: libjpeg-turbo, which decodes JPEGs, is built with it (apt-get install $tool, or for a slower program: cargo build --release)"
      ;;
    python3)
      command -v python3 >/dev/null ||
        say "python3 not found: its pip fetches libtorch (apt-get install python3 python3-pip, or set LIBTORCH to your own)"
      ;;
    pip)
      ! command -v python3 >/dev/null || python3 -m pip --version >/dev/null 2>&1 ||
        say "python3 has no pip: it fetches libtorch (apt-get install python3-pip, or set LIBTORCH to your own)"
      ;;
    venv)
      python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 ||
        say "python3 is older than 3.11, or has no venv: the Python package is built and tested in environments (apt-get install python3-venv)"
      ;;
    *) say "no check is known for $tool (see scripts/tools.sh)" ;;
  esac
done
exit $missing
