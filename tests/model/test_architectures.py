"""Every architecture gives the numbers of one sequence at a time, or says why it is read in rows."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from prefopt.model import attention
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import positions
from prefopt.model.probe import one_at_a_time, probe, random_examples
from prefopt.model.quiet import quiet
from tests.model.conftest import LLAMA, ROWS, TREE, make_model
from tests.model.test_tree import encoded

LONG = 64


def difference(lm: LanguageModel, way: str) -> float:
    examples = random_examples(lm, LONG)
    truth = one_at_a_time(lm, examples)
    lm.read_as(way)
    return float((lm.score(lm.pack(examples)).token - truth).abs().max())


@pytest.mark.parametrize("name", TREE)
def test_the_tree_gives_the_models_own_numbers(name):
    lm = LanguageModel(make_model(name))
    with quiet():
        probe(lm, LONG)
    assert (lm.way, lm.why) == ("tree", "")
    assert difference(lm, "tree") < 1e-5


@pytest.mark.parametrize("name", TREE)
def test_many_short_texts_give_the_models_own_numbers(name):
    lm = LanguageModel(make_model(name), "tree")
    examples = [encoded([i + 3, 5, 6], [7, 9 + i, 8], [8] * 4) for i in range(20)]
    batch = lm.pack(examples)
    assert batch.tree.stretches is not None
    token = lm.score(batch).token
    assert float((token - one_at_a_time(lm, examples)).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ROWS)
def test_what_is_no_plain_attention_is_read_in_rows_and_says_why(name):
    lm = LanguageModel(make_model(name))
    with quiet():
        probe(lm, LONG)
    assert lm.way == "rows"
    assert "one sequence per row" in lm.why
    assert difference(lm, "rows") < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_a_plain_causal_mask_is_off_by_nats(name, monkeypatch):
    """The control: were the tree read as one text, this is what the tests above would have to see."""
    honest = attention.Tree.__init__
    monkeypatch.setattr(attention.Tree, "__init__", lambda self, end: honest(self, torch.full_like(end, len(end))))
    assert difference(LanguageModel(make_model(name)), "tree") > 0.5


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_a_window_that_is_not_honoured_is_off_by_nats_and_the_probe_sees_it(name, monkeypatch):
    honest = attention.tree_attention
    monkeypatch.setattr(
        attention, "tree_attention", lambda tree, q, k, v, s, window, cap: honest(tree, q, k, v, s, None, cap)
    )
    lm = LanguageModel(make_model(name))
    with quiet():
        probe(lm, LONG)
    assert lm.way == "rows" and "differ by up to" in lm.why
    assert difference(lm, "tree") > 0.5


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_in_bfloat16_a_wrong_mask_is_no_rounding(name, monkeypatch):
    """The bar follows the model's own rounding, and stays below what a wrong mask does."""
    honest = attention.Tree.__init__
    monkeypatch.setattr(attention.Tree, "__init__", lambda self, end: honest(self, torch.full_like(end, len(end))))
    lm = LanguageModel(make_model(name), dtype=torch.bfloat16)
    with quiet():
        probe(lm, LONG)
    assert lm.way == "rows"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_that_rounds_a_lot_is_read_in_rows_and_not_refused(name):
    model = make_model(name)
    with torch.no_grad():
        (model.model.norm if name == "llama" else model.transformer.ln_f).weight.mul_(100)
    lm = LanguageModel(model, dtype=torch.bfloat16)
    with quiet():
        probe(lm, LONG)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_tree_without_a_gradient_is_not_taken_for_training(name, monkeypatch):
    """As where a GPU's kernel for the backward pass does not compile; a parameter that nothing reads is no matter."""

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, upstream):
            raise NotImplementedError("no backward pass here")

    model = make_model(name)
    model.unused = torch.nn.Parameter(torch.zeros(1))
    lm, honest = LanguageModel(model), attention.tree_attention
    with quiet():
        probe(lm, LONG, learns=True)
        assert lm.way == "tree"
        monkeypatch.setattr(attention, "tree_attention", lambda *given: Broken.apply(honest(*given)))
        probe(lm, LONG)
        assert lm.way == "tree"
        probe(lm, LONG, learns=True)
    assert lm.way == "rows" and "no backward pass here" in lm.why


def test_positions_that_hang_on_the_longest_text_are_not_gone_into():
    """What longrope reads beside a text that is longer than its first length is another model's."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = tf.Phi3Config(**LLAMA, original_max_position_embeddings=64, rope_parameters=rope)
    assert positions(config) == 64 and positions(tf.LlamaConfig(**LLAMA)) == 128
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    short, long = (torch.arange(3, 3 + n)[None] for n in (5, 70))
    alone = model(short).logits[0]
    rows = torch.cat([torch.nn.functional.pad(short, (0, 65)), long])
    assert float((model(rows).logits[0, :5] - alone).abs().max()) > 1e-3
    assert float((model(rows[:, :64]).logits[0, :5] - alone).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_gradients_are_those_of_one_at_a_time(name):
    model = make_model(name)
    lm = LanguageModel(model, "tree")
    examples = random_examples(lm, LONG)
    weights = torch.linspace(-1, 1, 6)

    def gradient(way: str) -> dict[str, torch.Tensor]:
        lm.read_as(way)
        model.zero_grad()
        (lm.logprobs(lm.pack(examples)).sum * weights).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    tree, rows = gradient("tree"), gradient("logits")
    assert tree.keys() == rows.keys()
    for parameter in tree:
        assert torch.allclose(tree[parameter], rows[parameter], rtol=1e-3, atol=2e-4), parameter


def test_chunks_of_the_head_change_nothing(llama, monkeypatch):
    from prefopt.model import logprobs

    lm = LanguageModel(llama, "tree")
    batch = lm.pack([encoded(list(range(3, 40)), list(range(5, 90)), list(range(9, 96)))])

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        llama.zero_grad()
        logps = lm.logprobs(batch).token
        logps.sum().backward()
        return logps.detach(), llama.lm_head.weight.grad.clone()

    (whole, whole_gradient) = both()
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 0)  # the smallest chunk, 128 tokens
    (chunked, chunked_gradient) = both()
    assert len(whole) > 128
    assert torch.allclose(whole, chunked, atol=1e-5)
    assert torch.allclose(whole_gradient, chunked_gradient, atol=1e-4)


@pytest.mark.parametrize("weight_is_trained", [True, False])
def test_the_plain_heads_own_gradient_is_autograds(weight_is_trained):
    from prefopt.model import logprobs

    torch.manual_seed(0)
    head = torch.nn.Linear(8, 11, bias=False).double().requires_grad_(weight_is_trained)
    hidden = torch.randn(7, 8, dtype=torch.double, requires_grad=True)
    target = torch.randint(11, (7,))
    whole = -torch.nn.functional.cross_entropy(head(hidden), target, reduction="none")
    assert torch.allclose(logprobs._LinearLogps.apply(hidden, head.weight, target, 3), whole)
    assert torch.autograd.gradcheck(lambda h, w: logprobs._LinearLogps.apply(h, w, target, 3), (hidden, head.weight))


def test_generation_still_works_with_our_attention(llama):
    prompt = torch.tensor([[5, 6, 7]])
    lm = LanguageModel(llama, "rows")
    plain = llama.generate(prompt, max_new_tokens=5, do_sample=False)
    lm.read_as("tree")
    assert torch.equal(llama.generate(prompt, max_new_tokens=5, do_sample=False), plain)


def test_bfloat16_is_computed_in_and_the_weights_stay_float32(llama):
    lm = LanguageModel(llama, dtype=torch.bfloat16)
    with quiet():
        probe(lm, LONG)
    examples = random_examples(lm, LONG)
    narrow = lm.logprobs(lm.pack(examples))
    narrow.sum.sum().backward()
    wide = LanguageModel(llama, "tree").score(lm.pack(examples))
    assert lm.way == "tree" and narrow.token.dtype == torch.float32
    off = (narrow.token - wide.token).abs()
    assert 1e-4 < off.max() < 0.5  # bfloat16 was in fact computed in, and is near
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in llama.parameters())


def test_in_bfloat16_a_cpu_attends_in_float32(llama, monkeypatch):
    lm, seen = LanguageModel(llama, "tree", torch.bfloat16), []
    whole = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda q, *rest: seen.append(q.dtype) or whole(q, *rest))
    lm.score(lm.pack(random_examples(lm, LONG)))
    assert set(seen) == {torch.float32}
