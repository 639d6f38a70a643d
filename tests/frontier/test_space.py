"""A token tree gives the log-probabilities that one response at a time gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from prefopt.frontier.exact import realign
from prefopt.frontier.space import ResponseTree, next_token_logps

END = 0
responses = st.lists(
    st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12, unique=True
)
prompts = st.lists(st.integers(1, 3), min_size=1, max_size=3)


def path(tree: ResponseTree, node: int) -> list[int]:
    ids: list[int] = []
    while node >= 0:
        ids.insert(0, int(tree.ids[node]))
        node = int(tree.parent[node])
    return ids


@settings(deadline=None, derandomize=True, max_examples=60)
@given(prompts, responses)
def test_the_tree_holds_every_response_once(prompt, responses):
    tree = ResponseTree.build(prompt, responses, END)
    assert [path(tree, leaf) for leaf in tree.leaf] == [prompt + list(response) for response in responses]
    paths = [tuple(path(tree, node)) for node in range(len(tree.ids))]
    beginnings = {tuple(prompt + list(r))[:n] for r in responses for n in range(1, len(prompt) + len(r) + 1)}
    assert sorted(paths) == sorted(beginnings)  # each beginning is read once
    assert tree.depth.tolist() == [len(p) - 1 for p in paths]
    for j, end in enumerate(tree.subtree_end):  # visible exactly to what continues it
        assert [j <= i < end for i in range(len(paths))] == [p[: len(paths[j])] == paths[j] for p in paths]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(prompts, responses)
def test_sums_along_the_tree(prompt, responses):
    """With log-probabilities that depend on the whole path, against adding them up response by response."""
    tree = ResponseTree.build(prompt, responses, END)
    table = np.random.default_rng(0).normal(size=(len(tree.ids), 4))
    at = {tuple(path(tree, node)): row for node, row in enumerate(table)}
    by_hand = []
    for response in responses:
        ids = [*response, END]
        by_hand.append(sum(at[(*prompt, *ids[:n])][token] for n, token in enumerate(ids)))
    np.testing.assert_allclose(tree.enumerate_logps(table), by_hand)


@pytest.mark.parametrize("responses", [[[1, 2], [3], [1, 2]], [[1], []]])
def test_what_is_no_response_space(responses):
    with pytest.raises(ValueError, match=r"equal|empty"):
        ResponseTree.build([1], responses, END)


TINY = {
    "llama": LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.5,
    ),
    "gpt2": GPT2Config(vocab_size=8, n_embd=16, n_layer=2, n_head=2, n_positions=16, initializer_range=0.5),
}


def tiny(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(TINY[name])


def one_at_a_time(model: torch.nn.Module, prompt: list[int], responses: list[list[int]]) -> list[float]:
    model.eval()
    sums = []
    for response in responses:
        ids = torch.tensor([[*prompt, *response, END]])
        with torch.no_grad():
            logps = model(ids).logits.double().log_softmax(-1)
        sums.append(logps[0, :-1].gather(-1, ids[0, 1:, None])[len(prompt) - 1 :].sum().item())
    return sums


RESPONSES = [[2, 3, 4], [2, 3], [2, 5, 4, 6], [5], [2, 3, 5, 7, 7], [6, 1]]


@pytest.mark.parametrize("name", TINY)
def test_a_model_on_the_tree_is_the_model_one_at_a_time(name):
    model = tiny(name)
    tree = ResponseTree.build([1, 7], RESPONSES, END)
    ours = tree.enumerate_logps(next_token_logps(model, tree))
    np.testing.assert_allclose(ours, one_at_a_time(model, [1, 7], RESPONSES), atol=1e-5)


def test_the_path_matters():
    """The control: with the next-token log-probabilities of other nodes of the same token, it is nats off."""
    model = tiny("llama")
    tree = ResponseTree.build([1, 7], RESPONSES, END)
    table = next_token_logps(model, tree)
    first_of_token = np.array([np.flatnonzero(tree.ids == token)[0] for token in tree.ids])
    wrong = tree.enumerate_logps(table[first_of_token])
    assert np.abs(wrong - one_at_a_time(model, [1, 7], RESPONSES)).max() > 0.1


def test_token_level_realignment_differs_from_sequence_level():
    """Renormalising at every node is exact at λ = 0 and 1 and an approximation between."""
    full = [[a, b] for a in (1, 2) for b in (1, 2)]
    tree = ResponseTree.build([1], full, END)
    rng = np.random.default_rng(0)

    def language() -> np.ndarray:
        """Two words at every inner node, then always the end: no mass is missing."""
        table = np.full((len(tree.ids), 3), -np.inf)
        table[tree.depth == 2, END] = 0.0
        inner = tree.depth < 2
        table[inner, 1:] = np.log(rng.dirichlet([1, 1], size=inner.sum()))
        return table

    reference, policy = language(), language()
    for strength in (0.0, 1.0, 0.5):
        by_token = tree.enumerate_logps(realign(reference, policy, strength))
        by_sequence = realign(tree.enumerate_logps(reference), tree.enumerate_logps(policy), strength)
        assert np.exp(by_token).sum() == pytest.approx(1)
        assert np.allclose(by_token, by_sequence, atol=1e-9) is (strength != 0.5)
