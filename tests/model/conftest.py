"""Tiny random models of every architecture that prefopt names."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

WINDOW = 9  # smaller than the texts that the tests read

# A wide initialisation, so that a wrong mask moves log-probs by nats and not by the last digits.
LLAMA = dict(
    vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
GPT2 = dict(
    vocab_size=97,
    n_embd=32,
    n_layer=3,
    n_head=4,
    n_positions=128,
    initializer_range=0.3,
    bos_token_id=1,
    eos_token_id=2,
)
ALL_HEADS = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
GEMMA = LLAMA | dict(head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8)

TREE = {
    "llama": lambda: tf.LlamaConfig(**LLAMA),
    "llama-tied": lambda: tf.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "qwen2": lambda: tf.Qwen2Config(**LLAMA),
    "qwen3": lambda: tf.Qwen3Config(**LLAMA, head_dim=8),
    "mistral": lambda: tf.MistralConfig(**LLAMA, sliding_window=WINDOW),
    "gemma2": lambda: tf.Gemma2Config(**GEMMA),
    "gemma3": lambda: tf.Gemma3TextConfig(**GEMMA),
    "gpt2": lambda: tf.GPT2Config(**GPT2),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**ALL_HEADS),
    "opt": lambda: tf.OPTConfig(
        vocab_size=97, hidden_size=32, ffn_dim=64, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=32, init_std=0.3,
    ),
    "phi3": lambda: tf.Phi3Config(**LLAMA),
    "mixtral": lambda: tf.MixtralConfig(**LLAMA, num_local_experts=4),
    "deepseek-v3": lambda: tf.DeepseekV3Config(  # values narrower than keys
        **ALL_HEADS, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    ),
    "granite": lambda: tf.GraniteConfig(**LLAMA, logits_scaling=3.0),
    "cohere": lambda: tf.CohereConfig(**LLAMA, logit_scale=0.2),
    "olmo2": lambda: tf.Olmo2Config(**LLAMA),
}  # fmt: skip
WIDE = {
    "num_key_value_heads": lambda config: max(1, config.num_key_value_heads // 2),
    "head_dim": lambda config: getattr(config, "qk_rope_head_dim", 16),
    "query_pre_attn_scalar": 16,
    "qk_nope_head_dim": 24,
    "qk_head_dim": 32,
    "v_head_dim": 16,
}
ROWS = {
    "gptj": lambda: tf.GPTJConfig(**GPT2, rotary_dim=4),
    "bloom": lambda: tf.BloomConfig(vocab_size=97, hidden_size=32, n_layer=3, n_head=4, initializer_range=0.3),
    "mamba": lambda: tf.MambaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, state_size=8, initializer_range=0.3
    ),
    "lfm2": lambda: tf.Lfm2Config(**LLAMA, layer_types=["conv", "full_attention", "conv"]),
}


def make_model(name: str, wide: bool = False) -> torch.nn.Module:
    """``wide``: heads of 16 at least, as FlexAttention's kernel needs them."""
    torch.manual_seed(0)
    config = (TREE | ROWS)[name]()
    if wide:
        config.num_attention_heads = 2
        for key, value in WIDE.items():
            if hasattr(config, key):
                setattr(config, key, value(config) if callable(value) else value)
    before = tf.logging.get_verbosity()
    tf.logging.set_verbosity_error()
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    tf.logging.set_verbosity(before)
    return model


@pytest.fixture
def llama() -> torch.nn.Module:
    return make_model("llama")
