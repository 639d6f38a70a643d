"""Generating: the same as one prompt at a time without padding, and nothing of the model's own habits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GenerationConfig

from prefopt.data.encode import Encoder
from prefopt.errors import UserError
from prefopt.generate import Realign, TransformersGenerator
from prefopt.model import attention
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import load_model, load_tokenizer
from tests.train import tiny

PROMPTS = ["the cat", "a dog ran under the tree then never again", "no", "the mat sat"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tiny.model(tmp_path_factory.mktemp("model"))
    return load_model(folder), Encoder(load_tokenizer(folder))


def one_by_one(lm, prompt: np.ndarray, steps: int, ends: set[int]) -> list[int]:
    """The likeliest next token, again and again, without cache, padding or transformers' generate."""
    ids = prompt.tolist()
    for _ in range(steps):
        logits = lm.bare(torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_greedy_in_padded_batches_is_greedy_one_by_one(made, batch_size):
    lm, encoder = made
    found = TransformersGenerator(lm, encoder, temperature=0, max_new_tokens=12, batch_size=batch_size).ids(
        prompts := encoder.prompts(PROMPTS)
    )
    for prompt, (ids,) in zip(prompts, found, strict=True):
        assert ids.tolist() == one_by_one(lm, prompt, 12, {encoder.tokenizer.eos_token_id})


@torch.no_grad()
def test_a_model_with_a_soft_cap_writes_with_its_own_attention(tmp_path):
    tokenizer = load_tokenizer(tiny.model(tmp_path / "llama"))
    config = Gemma2Config(**tiny.SMALL, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, head_dim=8,
                          num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    torch.manual_seed(0)
    own = AutoModelForCausalLM.from_config(config).eval()
    lm = LanguageModel(own, "tree")
    settings: dict = {"max_new_tokens": 5, "temperature": 0}
    (prompt,) = Encoder(tokenizer).prompts(["the cat"])
    ((ids,),) = TransformersGenerator(lm, Encoder(tokenizer), **settings).ids([prompt])
    assert lm.way == "tree" and own.config._attn_implementation == attention.NAME
    lm.read_as("rows")
    alone = torch.from_numpy(prompt.astype(np.int64))[None]
    end = tokenizer.eos_token_id
    written = own.generate(alone, max_new_tokens=5, do_sample=False, eos_token_id=end, pad_token_id=end)
    assert ids.tolist() == written[0, len(prompt) :].tolist()
    mixed = TransformersGenerator(lm, Encoder(tokenizer), realign=Realign(LanguageModel(own, "tree"), 0.5), **settings)
    assert mixed.ids([prompt])[0][0].tolist() == ids.tolist()


@torch.no_grad()
def test_sampling_computes_in_what_training_does(made):
    lm, encoder = made
    narrow = LanguageModel(lm.module, lm.way, torch.bfloat16)
    seen = []
    hook = lm.bare.get_output_embeddings().register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    for one in (lm, narrow):
        TransformersGenerator(one, encoder, max_new_tokens=1).ids(encoder.prompts(PROMPTS[:1]))
    hook.remove()
    assert seen == [torch.float32, torch.bfloat16]


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_greedy_is_transformers_greedy_token_for_token(tmp_path, architecture):
    """Of each prompt alone, and of all in one batch padded at the left."""
    folder = tiny.model(tmp_path, architecture)
    lm, tokenizer = load_model(folder), load_tokenizer(folder)
    prompts = Encoder(tokenizer).prompts(PROMPTS)
    assert len({len(prompt) for prompt in prompts}) > 2
    found = TransformersGenerator(lm, Encoder(tokenizer), temperature=0, max_new_tokens=12, batch_size=3).ids(prompts)
    own, end = AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer.eos_token_id
    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    together = tokenizer.pad({"input_ids": [p.tolist() for p in prompts]}, padding_side="left", return_tensors="pt")
    batch = own.generate(**together, **greedy)[:, together["input_ids"].shape[1] :]
    for prompt, (ids,), in_batch in zip(prompts, found, batch.tolist(), strict=True):
        alone = torch.from_numpy(prompt.astype(np.int64))[None]
        written = own.generate(alone, attention_mask=torch.ones_like(alone), **greedy)[0, len(prompt) :].tolist()
        assert ids.tolist() == written == in_batch[: len(written)]


@torch.no_grad()
def test_a_response_ends_with_its_end_token(made):
    """Whatever token the first answer begins with is made the end token: then it is all of the answer."""
    lm, encoder = made
    (first,) = encoder.prompts(PROMPTS[:1])
    token = one_by_one(lm, first, 1, set())[0]
    own = lm.bare.generation_config
    lm.bare.generation_config = GenerationConfig(eos_token_id=[token])
    try:
        found = TransformersGenerator(lm, encoder, temperature=0, max_new_tokens=12).ids(encoder.prompts(PROMPTS))
    finally:
        lm.bare.generation_config = own
    assert found[0][0].tolist() == [token]
    for (ids,) in found:
        assert not set(ids[:-1].tolist()) & {token, encoder.tokenizer.eos_token_id}


def test_a_seed_decides_and_the_callers_random_state_stays(made):
    lm, encoder = made
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    a, b, c = (TransformersGenerator(lm, encoder, max_new_tokens=8, seed=seed)(PROMPTS, 3) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert a == b != c
    assert [len(answers) for answers in a] == [3] * len(PROMPTS)
    assert len({answer for answers in a for answer in answers}) > len(PROMPTS)


@torch.no_grad()
def test_draws_follow_the_models_distribution(made):
    """First tokens of 2,000 draws against softmax(logits / T): χ² below its 99.99 % point."""
    lm, encoder = made
    (prompt,) = encoder.prompts(["the cat"])
    drawn = TransformersGenerator(lm, encoder, temperature=0.5, max_new_tokens=1, batch_size=500).ids([prompt], 2000)
    counts = np.bincount([int(ids[0]) for ids in drawn[0]], minlength=lm.bare.config.vocab_size)
    logits = lm.bare(torch.tensor([prompt.tolist()])).logits[0, -1].double()
    expected = 2000 * torch.softmax(logits / 0.5, 0).numpy()
    order = np.argsort(-expected)
    many = order[expected[order] >= 10]
    rest = np.setdiff1d(order, many)
    seen = np.append(counts[many], counts[rest].sum())
    wanted = np.append(expected[many], expected[rest].sum())
    chi2, df = float(((seen - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    assert chi2 < df + 3.72 * np.sqrt(2 * df) + 10  # normal approximation, with room for its skew


@torch.no_grad()
def test_top_p_leaves_the_tail_out(made):
    lm, encoder = made
    (prompt,) = encoder.prompts(["the cat"])
    probabilities = torch.softmax(lm.bare(torch.tensor([prompt.tolist()])).logits[0, -1], 0)
    sorted_, order = probabilities.sort(descending=True)
    kept = set(order[: int((sorted_.cumsum(0) < 0.3).sum()) + 1].tolist())
    drawn = TransformersGenerator(lm, encoder, top_p=0.3, max_new_tokens=1).ids([prompt], 200)[0]
    assert {int(ids[0]) for ids in drawn} <= kept


def test_the_models_own_generation_settings_have_no_say_and_stay(made):
    lm, encoder = made
    generator = TransformersGenerator(lm, encoder, temperature=0, max_new_tokens=12)
    expected = generator(PROMPTS)
    own = lm.bare.generation_config
    odd = GenerationConfig(repetition_penalty=50.0, no_repeat_ngram_size=1, max_length=3, eos_token_id=own.eos_token_id)
    lm.bare.generation_config = odd
    lm.module.train()
    try:
        assert TransformersGenerator(lm, encoder, temperature=0, max_new_tokens=12)(PROMPTS) == expected
        assert lm.bare.generation_config is odd and lm.module.training
    finally:
        lm.bare.generation_config = own
        lm.module.eval()


def test_a_turn_ends_where_the_template_ends_it(tmp_path):
    folder = tiny.model(tmp_path)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    lm = load_model(folder)
    lm.bare.resize_token_embeddings(len(tokenizer))
    generator = TransformersGenerator(lm, Encoder(tokenizer))
    assert set(generator._ends) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")}


@pytest.mark.parametrize(
    ("settings", "prompts", "n", "says"),
    [
        ({"temperature": -1}, PROMPTS, 1, "temperature"),
        ({"top_p": 0}, PROMPTS, 1, "top_p"),
        ({"max_new_tokens": 0}, PROMPTS, 1, "max_new_tokens"),
        ({"temperature": 0}, PROMPTS, 2, "all be the same"),
        ({"max_new_tokens": 128}, PROMPTS, 1, "leaves no room"),
    ],
)
def test_what_cannot_be_is_said(made, settings, prompts, n, says):
    lm, encoder = made
    with pytest.raises(UserError, match=says):
        TransformersGenerator(lm, encoder, **settings)(prompts, n)


def test_no_prompts_no_responses(made):
    assert TransformersGenerator(*made)([]) == []
