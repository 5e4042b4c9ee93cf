#!/usr/bin/env bash
# Installs what building quorum needs and this machine lacks (Debian and Ubuntu packages). Does nothing when all is there.
#   bash cmake/setup.sh                 compiler, cmake, ninja, Eigen, xsimd, doctest
#   bash cmake/setup.sh --with bench    also Google Benchmark
#   bash cmake/setup.sh --with checks   also clang and clang-format 14
#   bash cmake/setup.sh --with arm      also the compiler for 64-bit Arm and its emulator
set -euo pipefail

fail() { echo "setup.sh: $*" >&2; exit 1; }

groups="base"
while [ $# -gt 0 ]; do
  case "$1" in
    --with)
      [ $# -ge 2 ] || fail "--with needs a group: bench, checks or arm"
      case "$2" in bench | checks | arm) groups="$groups $2" ;; *) fail "--with must be bench, checks or arm, got '$2'" ;; esac
      shift 2 ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) fail "unknown argument '$1' (try --help)" ;;
  esac
done

have_command() { command -v "$1" >/dev/null 2>&1; }

have_compiler() {
  if [ -n "${CXX:-}" ]; then have_command "${CXX%% *}"; else have_command g++ || have_command clang++ || have_command c++; fi
}

# True when an include folder of a usual prefix holds the header; Debian keeps Eigen one folder deeper.
have_header() {
  local prefix
  local -a prefixes=(/usr /usr/local /opt/homebrew)
  [ -z "${CONDA_PREFIX:-}" ] || prefixes+=("$CONDA_PREFIX")
  if [ -n "${CMAKE_PREFIX_PATH:-}" ]; then
    local -a listed
    IFS=':;' read -r -a listed <<<"$CMAKE_PREFIX_PATH"
    prefixes+=("${listed[@]}")
  fi
  for prefix in "${prefixes[@]}"; do
    if [ -e "$prefix/include/$1" ] || [ -e "$prefix/include/eigen3/$1" ]; then return 0; fi
  done
  return 1
}

have_clang_format_14() {
  have_command clang-format-14 || { have_command clang-format && clang-format --version | grep -q 'version 14\.'; }
}

missing_packages() {
  local group
  for group in $groups; do
    case "$group" in
      base)
        have_compiler || echo g++
        have_command cmake || echo cmake
        have_command ninja || echo ninja-build
        have_header Eigen/Core || echo libeigen3-dev
        have_header xsimd/xsimd.hpp || echo libxsimd-dev
        have_header doctest/doctest.h || echo doctest-dev ;;
      bench) have_header benchmark/benchmark.h || echo libbenchmark-dev ;;
      checks)
        have_command g++ || echo g++
        have_command clang++ || echo clang
        have_clang_format_14 || echo clang-format-14 ;;
      arm)
        have_command aarch64-linux-gnu-g++ || echo g++-aarch64-linux-gnu
        have_command qemu-aarch64 || echo qemu-user ;;
    esac
  done
}

missing=$(missing_packages | sort -u | tr '\n' ' ')
missing=${missing% }
[ -n "$missing" ] || exit 0

have_command apt-get || fail "missing: $missing; this machine has no apt-get, please install them (Debian package names) yourself"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  have_command sudo || fail "missing: $missing; installing them needs root or sudo"
  as_root=(sudo)
  [ -t 0 ] || as_root=(sudo -n)
fi

echo "setup.sh: installing with apt-get: $missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Neither question nor pager may stop an unattended run.
apt() { ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null >>"$log" 2>&1; }
apt update || true  # a stale mirror list can still be good enough; the install below decides
# shellcheck disable=SC2086  # one word per package is meant
if ! apt install -y --no-install-recommends $missing; then
  tail -n 5 "$log" >&2
  fail "missing: $missing; apt-get could not install them (its last lines are above)"
fi
missing=$(missing_packages | sort -u | tr '\n' ' ')
[ -z "$missing" ] || fail "missing even after apt-get: ${missing% }"
