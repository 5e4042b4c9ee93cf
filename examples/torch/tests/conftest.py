"""A small model with random weights, made here: what is tested is that sparse decoding gives what dense attention gives."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import quorum_torch

MIN_CONTEXT = 64


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=199, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=4096, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=None, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def prompt():
    """Token ids [1, 200]; the others of a batch are made from other seeds."""
    return make_prompt(0, 200)


def make_prompt(seed, tokens):
    return torch.randint(3, 199, (1, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def attention(model, request):
    """The adapter at target 1, or with the settings of the test's parameter; the model is dense again afterwards."""
    settings = {"target_ratio": 1.0, "min_context": MIN_CONTEXT, "sample_every": 4} | getattr(request, "param", {})
    attention = quorum_torch.register(quorum_torch.SparseConfig(**settings))
    yield attention
    model.set_attn_implementation("sdpa")


def generate(model, implementation, ids, **kwargs):
    """Greedy continuation and its logits [step, batch, vocabulary]."""
    model.set_attn_implementation(implementation)
    kwargs = {"max_new_tokens": 24, "do_sample": False, "attention_mask": torch.ones_like(ids)} | kwargs
    out = model.generate(ids, return_dict_in_generate=True, output_logits=True, **kwargs)
    return out.sequences, torch.stack(out.logits)
