#!/usr/bin/env bash
# Fetches libtorch from PyPI's wheels, once, into .libtorch/cpu: a folder fit to be LIBTORCH.
#
# Only what links and runs on the CPU is kept (0.5 GB). MIXD_LIBTORCH_CUDA=1 makes .libtorch/cuda instead:
# the whole wheel with all that it depends on (4.5 GB), for a machine with an NVIDIA driver.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch=2.11.0 # the one that tch 0.24 binds; torch-sys compares it with build-version
cudart=13.5.37
cupti=13.5.25 # libtorch_cpu.so needs both, with or without a GPU

if [[ ${MIXD_LIBTORCH_CUDA:-} == 1 ]]; then
  kind=cuda
  wanted=$torch+cuda
  wheels=("torch==$torch")
  options=()
else
  kind=cpu
  wanted=$torch+cpu-cudart$cudart-cupti$cupti
  wheels=("torch==$torch" "nvidia-cuda-runtime==$cudart" "nvidia-cuda-cupti==$cupti")
  options=(--no-deps)
fi
home=.libtorch/$kind

# build-version is in place only with all the rest, because the folder is moved there whole.
is_whole() { [[ $(cat "$home/build-version" 2>/dev/null) == "$wanted" ]]; }

is_whole && exit
scripts/tools.sh python3 pip

mkdir -p .libtorch
exec 9>.libtorch/lock
if ! flock -n 9; then
  echo "libtorch: another process is fetching it: waiting"
  flock 9
  is_whole && exit
fi
rm -rf .libtorch/partial.* # left by a killed run: the lock says that none is going on
partial=$(mktemp -d .libtorch/partial.XXXXXX)
trap 'rm -rf "$partial"' EXIT
mkdir "$partial/tmp"

echo "libtorch: fetching ${wheels[*]} into $home"
# Only C++ libraries and headers are used, so one Python's wheel serves any python3. The variables keep a user's
# own pip settings from forbidding --target, and the large temporary files off a small /tmp.
TMPDIR=$PWD/$partial/tmp PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
  python3 -m pip install --target "$partial/site" --no-compile --only-binary=:all: --python-version 3.12 \
  ${options[@]+"${options[@]}"} "${wheels[@]}" || {
  echo "mixd: libtorch $torch was not fetched: pip failed as said above (check the network, or set LIBTORCH to your own)" >&2
  exit 1
}

if [[ $kind == cuda ]]; then
  ready=$partial/site # whole and unmoved: the libraries look for each other by relative paths
  ln -s torch/include torch/lib "$ready"
else
  ready=$partial/ready
  mkdir "$ready"
  mv "$partial/site/torch/"{include,lib} "$ready"
  lib=$ready/lib
  rm -rf "$lib"/{*cuda*,*nvrtc*,*nvshmem*,*python*,libshm*,libtorch_global_deps.so}
  # All in one folder, because libtorch_cpu.so also looks beside itself.
  mv "$partial"/site/nvidia/cu13/lib/{libcudart,libcupti}.so.13 "$lib"
  ln -sf libtorch_cpu.so "$lib/libtorch.so" # the wheel's would ask for CUDA
fi
echo "$wanted" >"$ready/build-version"
rm -rf "$home"
mv "$ready" "$home"
echo "libtorch: $home is ready, $(du -sh "$home" | cut -f1)"
