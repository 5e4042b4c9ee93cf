#!/usr/bin/env python3
"""What each compiled kernel takes of a multiprocessor, checked against bench/cuda/resources.json.

    resources.py --build build/cuda --table bench/cuda/resources.json --output build/bench/cuda-resources.json

Reads the ptxas reports the build left beside its object files (cmake/keep_ptxas_report.sh), writes one row per kernel
instantiation and architecture: kernel, arch, registers, spills (bytes stored and loaded), shared_bytes, occupancy (share of
the warps a multiprocessor can hold). Fails when a kernel spills, exceeds its row of the table, or has none.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys

# Per multiprocessor, from the table "Technical specifications per compute capability" of the CUDA programming guide.
WARPS = {80: 64, 90: 64, 100: 64}
SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
BLOCKS = 32
REGISTERS = 65536
REGISTERS_OF_A_WARP_ARE_MULTIPLES_OF = 256
SHARED_BYTES_RESERVED_PER_BLOCK = 1024

ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\d+)")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def read_report(text):
    """The kernels of one ptxas report: (mangled name, architecture, registers, spills, static shared bytes)."""
    kernels = []
    name = arch = None
    spills = 0
    for line in text.splitlines():
        if match := ENTRY.search(line):
            name, arch, spills = match[1], int(match[2]), 0
        elif match := SPILLS.search(line):
            spills += int(match[2]) + int(match[3])
        elif (match := USED.search(line)) and name:
            shared = SHARED.search(line)
            kernels.append((name, arch, int(match[1]), spills, int(shared[1]) if shared else 0))
            name = None
    return kernels


def demangle(names):
    if not names:
        return {}
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(zip(names, plain))


def occupancy(arch, threads, registers, shared_bytes):
    warps = -(-threads // 32)
    of_a_warp = -(-registers * 32 // REGISTERS_OF_A_WARP_ARE_MULTIPLES_OF) * REGISTERS_OF_A_WARP_ARE_MULTIPLES_OF
    blocks = min(
        BLOCKS,
        WARPS[arch] // warps,
        REGISTERS // of_a_warp // warps,
        SHARED_BYTES[arch] // (shared_bytes + SHARED_BYTES_RESERVED_PER_BLOCK),
    )
    return blocks * warps / WARPS[arch]


def short_name(plain):
    """quorum::cuda::attend_kernel<...>(...) without its return type and parameters."""
    start = plain.find("quorum::cuda::")
    depth = 0
    for place in range(start, len(plain)):
        depth += {"<": 1, ">": -1}.get(plain[place], 0)
        if plain[place] == "(" and depth == 0:
            return plain[start:place].replace("quorum::cuda::", "")
    return plain[start:]


def check(row, limits):
    """What is wrong with one row of the output."""
    of_kernel = f"{row['kernel']} (sm_{row['arch']})"
    faults = []
    if limits is not None and row["arch"] < limits.get("from_arch", 0):
        return faults  # compiled, but chosen for later architectures only
    if row["spills"] > 0:
        faults.append(f"{of_kernel}: must not spill, got {row['spills']} bytes")
    if limits is None:
        faults.append(f"{of_kernel}: has no row in the table; it takes {row['registers']} registers")
    elif row["registers"] > limits["registers"]:
        faults.append(f"{of_kernel}: must take at most {limits['registers']} registers, got {row['registers']}")
    elif row["occupancy"] < limits["occupancy"]:
        faults.append(f"{of_kernel}: occupancy must be at least {limits['occupancy']}, got {row['occupancy']}")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--table", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args()

    table = json.loads(arguments.table.read_text())["kernels"]
    kernels = sorted({kernel for report in arguments.build.rglob("*.ptxas") for kernel in read_report(report.read_text())})
    plain = demangle([kernel[0] for kernel in kernels])
    rows, faults = [], []
    for name, arch, registers, spills, static_shared in kernels:
        if not re.match(r"(void )?quorum::cuda::\w+[<(]", plain[name]):
            continue  # a kernel of a test
        kernel = short_name(plain[name])
        limits = next((row for row in table if re.fullmatch(row["kernel"], kernel)), None)
        shared = static_shared + (limits or {}).get("dynamic_shared_bytes", 0)
        share = occupancy(arch, (limits or {}).get("threads", 128), registers, shared)
        row = {"kernel": kernel, "arch": arch, "registers": registers, "spills": spills, "shared_bytes": shared, "occupancy": share}
        rows.append(row)
        faults += check(row, limits)

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{len(rows)} kernels in {arguments.output}, {len(faults)} faults")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
