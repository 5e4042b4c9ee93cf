"""Generation through transformers at target 1 gives what its own dense attention gives, whatever happens to the cache."""

import copy

import pytest
import torch
from conftest import generate, make_prompt
from transformers import DynamicCache, StaticCache

TOLERANCE = 2e-3  # of logits of about 20; torch's own attention paths differ by 1e-4


def caches(attention, model):
    return {"quorum": attention.new_cache(model), "dynamic": DynamicCache(config=model.config)}


def check(dense, sparse):
    assert torch.equal(dense[0], sparse[0])
    difference = (dense[1] - sparse[1]).abs()
    assert difference[torch.isfinite(dense[1])].max() < TOLERANCE


def sparse_calls(attention):
    return attention.statistics().get("calls", 0)


@pytest.mark.parametrize("kind", ["quorum", "dynamic"])
def test_greedy(model, attention, prompt, kind):
    dense = generate(model, "sdpa", prompt)
    check(dense, generate(model, "quorum", prompt, cache=caches(attention, model)[kind]))
    assert sparse_calls(attention) == 23 * model.config.num_hidden_layers  # the first token comes from the prompt


def test_default_cache(model, attention, prompt):
    check(generate(model, "sdpa", prompt), generate(model, "quorum", prompt))
    assert sparse_calls(attention) > 0


@pytest.mark.parametrize("kind", ["quorum", "dynamic"])
def test_left_padding(model, attention, kind):
    prompts = [make_prompt(1, 200), make_prompt(2, 131), make_prompt(3, 77)]
    ids = torch.zeros(3, 200, dtype=torch.long)
    for row, text in enumerate(prompts):
        ids[row, 200 - text.shape[1] :] = text
    mask = (ids != 0).long()
    dense = generate(model, "sdpa", ids, attention_mask=mask)
    check(dense, generate(model, "quorum", ids, attention_mask=mask, cache=caches(attention, model)[kind]))
    # A row of the batch gives what it gives alone.
    alone = generate(model, "quorum", prompts[1])
    assert torch.equal(alone[0][0, 131:], dense[0][1, 200:])


@pytest.mark.parametrize("kind", ["quorum", "dynamic"])
@pytest.mark.parametrize("attention", [{}, {"index_options": {"recluster_every": 4}}], indirect=True)
def test_beams(model, attention, kind):
    ids = torch.cat([make_prompt(4, 150), make_prompt(5, 150)])
    kwargs = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 40}
    dense = generate(model, "sdpa", ids, **kwargs)
    sparse = generate(model, "quorum", ids, cache=caches(attention, model)[kind], **kwargs)
    check(dense, sparse)
    assert sparse_calls(attention) > 0


def test_beams_share_the_prompt(model, attention, prompt):
    cache = attention.new_cache(model)
    generate(model, "quorum", prompt, cache=cache, num_beams=4)
    layer = cache.layers[0]
    assert layer.prefix is not None and layer.prefix.key.shape[:3] == (1, 2, 200)
    assert layer.keys.shape[0] == 4 and layer.keys.shape[2] <= 24
    stats = attention.statistics()
    # Four beams of 200 tokens and more, read as one.
    assert stats["bytes_dense"] < 0.5 * stats["tokens_visible"] / 6 * 2 * 2 * 16 * 4


@pytest.mark.parametrize("type", [torch.float32, torch.bfloat16])
def test_prompts_that_differ_in_one_token_are_not_shared(model, attention, prompt, type):
    model = copy.deepcopy(model).to(type)
    other = prompt.clone()
    other[0, 60] += 1 if other[0, 60] < 198 else -1
    cache, alike = attention.new_cache(model), attention.new_cache(model)
    for rows, each in [((prompt, other), cache), ((prompt, prompt), alike)]:
        step(model, "quorum", torch.cat(rows), each)
        step(model, "quorum", torch.tensor([[5], [6]]), each)
    assert all(layer.prefix is None for layer in cache.layers)
    assert all(layer.prefix is not None for layer in alike.layers)


def test_rows_that_are_padded_differently_are_not_shared(model, attention, prompt):
    ids = torch.cat([prompt, prompt])
    mask = torch.ones_like(ids)
    mask[1, :30] = 0
    dense = generate(model, "sdpa", ids, attention_mask=mask)
    check(dense, generate(model, "quorum", ids, attention_mask=mask, cache=attention.new_cache(model)))


def test_another_attention_goes_on_with_a_shared_prompt(model, attention, prompt):
    cache, reference = attention.new_cache(model), DynamicCache(config=model.config)
    step(model, "quorum", prompt, cache), step(model, "sdpa", prompt, reference)
    cache.batch_repeat_interleave(2), reference.batch_repeat_interleave(2)
    for token, implementation in enumerate(["quorum", "quorum", "sdpa", "quorum"]):
        ids = torch.tensor([[3 + token], [4 + token]])
        difference = step(model, implementation, ids, cache) - step(model, "sdpa", ids, reference)
        assert difference.abs().max() < TOLERANCE
        assert (cache.layers[0].prefix is None) == (token >= 2)


def test_own_tokens_of_beams_are_indexed_when_they_are_many(model, attention, prompt):
    kwargs = {"num_beams": 2, "max_new_tokens": 100}
    dense = generate(model, "sdpa", prompt, **kwargs)
    cache = attention.new_cache(model)
    check(dense, generate(model, "quorum", prompt, cache=cache, **kwargs))
    assert cache.layers[0].prefix is not None and bool(cache.layers[0].indexes)


def test_static_cache(model, attention, prompt):
    dense = generate(model, "sdpa", prompt)
    static = StaticCache(config=model.config, max_cache_len=300)
    check(dense, generate(model, "quorum", prompt, cache=static))
    assert sparse_calls(attention) > 0


def test_static_cache_with_left_padding(model, attention):
    ids = torch.cat([make_prompt(1, 160), make_prompt(2, 160)])
    ids[1, :50] = 0
    mask = (ids != 0).long()
    dense = generate(model, "sdpa", ids, attention_mask=mask)
    static = StaticCache(config=model.config, max_cache_len=256)
    check(dense, generate(model, "quorum", ids, attention_mask=mask, cache=static))


def step(model, implementation, ids, cache):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(ids, cache=cache, use_cache=True).logits


@pytest.mark.parametrize("kind", ["quorum", "dynamic"])
@pytest.mark.parametrize("attention", [{"index_options": {"recluster_every": 4}}], indirect=True)
def test_crop_and_go_on(model, attention, prompt, kind):
    cache, reference = caches(attention, model)[kind], DynamicCache(config=model.config)
    random = torch.Generator().manual_seed(6)
    step(model, "quorum", prompt, cache), step(model, "sdpa", prompt, reference)
    for _ in range(40):
        rows = int(torch.randint(1, 6, (1,), generator=random))
        ids = torch.randint(3, 199, (1, rows), generator=random)
        difference = step(model, "quorum", ids, cache) - step(model, "sdpa", ids, reference)
        assert difference.abs().max() < TOLERANCE
        removed = int(torch.randint(0, 12, (1,), generator=random))
        cache.crop(-removed), reference.crop(-removed)
        assert cache.get_seq_length() == reference.get_seq_length()


@pytest.mark.parametrize("kind", ["quorum", "dynamic"])
@pytest.mark.parametrize("attention", [{"index_options": {"recluster_every": 2}}], indirect=True)
def test_rows_are_selected_repeated_and_reordered(model, attention, prompt, kind):
    cache, reference = caches(attention, model)[kind], DynamicCache(config=model.config)
    step(model, "quorum", prompt, cache), step(model, "sdpa", prompt, reference)

    def both(rows):
        ids = torch.randint(3, 199, (rows, 1), generator=random)
        difference = step(model, "quorum", ids, cache) - step(model, "sdpa", ids, reference)
        assert difference.abs().max() < TOLERANCE

    random = torch.Generator().manual_seed(7)
    both(1)
    for name, argument, rows in [
        ("batch_repeat_interleave", 3, 3), ("reorder_cache", torch.tensor([2, 0, 0]), 3), ("reorder_cache", torch.tensor([1, 0, 2]), 3),
        ("batch_select_indices", torch.tensor([2, 1]), 2), ("reorder_cache", torch.tensor([1, 1]), 2),
    ]:  # fmt: skip
        for _ in range(5):
            both(cache.layers[0].keys.shape[0])
        getattr(cache, name)(argument), getattr(reference, name)(argument)
        assert cache.layers[0].keys.shape[0] == rows
    for _ in range(5):
        both(2)


@pytest.mark.parametrize("kind", ["quorum", "dynamic"])
def test_prompt_in_parts_and_several_conversations(model, attention, kind):
    texts = [make_prompt(8, 150), make_prompt(9, 180)]
    states = [(caches(attention, model)[kind], DynamicCache(config=model.config)) for _ in texts]
    for part in range(3):
        for text, (cache, reference) in zip(texts, states, strict=True):
            ids = text[:, 50 * part : 50 * (part + 1) if part < 2 else None]
            difference = step(model, "quorum", ids, cache) - step(model, "sdpa", ids, reference)
            assert difference.abs().max() < TOLERANCE
    for token in range(10):
        for cache, reference in states:
            ids = torch.tensor([[3 + token]])
            difference = step(model, "quorum", ids, cache) - step(model, "sdpa", ids, reference)
            assert difference.abs().max() < TOLERANCE


def test_copied_cache_goes_its_own_way(model, attention, prompt):
    cache = attention.new_cache(model)
    step(model, "quorum", prompt, cache)
    step(model, "quorum", torch.tensor([[5]]), cache)
    other = copy.deepcopy(cache)
    for token in range(8):
        step(model, "quorum", torch.tensor([[7 + token]]), other)
    reference = DynamicCache(config=model.config)
    step(model, "sdpa", torch.cat([prompt, torch.tensor([[5]])], 1), reference)
    difference = step(model, "quorum", torch.tensor([[9]]), cache) - step(model, "sdpa", torch.tensor([[9]]), reference)
    assert difference.abs().max() < TOLERANCE
    assert (cache.get_seq_length(), other.get_seq_length()) == (202, 209)


def test_assisted_generation(model, attention, prompt):
    dense = generate(model, "sdpa", prompt)
    check(dense, generate(model, "quorum", prompt, prompt_lookup_num_tokens=4, cache=attention.new_cache(model)))


@pytest.mark.parametrize("type", [torch.bfloat16, torch.float16])
def test_half_precision(model, attention, prompt, type):
    half = copy.deepcopy(model).to(type)
    exact = generate(model, "sdpa", prompt, max_new_tokens=2)[1][-1]
    errors = {}
    for name in ("sdpa", "quorum"):
        errors[name] = (generate(half, name, prompt, max_new_tokens=2)[1][-1].float() - exact).abs().max()
    assert errors["quorum"] < 2 * errors["sdpa"] + 1e-3


@pytest.mark.parametrize(
    "attention", [{"target_ratio": 0.95}, {"target_ratio": 0.9, "certificate": 0.95}, {"target_error": 0.05}], indirect=True
)
def test_settings_reach_the_steps(model, attention):
    generate(model, "quorum", make_prompt(10, 1500), max_new_tokens=4, cache=attention.new_cache(model))
    stats, config = attention.statistics(), attention.config
    assert stats["calls"] == 3 * model.config.num_hidden_layers
    assert 0 < stats["tokens_read_share"] <= 1.0 and stats["heads"] == stats["calls"] * model.config.num_attention_heads
    if config.target_error:
        assert 0 < stats["error_estimate"] < 1 and stats["sparse_tokens"] > 0
    else:
        assert stats["attained_ratio"] >= config.target_ratio
    if config.certificate is not None:
        assert 0.5 < stats["attained_ratio_lower_bound"] < stats["attained_ratio"]


def test_short_contexts_are_dense_and_say_so(model, attention):
    generate(model, "quorum", make_prompt(11, 20), max_new_tokens=4)
    stats = attention.statistics()
    assert stats.get("calls", 0) == 0
    assert stats["dense_calls"] == {"context below min_context": 4 * model.config.num_hidden_layers}
    attention.reset_statistics()
    assert attention.statistics()["dense_calls"] == {}


def test_gradients_go_to_torch(model, attention, prompt):
    model.set_attn_implementation("quorum")
    model(prompt, labels=prompt).loss.backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    model.zero_grad()
    assert "gradients are wanted" in attention.statistics()["dense_calls"]
