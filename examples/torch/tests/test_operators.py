"""The operators against torch's scaled_dot_product_attention, and what torch.library.opcheck finds."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import quorum_torch
from quorum_torch import ClusterIndex, Decoder, ops


def tensors(batch=2, num_qo_heads=6, num_kv_heads=2, rows=1, tokens=300, head_dim=32, type=torch.float32, seed=0):
    """Query, key, value; keys lie in clusters so that there is something to choose."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(16, head_dim, generator=random) * 2
    key = centres[torch.randint(0, 16, (batch, num_kv_heads, tokens), generator=random)]
    key = key + 0.5 * torch.randn(key.shape, generator=random)
    value = torch.randn(key.shape, generator=random)
    query = torch.randn(batch, num_qo_heads, rows, head_dim, generator=random)
    return query.to(type), key.to(type), value.to(type)


def reference(query, key, value, mask=None, scale=None):
    """[batch, row, qo_head, head_dim] in float64; rows stand at the last tokens."""
    rows, count = query.shape[2], key.shape[2]
    causal = torch.ones(rows, count, dtype=torch.bool).tril(count - rows)
    mask = causal if mask is None else causal & mask
    out = F.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), attn_mask=mask.expand(query.shape[0], 1, rows, count), scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2)


def decoder(query, key, **options):
    return Decoder(query.shape[1], key.shape[1], query.shape[3], 0.0, 0.0, {"dense_below": 0.0} | options)


def indexes(query, key, value, **options):
    built = []
    for k, v in zip(key, value, strict=True):
        index = ClusterIndex(query.shape[1], key.shape[1], query.shape[3], 0.0, options)
        index.build(k, v, None)
        built.append(index)
    return built, torch.tensor([index.handle() for index in built])


TYPES = [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]


@pytest.mark.parametrize("type,tolerance", TYPES)
@pytest.mark.parametrize("heads", [(6, 6), (6, 2), (8, 1)])
@pytest.mark.parametrize("rows", [1, 3])
def test_decode_at_target_one_is_dense(type, tolerance, heads, rows):
    query, key, value = tensors(num_qo_heads=heads[0], num_kv_heads=heads[1], rows=rows, type=type)
    plan = decoder(query, key, target_ratio=1.0)
    built, handles = indexes(query, key, value)
    output, lse, report = ops.decode(plan.handle(), query, key, value, handles)
    assert output.dtype == type and lse.dtype == torch.float32
    assert (output - reference(query, key, value)).abs().max() < tolerance
    assert report.shape == (2, rows, heads[0], len(quorum_torch.REPORT_COLUMNS))
    assert (ops.attention(query, key, value)[0] - output).abs().max() < tolerance


def test_lse():
    query, key, value = tensors()
    scores = (query.double().unflatten(1, (2, 3)) @ key.double().unsqueeze(2).transpose(-1, -2)).flatten(1, 2) / 32**0.5
    expected = scores.logsumexp(-1).transpose(1, 2)
    assert (ops.attention(query, key, value)[1] - expected).abs().max() < 1e-5


def test_strides_need_no_copy():
    query, key, value = tensors(rows=2)
    expected = reference(query, key, value)
    plan = decoder(query, key, target_ratio=1.0)
    for order in [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (1, 2, 0, 3)]:
        back = [order.index(i) for i in range(4)]
        strided = [t.permute(order).contiguous().permute(back) for t in (query, key, value)]
        assert (ops.decode(plan.handle(), *strided)[0] - expected).abs().max() < 1e-5
    padded = F.pad(key, (0, 0, 5, 7))[:, :, 5:-7], F.pad(value, (0, 0, 5, 7))[:, :, 5:-7]
    assert (ops.decode(plan.handle(), query, *padded)[0] - expected).abs().max() < 1e-5
    # The cache is read where it lies, through the view of a larger one.
    key[0, 0, 0] += 1.0
    assert (ops.attention(query, key, value)[0] - reference(query, key, value)).abs().max() < 1e-5


def test_sparse_reads_less_and_is_near():
    query, key, value = tensors(tokens=4096, head_dim=64)
    query = query * 0 + key[:, :, 100:101].repeat_interleave(3, 1)  # looks for one cluster
    plan = decoder(query, key, target_ratio=0.95)
    built, handles = indexes(query, key, value)
    output, _, report = ops.decode(plan.handle(), query, key, value, handles)
    columns = dict(zip(quorum_torch.REPORT_COLUMNS, report.flatten(0, 2).T, strict=True))
    assert columns["tokens_read"].max() < 2048
    assert columns["attained_ratio_estimate"].min() >= 0.95
    exact = reference(query, key, value)
    assert ((output - exact).norm(dim=-1) / exact.norm(dim=-1)).mean() < 0.1
    assert plan.statistics()["sparse_tokens"] == 12


def test_begins_ends_and_masks():
    query, key, value = tensors(batch=3, rows=2)
    begins, ends = torch.tensor([0, 17, 250]), torch.tensor([300, 131, 260])
    plan = decoder(query, key, target_ratio=1.0)
    for op in (lambda *a: ops.decode(plan.handle(), *a[:3], None, *a[3:])[0], lambda *a: ops.attention(*a[:3], 0.0, 0.0, *a[3:])[0]):
        output = op(query, key, value, begins, ends)
        for b in range(3):
            part = slice(int(begins[b]), int(ends[b]))
            expected = reference(query[b : b + 1], key[b : b + 1, :, part], value[b : b + 1, :, part])
            assert (output[b : b + 1] - expected).abs().max() < 1e-5
        mask = torch.rand(3, 1, 2, 300, generator=torch.Generator().manual_seed(3)) < 0.4
        mask[..., 0] = True
        assert (op(query, key, value, None, None, mask) - reference(query, key, value, mask)).abs().max() < 1e-5
        assert (op(query, key, value, None, None, mask[:1, :, :1]) - reference(query, key, value, mask[:1, :, :1])).abs().max() < 1e-5


def test_rows_that_see_the_same():
    """Beams on one prefix: rows that all see every token."""
    query, key, value = tensors(rows=4)
    plan = decoder(query, key, target_ratio=1.0)
    output = ops.decode(plan.handle(), query, key, value, None, None, None, None, False)[0]
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), enable_gqa=True).transpose(1, 2)
    assert (output - expected).abs().max() < 1e-5


def test_select_and_attend_selection():
    query, key, value = tensors(tokens=2048)
    plan = decoder(query, key, target_ratio=0.9)
    built, handles = indexes(query, key, value)
    tokens, counts = ops.select(plan.handle(), query, key, value, 2048, handles)
    assert counts.min() > 0
    for row, count in zip(tokens.flatten(0, 1), counts.flatten(), strict=True):
        chosen = row[:count]
        assert bool((chosen[1:] > chosen[:-1]).all()) and bool((row[count:] == -1).all())
    output = ops.attend_selection(query, key, value, tokens, counts)[0]
    mask = torch.zeros(2, 2, 2049, dtype=torch.bool).scatter(2, tokens.long() % 2049, True)[:, :, :2048]  # -1 becomes 2048
    mask = mask.repeat_interleave(3, 1).unsqueeze(2)
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), attn_mask=mask, enable_gqa=True).transpose(1, 2)
    assert (output - expected).abs().max() < 1e-5
    small = ops.select(plan.handle(), query, key, value, 1, handles)[1]
    assert torch.equal(small, counts)


def test_merge_of_parts_is_the_whole():
    query, key, value = tensors()
    parts = [ops.attention(query, key[:, :, part], value[:, :, part]) for part in (slice(0, 100), slice(100, 300))]
    output, lse = ops.merge(*parts[0], *parts[1])
    whole = ops.attention(query, key, value)
    assert (output - whole[0]).abs().max() < 1e-5 and (lse - whole[1]).abs().max() < 1e-5


def test_mask_ranges():
    mask = torch.zeros(2, 1, 2, 9, dtype=torch.bool)
    mask[0, 0, 0, 2:7] = True
    mask[0, 0, 1, [0, 8]] = True
    mask[1, 0, 0, 4] = True
    assert ops.mask_ranges(mask).tolist() == [[[2, 7, 5], [0, 9, 2]], [[4, 5, 1], [0, 0, 0]]]


def test_index_follows_its_cache():
    query, key, value = tensors(batch=1, tokens=900)
    plan = decoder(query, key, target_ratio=1.0)
    index = ClusterIndex(6, 2, 32, 0.0, {"recluster_every": 32})
    index.build(key[0, :, :500], value[0, :, :500], tensors(rows=20)[0][0])
    index.append(key[0, :, :800], value[0, :, :800])
    index.truncate(700)
    index.append(key[0], value[0])
    fork = index.fork()
    fork.erase(100, 300)
    index.overwrite(5, 9)
    index.invalidate(400, 420)
    assert (index.num_tokens(), fork.num_live_tokens(), index.num_live_tokens()) == (900, 700, 900)
    assert ops.total_index_bytes([index, index.fork()]) == index.bytes() > 0
    mask = torch.ones(1, 1, 1, 900, dtype=torch.bool)
    mask[..., 100:300] = False
    for each, visible in [(index, None), (fork, mask), (index.load(index.save()), None)]:
        output = ops.decode(plan.handle(), query, key, value, torch.tensor([each.handle()]))[0]
        assert (output - reference(query, key, value, visible)).abs().max() < 1e-5


def test_opcheck():
    query, key, value = tensors(rows=2)
    plan = decoder(query, key, target_ratio=0.9)
    built, handles = indexes(query, key, value)
    begins, ends = torch.tensor([0, 10]), torch.tensor([300, 290])
    mask = torch.ones(2, 1, 2, 300, dtype=torch.bool)
    one = query[:, :, :1].contiguous()
    tokens, counts = ops.select(plan.handle(), one, key, value, 300, handles)
    output, lse = ops.attention(query, key, value)
    opcheck(ops.decode.default, (plan.handle(), query, key, value))
    opcheck(ops.decode.default, (plan.handle(), query, key, value, handles, None, None, mask))
    opcheck(ops.attention.default, (query, key, value, 0.1, 0.0, begins, ends, mask))
    opcheck(ops.select.default, (plan.handle(), one, key, value, 300, handles))
    opcheck(ops.attend_selection.default, (one, key, value, tokens, counts))
    opcheck(ops.merge.default, (output, lse, output, lse))
    opcheck(ops.mask_ranges.default, (mask,))


def test_compiled():
    query, key, value = tensors()
    plan = decoder(query, key, target_ratio=1.0)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def attend(query, key, value):
        return ops.decode(handle, query, key, value)[0] * 2.0

    handle = plan.handle()
    assert (attend(query, key, value) - 2.0 * reference(query, key, value)).abs().max() < 1e-5


ERRORS = [
    (lambda q, k, v, d: ops.decode(d, q[0], k, v), "query must be"),
    (lambda q, k, v, d: ops.decode(d, q, k, v[:, :1]), "value must be of the key's shape"),
    (lambda q, k, v, d: ops.decode(d, q, k.double(), v.double()), "key must be float32"),
    (lambda q, k, v, d: ops.decode(d, q, k, v.half()), "value must be of the key's type"),
    (lambda q, k, v, d: ops.decode(d, q[:1], k, v), "the query's batch"),
    (lambda q, k, v, d: ops.decode(d, q[:, :4], k, v), "the decoder's num_qo_heads"),
    (lambda q, k, v, d: ops.decode(d, q, k[..., ::2], v[..., ::2]), "contiguous in head_dim"),
    (lambda q, k, v, d: ops.decode(d + 12345, q, k, v), "the handle of a decoder that lives"),
    (lambda q, k, v, d: ops.decode(d, q, k, v, torch.tensor([1 << 40, 0])), "handles of indexes that live"),
    (lambda q, k, v, d: ops.decode(d, q, k, v, torch.tensor([0])), "indexes must be"),
    (lambda q, k, v, d: ops.decode(d, q, k, v, None, None, torch.tensor([300, 301])), "begins and ends must be"),
    (lambda q, k, v, d: ops.decode(d, q, k, v, None, None, None, torch.ones(2, 1, 1, 9, dtype=torch.bool)), "mask must be"),
    (lambda q, k, v, d: ops.decode(d, q, k, v, None, None, None, torch.ones(2, 1, 1, 300)), "mask must be bool"),
    (lambda q, k, v, d: ops.merge(q, k, v, v), "output_b must be"),
    (lambda q, k, v, d: ClusterIndex(6, 4, 32, 0.0, {}), "num_qo_heads must be a multiple"),
    (lambda q, k, v, d: ClusterIndex(6, 2, 32, 0.0, {"clustersize": 3.0}), "name must be one of cluster_size"),
    (lambda q, k, v, d: ClusterIndex(6, 2, 32, 0.0, {}).truncate(5), "num_tokens must be 0 to num_tokens"),
    (lambda q, k, v, d: ClusterIndex(6, 2, 32, 0.0, {}).append(k, v), "key and value must be"),
    (lambda q, k, v, d: ClusterIndex(6, 2, 16, 0.0, {}).build(k[0], v[0], None), "key must be"),
    (lambda q, k, v, d: ClusterIndex(6, 2, 32, 0.0, {}).load(torch.zeros(9, dtype=torch.uint8)), "ClusterIndex::load"),
    (lambda q, k, v, d: Decoder(6, 2, 32, 0.0, 0.0, {"target_ratio": 1.5}), "target_ratio must be in"),
    (lambda q, k, v, d: Decoder(6, 2, 32, 0.0, 0.0, {"tail": 7.0}), "tail must be"),
    (lambda q, k, v, d: quorum_torch.SparseConfig(target_ratio=0.0), "target_ratio must be in"),
    (lambda q, k, v, d: quorum_torch.SparseConfig(certificate_policy="hope"), "certificate_policy must be one of"),
]


@pytest.mark.parametrize("call,message", ERRORS)
def test_errors(call, message):
    query, key, value = tensors()
    plan = decoder(query, key)
    with pytest.raises(ValueError, match=message):
        call(query, key, value, plan.handle())


def test_an_index_that_is_gone_is_found_out():
    query, key, value = tensors()
    plan = decoder(query, key)
    handles = indexes(query, key, value)[1]  # the indexes die here
    with pytest.raises(ValueError, match="handles of indexes that live"):
        ops.decode(plan.handle(), query, key, value, handles)
