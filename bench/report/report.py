"""Makes one self-contained page of build/bench/cpu.json, peers.json and accuracy.json. Python's standard library alone.

    report.py --cpu cpu.json --peers peers.json --accuracy accuracy.json --output report.html

Each file may be missing, and any benchmark in it: a chart that cannot be drawn says why.
"""
import argparse
import json
import os
import re
import sys
from html import escape

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import svg  # noqa: E402

LENGTHS = {"8k": 8192, "32k": 32768, "128k": 131072}
STAGES = ("score", "select", "scan", "attend", "sample", "tail")
MICROSECONDS = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}


class Results:
    """The benchmarks of one file by name, without what Google Benchmark appends; times in microseconds."""

    def __init__(self, path):
        self.path, self.context, self.rows, self.problem = path, {}, {}, ""
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
        except FileNotFoundError:
            self.problem = f"{os.path.basename(path)} is not there"
            return
        except ValueError as problem:
            self.problem = f"{os.path.basename(path)} is not JSON ({problem})"
            return
        self.context = content.get("context", {})
        for row in content.get("benchmarks", []):
            if row.get("run_type", "iteration") != "iteration":
                continue
            name = re.sub(r"/(iterations:\d+|manual_time|real_time|process_time|repeats:\d+)(?=/|$)", "", row["name"])
            if "real_time" in row:
                row["us"] = row["real_time"] * MICROSECONDS[row.get("time_unit", "ns")]
            self.rows[name] = row

    def timed(self, pattern):
        """(groups of the pattern, row) of every benchmark that has a time and no error."""
        for name, row in self.rows.items():
            match = re.fullmatch(pattern, name)
            if match and row.get("us") and not row.get("error_occurred"):
                yield match.groups(), row

    def why(self, names):
        return self.problem or f"{os.path.basename(self.path)} has no benchmark named {names}"


def table(head, rows):
    cells = lambda tag, row: "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in row) + "</tr>"
    body = "\n".join(cells("td", row) for row in rows)
    return f'<div class="sheet"><table><thead>{cells("th", head)}</thead>\n<tbody>\n{body}\n</tbody></table></div>\n'


def section(title, about, content):
    return f'<section>\n<h2>{escape(title)}</h2>\n<p class="about">{escape(about)}</p>\n{content}</section>\n'


def figure(title, chart):
    return f"<figure><h3>{escape(title)}</h3>\n{chart}\n</figure>\n"


def missing(*reasons):
    return f'<p class="missing">Not drawn: {escape("; ".join(dict.fromkeys(reasons)))}.</p>\n'


def microseconds(value):
    return f"{value:,.0f} µs" if value >= 100 else f"{value:.3g} µs"


def percent(value):
    return "–" if value is None else f"{value:.3g} %" if abs(value) < 10 else f"{value:.0f} %"


def share(row, key):
    return percent(row[key] * 100 if row.get(key) is not None else None)


def budget(name):
    return re.sub(r"budget_(\d+)_percent", r"\1 % of the tokens", name)


def time_section(cpu, peers):
    charts = {}  # threads -> series -> tokens -> time
    for pattern, results, name in (
            (r"dense/llama8b_(\w+?)_hnd()/threads:(\d+)", cpu, lambda _: "quorum, dense"),
            (r"sparse/llama8b_(\w+?)_hnd/(budget_\d+_percent)/threads:(\d+)", cpu, lambda part: "quorum, " + budget(part)),
            (r"(?!faiss)\w+/llama8b_(\w+?)()/threads:(\d+)", peers, None)):
        for (size, part, threads), row in results.timed(pattern):
            label = name(part) if name else row["name"].split("/")[0].replace("_", " ")
            if size in LENGTHS:
                charts.setdefault(threads, {}).setdefault(label, {})[LENGTHS[size]] = row["us"]
    content = ""
    for threads, series in sorted(charts.items(), key=lambda item: int(item[0])):
        lengths = sorted({x for points in series.values() for x in points})
        content += figure(f"{threads} thread{'s' if threads != '1' else ''}", svg.line_chart(series, "Time of a step by length", "µs"))
        content += table(["µs"] + [svg.tokens(x) for x in lengths],
                         [[name] + [f"{points[x]:,.0f}" if x in points else "–" for x in lengths] for name, points in series.items()])
    if not any(cpu.timed(r"dense/llama8b_\w+_hnd/threads:\d+")):
        content += missing("quorum's own lines: " + cpu.why("dense/llama8b_..._hnd"))
    if not any(peers.timed(r"(?!faiss|peak)\w+/llama8b_\w+/threads:\d+")):
        content += missing("the peers' lines: " + peers.why(".../llama8b_..."))
    return section("Time against length", "One decode step of a layer with 32 query heads on 8 KV heads of 128 dimensions, f16, on cold "
                   "caches. Lower is better. Lines of different files come from different runs: their distance is a hint, the ratios "
                   "of the next section are measurements.", content)


def peers_section(peers):
    rows, refused = [], []
    for name, row in peers.rows.items():
        if row.get("error_occurred"):
            refused.append(f"{name}: {row.get('error_message', 'failed')}")
        elif "ratio_sparse5" in row:
            rows.append((name, row))
    content = ""
    if rows:
        bars = [(name.replace("/threads:", ", "), [("", row["ratio_sparse5"], 1)]) for name, row in rows]
        content += figure("Times longer than quorum's sparse step; the number behind the comma is threads",
                          svg.bar_chart(bars, "Ratio of the peer's time to quorum's sparse time", "times quorum's sparse step at 5 % of the tokens",
                                        lambda value: f"{value:.1f}×"))
        content += table(["", "peer, µs", "error", "quorum dense, µs", "ratio", "quorum 5 %, µs", "ratio", "error of quorum 5 %"],
                         [[name, f"{row['us']:,.0f}", share(row, "error_vs_dense"), f"{row['quorum_dense_us']:,.0f}", f"{row['ratio_dense']:.2f}",
                           f"{row['quorum_sparse5_us']:,.0f}", f"{row['ratio_sparse5']:.1f}", share(row, "quorum_sparse5_error")]
                          for name, row in rows])
    else:
        content += missing(peers.why("with a ratio_sparse5"))
    if refused:
        content += missing(*refused)
    kmeans = [(name, row) for name, row in peers.rows.items() if "ratio_kmeans" in row]
    if kmeans:
        content += table(["k-means", "faiss, µs", "of peak", "quorum, µs", "of peak", "ratio", "inertia, quorum / faiss"],
                         [[name, f"{row['us']:,.0f}", share(row, "share_of_peak"), f"{row['quorum_kmeans_us']:,.0f}",
                           share(row, "quorum_share_of_peak"), f"{row['ratio_kmeans']:.2f}", f"{row['inertia_ratio']:.4f}"] for name, row in kmeans])
        content += ('<p class="about">Of peak: by the multiply-adds of the plain algorithm, against f32 multiply-adds measured in the same run. '
                    "Leaving some out, or int8, can exceed it.</p>\n")
    else:
        content += missing("k-means: " + peers.why("faiss_kmeans/..."))
    return section("Next to other libraries", "In turn with quorum's steps on the same data: every row holds both sides' medians of one "
                   "run, and the error against quorum's dense output.", content)


def bandwidth_section(cpu):
    rows = [((stage, workload, part or "", threads), row) for (stage, workload, part, threads), row in
            cpu.timed(r"(dense|sparse)/(\w+?)(?:/([\w.]+))?/threads:(\d+)") if row.get("share_of_bandwidth")]
    if not rows:
        return section("Share of the read bandwidth", "", missing(cpu.why("dense/... with share_of_bandwidth")))
    content = ""
    for threads in sorted({key[3] for key, _ in rows}, key=int):
        chosen = [(key, row) for key, row in rows if key[3] == threads]
        bars = [(f"{stage}, {workload} {budget(part)}".strip(), [("", row["share_of_bandwidth"] * 100, 0 if stage == "dense" else 1)])
                for (stage, workload, part, _), row in chosen if not re.fullmatch(r"0\.\d+", part) or part in ("0.70", "0.90")]
        content += figure(f"{threads} thread{'s' if threads != '1' else ''}", svg.bar_chart(
            bars, "Share of read bandwidth", "% of the read bandwidth measured in the same run", percent,
            max(100.0, *(value for _, parts in bars for _, value, _ in parts))))
        numbers = table(["", "µs", "bytes", "GB/s", "of bandwidth", "speed-up", "error"],
                        [["/".join(filter(None, key[:3])), f"{row['us']:,.1f}", f"{row.get('bytes', 0):,.0f}", f"{row.get('GB_per_s', 0):.1f}",
                          share(row, "share_of_bandwidth"), f"{row['speedup']:.2f}" if "speedup" in row else "–", share(row, "error")]
                         for key, row in chosen])
        content += f"<details><summary>The numbers</summary>{numbers}</details>\n"
    return section("Share of the read bandwidth", "Bytes that a step reads, by its time, against reading memory in order. Caches that "
                   "hold a part of the data can bring it above 100 %.", content)


def stages_section(cpu):
    bars = {}
    for (stage, workload, part, threads), row in cpu.timed(rf"({'|'.join(STAGES)})/(\w+)/([\w.]+)/threads:(\d+)"):
        bars.setdefault((workload, part, threads), {})[stage] = row["us"]
    if not bars:
        return section("Stages of a step", "", missing(cpu.why("/".join(STAGES) + "/<workload>/<target or budget>")))
    order = sorted(bars, key=lambda key: (int(key[2]), key[0], key[1]))
    name = lambda key: f"{key[0]}, {budget(key[1])}, {key[2]} thread{'s' if key[2] != '1' else ''}"
    # Shares of the step, so that short and long caches are both legible.
    stacked = [(name(key), [(stage, bars[key][stage] / sum(bars[key].values()) * 100, i + 1) for i, stage in enumerate(STAGES) if stage in bars[key]])
               for key in order]
    chart = svg.bar_chart(stacked, "Share of each stage", "% of the sum of the stages", percent)
    absent = [f"{name(key)} has no {stage}" for key in order for stage in STAGES if stage not in bars[key]]
    return section("Stages of a step", "Each stage timed by itself.", figure("Share of each stage", chart) + table(
        ["µs", *STAGES, "sum", "select, of the sum"],
        [[name(key), *(f"{bars[key][stage]:,.1f}" if stage in bars[key] else "–" for stage in STAGES), f"{sum(bars[key].values()):,.1f}",
          percent(bars[key].get("select", 0) / sum(bars[key].values()) * 100)] for key in order]) + (missing(*absent) if absent else ""))


def growth_section(cpu):
    charts = {}
    for (length, part, threads), row in cpu.timed(r"growth/(\d+)/(\w+)/threads:(\d+)"):
        charts.setdefault(threads, {}).setdefault("dense" if part == "dense" else budget(part), {})[int(length)] = row["us"]
    content = "" if charts else missing(cpu.why("growth/<tokens>/..."))
    for threads, series in sorted(charts.items(), key=lambda item: int(item[0])):
        lengths = sorted({x for points in series.values() for x in points})
        content += figure(f"{threads} thread{'s' if threads != '1' else ''}", svg.line_chart(series, "Growth of the time with the length", "µs"))
        content += table(["µs"] + [svg.tokens(x) for x in lengths],
                         [[name] + [f"{points[x]:,.1f}" if x in points else "–" for x in lengths] for name, points in series.items()])
    return section("Growth", "One KV head, ever longer caches.", content)


def frontier_section(path):
    """Bytes at equal output error, every rule of the accuracy table on one picture for each model."""
    try:
        with open(path, encoding="utf-8") as file:
            frontier = json.load(file)["frontier"]
    except (OSError, ValueError, KeyError) as problem:
        return section("Bytes at equal output error", "", missing(f"{os.path.basename(path)}: {type(problem).__name__}"))
    models = {}
    for row in frontier:
        if row["bytes_share"] is not None:
            models.setdefault(row["traces"], {}).setdefault(row["rule"].replace("_", " "), {})[row["error"] * 100] = row["bytes_share"] * 100
    content = ""
    for model, series in models.items():
        word = lambda error: f"{error:.3g} % error"
        content += figure(model, svg.line_chart(series, f"Bytes at equal output error, {model}", "% of dense bytes", "mean output error, %",
                                                lambda error: f"{error:.3g}", word))
        errors = sorted({error for points in series.values() for error in points}, reverse=True)
        content += "<details><summary>The numbers</summary>" + table(
            ["% of dense bytes"] + [word(error) for error in errors],
            [[name] + [f"{points[error]:.1f}" if error in points else "–" for error in errors] for name, points in series.items()]) + "</details>\n"
    return section("Bytes at equal output error", "What each rule of the accuracy table reads for the same mean error. Lower is better; a rule "
                   "that ends early does not reach smaller errors. The oracle knows all weights and pays for no index.", content)


def measured_section(cpu, peers):
    facts = [("Numbers of", "; ".join(result.problem or os.path.basename(result.path) + ", " + str(result.context.get("date", "no date"))
                                      for result in (cpu, peers)))]
    for term, key in (("Processor", "cpu"), ("Instructions", "cpu_flags"), ("Peers", "peers"), ("Quorum", "quorum_version"),
                      ("Commit of the peers' run", "commit"), ("Command of the peers' run", "command")):
        value = peers.context.get(key)
        if value:
            facts.append((term, " ".join(value) if isinstance(value, list) else ", ".join(f"{k} {v}" for k, v in value.items())
                          if isinstance(value, dict) else str(value)))
    for name, row in list(cpu.rows.items()) + list(peers.rows.items()):
        if name.startswith("read_bandwidth") and "GB_per_s" in row:
            facts.append((name, f"{row['GB_per_s']:.1f} GB/s"))
        if name.startswith("peak_multiply_add") and "multiply_adds_per_s" in row:
            facts.append((name, f"{row['multiply_adds_per_s'] / 1e9:.1f} thousand million f32 multiply-adds a second"))
    loads = [f"{os.path.basename(result.path)} {result.context['load_avg'][0]:.1f}" for result in (cpu, peers) if result.context.get("load_avg")]
    if loads:
        facts.append(("Load of the machine", "; ".join(loads)))
    return section("How this was measured", "Medians on cold caches; speeds are ratios within one run.",
                   "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(value)}</dd>" for term, value in facts) + "</dl>\n")


def page(cpu, peers, accuracy):
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "style.css"), encoding="utf-8") as file:
        style = file.read()
    body = (time_section(cpu, peers) + peers_section(peers) + bandwidth_section(cpu) + stages_section(cpu) + growth_section(cpu)
            + frontier_section(accuracy) + measured_section(cpu, peers))
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>quorum: benchmarks</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n<header><p class=\"eyebrow\">quorum · bench</p>\n"
            '<h1>Decode attention on a CPU: time, bandwidth, peers</h1>\n<p class="lead">What the benchmarks of this build measured.</p></header>\n'
            f"{body}</main>\n</body>\n</html>\n")


def main(arguments):
    parser = argparse.ArgumentParser(description="Makes one page of the benchmarks' results.")
    for option in ("cpu", "peers", "accuracy", "output"):
        parser.add_argument("--" + option, required=True)
    options = parser.parse_args(arguments)
    cpu, peers = Results(options.cpu), Results(options.peers)
    if not cpu.rows and not peers.rows:
        print(f"report.py: nothing to show: {cpu.why('at all')}; {peers.why('at all')}", file=sys.stderr)
        return 1
    with open(options.output, "w", encoding="utf-8") as file:
        file.write(page(cpu, peers, options.accuracy))
    print(f"{options.output} shows {len(cpu.rows)} benchmarks of {os.path.basename(cpu.path)} and {len(peers.rows)} of "
          f"{os.path.basename(peers.path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
