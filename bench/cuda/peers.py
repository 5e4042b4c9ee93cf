"""Dense decode attention of others on the shapes of steps.cu, as replays of a CUDA graph over several layers: PyTorch's
scaled_dot_product_attention (flash backend) and, where the package flashinfer-python is there, FlashInfer's decode over pages of 16 tokens.
Answers are compared before times. Prints a table; with a file name as argument the same as JSON."""
import json
import sys

import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel

QUERY_HEADS, KV_HEADS, HEAD_DIM, PAGE = 32, 8, 128, 16


class Layers:
    """Caches of several layers, in pages of 16 tokens: [page][kv_head][16][dim]. A sequence's pages lie one after the other."""

    def __init__(self, tokens: int, batch: int):
        self.tokens, self.batch = tokens, batch
        count = 2 if batch >= 8 else 6
        self.query = self.random(batch, QUERY_HEADS, HEAD_DIM)
        pages = batch * tokens // PAGE
        self.caches = [(self.random(pages, KV_HEADS, PAGE, HEAD_DIM), self.random(pages, KV_HEADS, PAGE, HEAD_DIM)) for _ in range(count)]

    @staticmethod
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


class Torch:
    name = "torch sdpa flash " + torch.__version__

    def __init__(self, layers: Layers):
        def head_major(cache):
            pages = cache.view(layers.batch, layers.tokens // PAGE, KV_HEADS, PAGE, HEAD_DIM)
            return pages.transpose(1, 2).reshape(layers.batch, KV_HEADS, layers.tokens, HEAD_DIM)

        self.query = layers.query.view(layers.batch, QUERY_HEADS, 1, HEAD_DIM)
        self.caches = [(head_major(keys), head_major(values)) for keys, values in layers.caches]

    def attend(self) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            for keys, values in self.caches:
                out = functional.scaled_dot_product_attention(self.query, keys, values, enable_gqa=True)
        return out.view(self.query.shape[0], QUERY_HEADS, HEAD_DIM)


class FlashInfer:
    def __init__(self, layers: Layers):
        import flashinfer

        self.name = "flashinfer " + flashinfer.__version__
        self.query, self.caches = layers.query, layers.caches
        pages = layers.tokens // PAGE
        indptr = torch.arange(layers.batch + 1, device="cuda", dtype=torch.int32) * pages
        indices = torch.arange(layers.batch * pages, device="cuda", dtype=torch.int32)
        last = torch.full((layers.batch,), PAGE, device="cuda", dtype=torch.int32)
        workspace = torch.zeros(128 << 20, device="cuda", dtype=torch.uint8)
        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "HND", use_cuda_graph=True, use_tensor_cores=True, paged_kv_indptr_buffer=indptr.clone(),
            paged_kv_indices_buffer=indices.clone(), paged_kv_last_page_len_buffer=last.clone())
        self.wrapper.plan(indptr, indices, last, QUERY_HEADS, KV_HEADS, HEAD_DIM, PAGE, q_data_type=torch.bfloat16,
                          kv_data_type=torch.bfloat16)

    def attend(self) -> torch.Tensor:
        for cache in self.caches:
            out = self.wrapper.run(self.query, cache)
        return out


def time_layers(peer, layers: int) -> float:
    """Median microseconds of a layer."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        peer.attend()
    times = []
    for _ in range(45):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times[5:])[20] * 1000 / layers


def main() -> None:
    kinds = [Torch]
    try:
        import flashinfer  # noqa: F401

        kinds.append(FlashInfer)
    except ImportError:
        print("flashinfer-python: not on this machine, its times are left out")
    results = []
    for tokens in (32768, 131072):
        for batch in (1, 8):
            layers, wanted = Layers(tokens, batch), None
            for kind in kinds:
                peer = kind(layers)
                answer = peer.attend().float()
                wanted = answer if wanted is None else wanted
                error = float((answer - wanted).norm() / wanted.norm())
                if not error < 0.02:
                    sys.exit(f"peers.py: {peer.name} differs from {kinds[0].name} by {error:.3f}")
                microseconds = time_layers(peer, len(layers.caches))
                results.append({"tokens": tokens, "batch": batch, "case": peer.name, "microseconds": microseconds})
                print(f"{tokens:7d} x {batch}  {peer.name}  {microseconds:.1f} us")
                del peer
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w") as out:
            json.dump(results, out, indent=1)


main()
