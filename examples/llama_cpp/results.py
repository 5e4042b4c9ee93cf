"""Gathers what run.sh left in a folder: prints one table, writes results.json, and fails where the plug-in's agreement with the engine does.

    python3 examples/llama_cpp/results.py build/llama_cpp
"""

import json
import pathlib
import sys

SETTINGS = ("stock_fa_on", "stock_fa_off", "stock_q8_0", "quorum")


def tokens_per_second(home, prefix=""):
    """{setting: {depth: best of the rounds}}."""
    speeds = {}
    for setting in SETTINGS:
        best = speeds.setdefault(setting, {})
        for line in (home / f"bench_{prefix}{setting}.jsonl").read_text().splitlines():
            run = json.loads(line)
            depth = str(run["n_depth"])
            best[depth] = max(best.get(depth, 0.0), round(run["avg_ts"], 2))
    return speeds


def read(home, name):
    return json.loads((home / f"{name}.json").read_text())


def prefill(home):
    """Prompt tokens a second, the best round; llama-bench also times the generation that its other default asks for."""
    speeds = {}
    for name in ("stock", "quorum"):
        runs = [json.loads(line) for line in (home / f"bench_prefill_{name}.jsonl").read_text().splitlines()]
        speeds[name] = max(round(run["avg_ts"], 2) for run in runs if run["n_prompt"] > 0)
    return speeds


def gather(home):
    own, statistics = read(home, "divergence_quorum"), json.loads((home / "statistics").read_text().splitlines()[-1])
    results = {
        "kl_mean": own["kl_mean"],
        "kl_p99": own["kl_p99"],
        "top1": own["top1"],
        "positions": own["positions"],
        "perplexity": {"stock": own["perplexity"]["reference"], "quorum": own["perplexity"]["this"]},
        "tokens_read_share": statistics["tokens_read_share"],
        "kl_mean_target_1": read(home, "divergence_target_1")["kl_mean"],
        "kl_mean_stock_fa_on": read(home, "divergence_stock_fa_on")["kl_mean"],
        "statistics": statistics,
    }
    for cache in ("unified", "split"):
        results[f"long_session_{cache}"] = {name: read(home, f"session_{name}_{cache}") for name in ("stock", "target_1", "quorum")}
    if (home / "bench_quorum.jsonl").exists():
        results["tokens_per_second"] = tokens_per_second(home)
        results["prefill_tokens_per_second"] = prefill(home)
    if (home / "bench_gemma_quorum.jsonl").exists():
        results["gemma_tokens_per_second"] = tokens_per_second(home, "gemma_")
    return results


def print_speeds(speeds):
    depths = sorted(speeds["quorum"], key=int)
    print("| tokens/s at a context of | " + " | ".join(depths) + " |")
    print("|---|" + "---|" * len(depths))
    for setting in SETTINGS:
        print(f"| {setting} | " + " | ".join(f"{speeds[setting][depth]:.1f}" for depth in depths) + " |")
    last = depths[-1]
    best = max(speeds[setting][last] for setting in SETTINGS[:-1])
    own, flash = speeds["quorum"][last], speeds["stock_fa_on"][last]
    print(f"at {last}: {own / best:.2f} x the best setting of llama.cpp, {own / flash:.2f} x its -fa on")


# Both of the engine's paths and the plug-in at target 1 are rounded differently, and a prompt is the engine's own: means must agree to a tenth;
# the largest of a few dozen turns is one draw, which may be twice another.
MEAN, LARGEST = 1.1, 2.0


def faults(results):
    found = []
    if results["kl_mean_target_1"] > MEAN * results["kl_mean_stock_fa_on"]:
        found.append("at target 1 the divergence is larger than between the engine's own attention paths")
    for cache in ("unified", "split"):
        own, stock = (results[f"long_session_{cache}"][name] for name in ("target_1", "stock"))
        if own["kl_mean"] > MEAN * stock["kl_mean"] or own["kl_max"] > LARGEST * stock["kl_max"]:
            found.append(f"long session, {cache} cache: at target 1 turns diverge more than between the engine's own attention paths")
    return found


def main(folder):
    home = pathlib.Path(folder)
    results = gather(home)
    (home / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    for speeds in ("tokens_per_second", "gemma_tokens_per_second"):
        if speeds in results:
            print_speeds(results[speeds])
    if "prefill_tokens_per_second" in results:
        both = results["prefill_tokens_per_second"]
        print(f"prefill: {both['quorum'] / both['stock']:.2f} x stock, building of the index included")
    print(f"KL {results['kl_mean']:.4f} (99 %: {results['kl_p99']:.3f}), top-1 {results['top1']:.3f} over {results['positions']} positions; "
          f"perplexity {results['perplexity']['stock']:.3f} -> {results['perplexity']['quorum']:.3f}; "
          f"{100 * results['tokens_read_share']:.1f} % of the tokens read")
    print(f"at target 1: KL {results['kl_mean_target_1']:.2e}; stock -fa on against -fa off: {results['kl_mean_stock_fa_on']:.2e}")
    for cache in ("unified", "split"):
        session = results[f"long_session_{cache}"]
        print(f"long session, {cache}: " + "; ".join(f"{name} KL {session[key]['kl_mean']:.2e}, at most {session[key]['kl_max']:.2e}" for name, key in (
            ("at target 1", "target_1"), ("between stock's two paths", "stock"), ("at the setting", "quorum"))))
    for fault in faults(results):
        print(f"results.py: {fault}", file=sys.stderr)
    return 1 if faults(results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
