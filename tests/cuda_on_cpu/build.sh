#!/usr/bin/env bash
# Builds the driver that runs on the processor into a folder below $1, once for its source, and prints that folder: to be put into
# LD_LIBRARY_PATH.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=$1/$(cat "$here"/{driver.cpp,on_cpu.h,build.sh} | sha256sum | cut -c1-16)
mkdir -p "$home"
exec 9>"$home/lock"
flock 9
if [[ ! -e $home/libcuda.so.1 ]]; then
  cp "$here/on_cpu.h" "$home"
  for name in libnvrtc.so.1 libcuda.so.1; do
    c++ -std=c++17 -O2 -Wall -Wextra -fPIC -shared -pthread "-DHERE=\"$home\"" -o "$home/partial" "-Wl,-soname,$name" "$here/driver.cpp" -ldl
    ln -sf $name "$home/${name%.1}"
    mv "$home/partial" "$home/$name"
  done
fi
realpath "$home"
