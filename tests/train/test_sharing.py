"""What a step shares: fewer tokens, and the gradient of one sequence at a time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prefopt.data import plan
from prefopt.errors import UserError
from prefopt.losses import DPO
from prefopt.model.language_model import LanguageModel
from prefopt.model.tree import pack, pack_rows
from prefopt.train import defaults, loop, reference
from prefopt.train.job import Job
from prefopt.types import Encoded, LogProbs
from tests.model.conftest import make_model
from tests.train import tiny


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))


def ids(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 97, count).tolist()


def example(prompt: list[int], *responses: list[int]) -> Encoded:
    arrays = tuple(np.array(r, np.int32) for r in responses)
    scored = tuple(np.ones(len(r), bool) for r in responses)
    scores = (1.0, 0.0)[: len(responses)]
    return Encoded(np.array(prompt, np.int32), arrays, scored, scores, "test", str((prompt, responses)), str(prompt))


ASKED, OPENING = ids(0, 20), ids(1, 10)
SAID = [[*ids(seed, 6), 2] for seed in range(2, 8)]
SHARING = {
    # Two answers that begin alike: 20 + 10 + 6 + 6.
    "equal beginnings": ([example(ASKED, [*OPENING, *SAID[0]], [*OPENING, *SAID[1]])], 42),
    # Three pairs of three answers to one prompt: 20 + 3 x 6.
    "pairs of one prompt": ([example(ASKED, SAID[i], SAID[j]) for i, j in [(0, 1), (0, 2), (1, 2)]], 38),
    # The second turn's prompt is the first one's with its chosen answer and a question: 20 + 7 + 6, then 4 + 6 + 6.
    "successive turns": (
        [example(ASKED, SAID[0], SAID[1]), example([*ASKED, *SAID[0], *ids(9, 4)], SAID[2], SAID[3])],
        49,
    ),
}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(make_model("llama"), "tree")


def gradient(lm: LanguageModel, batch: list[Encoded], budget: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Of a step's DPO loss, with a reference that is 1 nat a token; and the examples' losses in the order given."""
    lm.module.zero_grad(set_to_none=True)
    losses = {}
    for group in plan.microbatches(batch, budget):
        policy = lm.logprobs(lm.pack(group))
        out = DPO(beta=0.1)(policy, LogProbs(-policy.length, policy.length), plan.preferences(group, "pair"))
        (out.loss.sum() / len(batch)).backward()
        losses |= zip(map(id, group), out.loss.tolist(), strict=True)
    found = {name: p.grad.clone() for name, p in lm.module.named_parameters() if p.grad is not None}
    return found, [losses[id(e)] for e in batch]


@pytest.mark.parametrize("name", SHARING)
def test_shared_beginnings_are_computed_once_and_change_nothing(model, name):
    batch, nodes = SHARING[name]
    assert pack(batch).ids.numel() == nodes < int((pack_rows(batch).positions >= 0).sum())
    together, losses = gradient(model, batch, budget=10**6)
    model.read_as("rows")
    alone, expected = gradient(model, batch, budget=1)
    model.read_as("tree")
    assert losses == pytest.approx(expected, abs=1e-5)
    for weight, value in alone.items():
        torch.testing.assert_close(together[weight], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["pairs of one prompt", "successive turns"])
def test_a_step_that_is_cut_keeps_together_what_shares(name):
    """Among others, in any order: whoever shares is in one micro-batch."""
    batch, nodes = SHARING[name]
    others = [example(ids(seed, 20), *SAID[:2]) for seed in range(20, 26)]
    mixed = [*others[:3], batch[0], *others[3:], *batch[1:]]
    groups = plan.microbatches(mixed, nodes + 10)
    assert len(groups) > 3
    assert sum(any(e is member for member in batch for e in group) for group in groups) == 1
    assert sum(pack(g).ids.numel() for g in groups) == pack(mixed).ids.numel(), "nothing is computed twice"


# --- --group-by-prompt, end to end -----------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """24 pairs about 6 prompts."""
    return tiny.pairs(tmp_path_factory.mktemp("several") / "pairs.jsonl", 24, prompts=6)


def steps_of(monkeypatch) -> list[list[Encoded]]:
    """Filled as the loop takes its steps."""
    taken: list[list[Encoded]] = []
    take = loop.train_step

    def noting(state, batch, schedule):
        taken.append(list(batch.examples))
        return take(state, batch, schedule)

    monkeypatch.setattr(loop, "train_step", noting)
    return taken


def test_grouped_steps_hold_as_many_examples_of_fewer_prompts(given, several, tmp_path, monkeypatch):
    taken = steps_of(monkeypatch)
    for name, grouped in (("plain", None), ("grouped", True)):
        assert tiny.cli("train", given.model, several, tmp_path / name, max_steps=6, group_by_prompt=grouped) == 0
    plain, grouped = taken[:6], taken[6:]
    assert [len(batch) for batch in taken] == [4] * 12
    assert {len({e.prompt_key for e in batch}) for batch in grouped} == {1}, "four pairs about each prompt"
    assert sum(pack(b).ids.numel() for b in grouped) < sum(pack(b).ids.numel() for b in plain)
    assert sorted(e.key for b in grouped for e in b) == sorted(e.key for b in plain for e in b), "one epoch each"


def test_grouped_the_weights_do_not_depend_on_how_a_step_is_cut(given, several, tmp_path):
    outs = [tmp_path / "whole", tmp_path / "cut"]
    for out, budget in zip(outs, (10**6, 1), strict=True):
        settings = dict(tokens_per_microbatch=budget, learning_rate=1e-4, group_by_prompt=True, batch_size=8)
        assert tiny.cli("train", given.model, several, out, **settings) == 0
    assert tiny.apart(*map(tiny.weights, outs)) < 1e-6


def test_grouped_a_resumed_run_is_the_uninterrupted_one(given, several, tmp_path, monkeypatch, capsys):
    settings = dict(max_steps=6, save_every=2, group_by_prompt=True)
    assert tiny.cli("train", given.model, several, tmp_path / "whole", **settings) == 0
    with monkeypatch.context() as patched:
        take = loop.train_step

        def failing(state, *rest):
            if state.step == 4:
                raise RuntimeError("the power went")
            return take(state, *rest)

        patched.setattr(loop, "train_step", failing)
        assert tiny.cli("train", given.model, several, tmp_path / "run", **settings) == 1
    assert tiny.cli("train", given.model, several, tmp_path / "run", resume=True, **settings) == 0
    assert tiny.same(tiny.weights(tmp_path / "run"), tiny.weights(tmp_path / "whole"))
    capsys.readouterr()
    assert tiny.cli("train", given.model, several, tmp_path / "run", resume=True, max_steps=6, save_every=2) == 2
    assert "--group-by-prompt is False and was True when the run in" in capsys.readouterr().err


# --- how much is computed at once ------------------------------------------------------------------


def test_the_budget_that_a_run_began_with_stays_when_it_is_resumed(given, tmp_path, monkeypatch):
    """The machine's own choice may be another one by then, and another cut is another rounding."""
    out = tmp_path / "run"
    assert tiny.cli("train", given.model, given.pairs, out, max_steps=2, tokens_per_microbatch=50) == 0
    found = []
    opened = Job.open_folder

    def noting(job, found_checkpoint):
        found.append(job.config.tokens_per_microbatch)
        return opened(job, found_checkpoint)

    monkeypatch.setattr(Job, "open_folder", noting)
    for given_now in (None, 60):
        again = dict(max_steps=2, resume=True, tokens_per_microbatch=given_now)
        assert tiny.cli("train", given.model, given.pairs, out, **again) == 0
    assert found == [50, 60]


def test_on_a_gpu_the_budget_follows_from_its_memory(monkeypatch):
    """18 bytes a weight, and 34 widths a token and layer of 7B in two bytes."""
    memory = SimpleNamespace(total_memory=150 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    gpu, each = torch.device("cuda"), 2 * 34 * 4096 * 32
    small, large = (defaults.held(n, dtype=torch.bfloat16) for n in (5 * 10**8, 67 * 10**8))
    assert (small, large) == (18 * 5 * 10**8, 18 * 67 * 10**8)
    assert defaults.tokens_per_microbatch(gpu, small, each) == 14848
    assert defaults.tokens_per_microbatch(gpu, large, each) == 2304
    assert defaults.tokens_per_microbatch(gpu, small, each // 4) == 16384


def test_a_model_beyond_the_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=85 * 10**9))
    defaults.must_fit(torch.device("cuda"), 16 * 5 * 10**9)
    defaults.must_fit(torch.device("cpu"), 16 * 7 * 10**9)
    with pytest.raises(UserError, match="take 112 GB, and this GPU has 85"):
        defaults.must_fit(torch.device("cuda"), 16 * 7 * 10**9)


def test_on_a_cpu_the_budget_follows_from_the_model():
    cpu = torch.device("cpu")
    assert defaults.tokens_per_microbatch(cpu, 16 * 3 * 10**7, 4 * 34 * 512 * 8) == 768  # 30M: 0.5 GB
    assert defaults.tokens_per_microbatch(cpu, 16 * 5 * 10**8, 4 * 34 * 896 * 24) == 512  # 0.5B: 2 GB
    assert defaults.tokens_per_microbatch(cpu, 16 * 10**5, 4 * 34 * 64 * 2) == 1024


def test_a_reference_is_the_start_however_its_path_is_written(given, tmp_path):
    """Step 0 is checked then, and no second copy of the model is loaded."""
    same = reference._same_model
    assert same(given.model + "/", given.model) and same(f"{given.model}/../model", given.model)
    assert not same(str(tmp_path), given.model) and not same("owner/name", "owner/other")
