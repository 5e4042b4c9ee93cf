"""Dense decode attention of PyTorch (scaled_dot_product_attention, flash backend) on the shapes of steps.cu, as replays of a CUDA graph over
several layers. Prints a table; with a file name as argument the same as JSON."""
import json
import sys

import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel


def time_layers(tokens: int, batch: int) -> float:
    """Median microseconds of a layer."""
    layers = 2 if batch >= 8 else 6
    def random(heads, length):
        return torch.randn(batch, heads, length, 128, device="cuda", dtype=torch.bfloat16)
    query = random(32, 1)
    caches = [(random(8, tokens), random(8, tokens)) for _ in range(layers)]
    def attend():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            for keys, values in caches:
                functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
    attend()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend()
    times = []
    for _ in range(45):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times[5:])[20] * 1000 / layers


results = []
for tokens in (32768, 131072):
    for batch in (1, 8):
        results.append({"tokens": tokens, "batch": batch, "case": "torch sdpa flash " + torch.__version__,
                        "microseconds": time_layers(tokens, batch)})
        print(f"{tokens:7d} x {batch}  {results[-1]['case']}  {results[-1]['microseconds']:.1f} us")
if len(sys.argv) > 1:
    with open(sys.argv[1], "w") as out:
        json.dump(results, out, indent=1)
