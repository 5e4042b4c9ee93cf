"""K-means by faiss on the rows that quorum clusters, from the same first centroids, in turn with quorum's.

    faiss_kmeans.py PEER_QUORUM DATA [SEGMENTS THREADS REPEATS]...   one JSON object a line on standard output

Both end with the assignment of every row to the nearest of the last centroids. With several threads faiss clusters one segment after the
other with all of them, or as many segments at once as there are threads; the faster counts.
"""
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy

from quorum_process import QuorumProcess, median, settle


def cluster(rows, clusters, iterations):
    """Assignment of each row after so many rounds of Lloyd's algorithm from rows at uniform stride."""
    n, d = rows.shape
    first = rows[(numpy.arange(clusters, dtype=numpy.int64) * (n - 1)) // (clusters - 1)]
    kmeans = faiss.Kmeans(d, clusters, niter=iterations, min_points_per_centroid=1, max_points_per_centroid=n)  # no row is left out
    kmeans.train(rows, init_centroids=first)
    return kmeans.index.search(rows, 1)[1][:, 0]


def inertia(rows, assignment, clusters):
    """Sum of squared distances to the means of the clusters."""
    rows = rows.astype(numpy.float64)
    sums = numpy.zeros((clusters, rows.shape[1]))
    numpy.add.at(sums, assignment, rows)
    counts = numpy.maximum(numpy.bincount(assignment, minlength=clusters), 1)
    return float(((rows - (sums / counts[:, None])[assignment]) ** 2).sum())


def one_after_the_other(segments, clusters, iterations, threads):
    faiss.omp_set_num_threads(threads)
    return [cluster(rows, clusters, iterations) for rows in segments]


def side_by_side(segments, clusters, iterations, threads):
    def alone(rows):
        faiss.omp_set_num_threads(1)  # of the calling thread
        return cluster(rows, clusters, iterations)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(alone, segments))


def measure(quorum, keys, count, threads, repeats, facts):
    clusters, iterations, rows = int(facts["clusters"]), int(facts["iterations"]), int(facts["rows"])
    segments = [numpy.ascontiguousarray(keys[i * rows:(i + 1) * rows]) for i in range(count)]
    ways = {"one_after_the_other": one_after_the_other}
    if threads > 1 and count > 1:
        ways["side_by_side"] = side_by_side
    times, ours, found = {way: [] for way in ways}, [], {}
    for repeat in range(repeats + 1):  # the first in vain: threads start, memory is touched
        ours.append(quorum.ask("kmeans", count, threads)["us"])
        for way, run in ways.items():
            settle()
            start = time.perf_counter()
            found[way] = run(segments, clusters, iterations, threads)
            times[way].append((time.perf_counter() - start) * 1e6)
        settle()
    way = min(ways, key=lambda name: median(times[name][1:]))
    theirs = sum(inertia(segment, assignment, clusters) for segment, assignment in zip(segments, found[way]))
    row_work = rows * clusters * keys.shape[1]  # multiply-adds of one pass over a segment; Lloyd's algorithm makes iterations + 1
    return {"name": f"faiss_kmeans/{count}x{rows}_rows_{clusters}_clusters/threads:{threads}", "way": way, "us": times[way][1:],
            "ways_us": {name: median(values[1:]) for name, values in times.items()}, "quorum_kmeans_us": ours[1:],
            "inertia": theirs, "quorum_inertia": facts["inertia"], "inertia_ratio": facts["inertia"] / theirs, "iterations": iterations,
            "multiply_adds": (iterations + 1) * count * row_work}


def main(arguments):
    program, data, *words = arguments
    jobs = [tuple(int(word) for word in words[i:i + 3]) for i in range(0, len(words), 3)]
    with QuorumProcess(program, data) as quorum:
        shape = quorum.load("32k")
        keys = numpy.fromfile(f"{quorum.folder}/keys.f16", dtype="float16", count=int(shape["tokens"] * shape["head_dim"]))
        keys = keys.astype(numpy.float32).reshape(int(shape["tokens"]), int(shape["head_dim"]))  # KV head 0 comes first
        facts = {count: quorum.ask("inertia", count) for count in dict.fromkeys(job[0] for job in jobs)}
        for count, threads, repeats in jobs:
            print(json.dumps(measure(quorum, keys, count, threads, repeats, facts[count])), flush=True)
        for threads in sorted({job[1] for job in jobs}):
            rate = quorum.ask("peak", threads)["multiply_adds_per_s"]
            print(json.dumps({"name": f"peak_multiply_add/threads:{threads}", "multiply_adds_per_s": rate}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
