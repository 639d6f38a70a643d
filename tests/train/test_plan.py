"""What is read when: units, split, order and micro-batches, as pure functions of data, seed and step."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.data import plan
from prefopt.data.shelf import Chosen, each
from prefopt.errors import UserError
from prefopt.types import Encoded

seeds = st.integers(0, 2**31)


def example(prompt: int, scores: tuple[float | None, ...], lengths: tuple[int, ...] | None = None) -> Encoded:
    """Response i is made of the token i; the prompt is its own number, twice."""
    lengths = lengths or (2,) * len(scores)
    responses = tuple(np.full(n, i, np.int32) for i, n in enumerate(lengths))
    scored = tuple(np.ones(n, bool) for n in lengths)
    key = f"{prompt}:{scores}:{lengths}"
    return Encoded(np.full(2, prompt, np.int32), responses, scored, scores, f"f:{prompt}", key, f"p{prompt}")


def which(units: list[Encoded]) -> list[list[int]]:
    """The responses of each unit, by their number in the example."""
    return [[int(r[0]) for r in unit.responses] for unit in units]


examples = st.builds(
    example,
    st.integers(0, 9),
    st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=4).map(lambda s: tuple(sorted(s)[::-1])),
)
datasets = st.lists(examples, max_size=30)


# --- units ---------------------------------------------------------------------------------------


@given(datasets, st.sampled_from(["pair", "ranking", "response", "demonstration"]), st.randoms())
def test_what_is_told_of_all_units_is_what_each_has(data, unit, random):
    try:
        units = plan.units(data, unit)
    except UserError:
        return
    some = Chosen(units, np.array(random.sample(range(len(units)), len(units) // 2), int))
    for fact in ("key", "prompt_key", "scores", "source", "lengths"):
        for told in (units, some):
            assert each(told, fact) == [getattr(made, fact) for made in told]


@pytest.mark.parametrize(
    ("scores", "unit", "expected"),
    [
        ((1.0, 0.0), "pair", [[0, 1]]),
        ((3.0, 2.0, 1.0), "pair", [[0, 1], [0, 2], [1, 2]]),
        ((3.0, 2.0, 2.0), "pair", [[0, 1], [0, 2]]),  # a tie is no preference
        ((4.0, 3.0, 2.0, 1.0), "ranking", [[0, 1, 2, 3]]),
        ((3.0, 2.0, 2.0, 1.0), "ranking", [[0, 1, 3]]),
        ((1.0, 0.0), "ranking", [[0, 1]]),
        ((1.0,), "response", [[0]]),
        ((0.0,), "response", [[0]]),
        ((3.0, 2.0, 1.0), "response", [[0], [2]]),
        ((3.0, 2.0, 1.0), "demonstration", [[0]]),
        ((None,), "demonstration", [[0]]),
        ((1.0,), "demonstration", [[0]]),
    ],
)
def test_units_by_hand(scores, unit, expected):
    assert which(plan.units([example(0, scores)], unit)) == expected


def test_one_of_a_comparison_is_desirable_and_one_is_not():
    good, bad = plan.units([example(0, (7.0, 6.5, 3.0))], "response")
    assert (good.scores, bad.scores) == ((1.0,), (0.0,))
    assert plan.preferences([good, bad], "response").desirable.tolist() == [True, False]


@pytest.mark.parametrize(
    ("scores", "unit", "said"),
    [
        ((1.0,), "pair", r"pairs of a better and a worse response.*single responses.*--loss kto, or sft"),
        ((None,), "pair", r"single responses only, which are for prefopt train --loss sft$"),
        ((1.0, 1.0), "ranking", r"ranked responses.*comparisons without an order"),
        ((None,), "response", r"labelled desirable or not.*without a label only.*--loss sft"),
        ((0.0,), "demonstration", r"responses to imitate.*undesirable.*--loss kto"),
    ],
)
def test_data_of_another_kind_are_refused_with_a_way_out(scores, unit, said):
    with pytest.raises(UserError, match=said):
        plan.units([example(0, scores)], unit)


@given(st.lists(examples, min_size=1, max_size=10), st.sampled_from(["pair", "ranking"]))
def test_every_unit_is_strictly_ordered_and_of_one_prompt(data, unit):
    try:
        made = plan.units(data, unit)
    except UserError:
        assert all(len(set(e.scores)) < 2 for e in data)
        return
    for one in made:
        assert all(a > b for a, b in itertools.pairwise(one.scores))
        assert len(one.responses) == len(one.scored) == len(one.scores) >= 2


def test_every_unit_of_an_example_has_a_key_of_its_own():
    made = plan.units([example(9, (3.0, 2.0, 1.0))], "pair")
    assert len({one.key for one in made}) == 3


def test_a_shorter_ranking_is_padded():
    batch = [example(0, (3.0, 2.0, 1.0)), example(1, (1.0, 0.0))]
    assert plan.preferences(batch, "ranking").ranking.tolist() == [[0, 1, 2], [3, 4, -1]]


def test_mismatched_is_a_rotation_of_the_responses():
    batch = plan.units([example(p, (1.0,), (p + 1,)) for p in range(3)], "response")
    wrong = plan.mismatched(batch)
    assert [int(e.prompt[0]) for e in wrong] == [0, 1, 2]
    assert [len(e.responses[0]) for e in wrong] == [2, 3, 1]
    room = len(batch[0].prompt) + 2  # each prompt once: a rotation by one
    assert [len(e.responses[0]) for e in plan.mismatched(batch, room)] == [2, 2, 1]


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12))
def test_mismatched_responses_are_each_used_once_and_never_with_their_own_prompt(prompts):
    """Pairs that KTO reads as two answers stand side by side: the next answer would be one to the same prompt."""
    batch = [example(p, (1.0,), (p + 1,)) for p in prompts]
    wrong = plan.mismatched(batch)
    assert sorted(int(e.prompt[0]) for e in wrong) == sorted(prompts)
    assert sorted(len(e.responses[0]) - 1 for e in wrong) == sorted(prompts)
    if 2 * max(map(prompts.count, prompts)) <= len(prompts):
        assert all(int(e.prompt[0]) != len(e.responses[0]) - 1 for e in wrong)


# --- the held-out split --------------------------------------------------------------------------


@given(datasets, st.floats(0, 0.99), seeds)
def test_no_prompt_is_on_both_sides(data, fraction, seed):
    train, held_out = plan.split(data, fraction, seed)
    assert not {e.prompt_key for e in train} & {e.prompt_key for e in held_out}
    assert len(train) + len(held_out) == len(data)
    kept = {e.prompt_key for e in train}
    assert [id(e) for e in data if e.prompt_key in kept] == [id(e) for e in train], "the order stays"
    prompts = {e.prompt_key for e in data}
    assert len({e.prompt_key for e in held_out}) == round(fraction * len(prompts))


@given(datasets, seeds, st.randoms())
def test_the_split_depends_on_prompts_and_seed_only(data, seed, rng):
    _, held_out = plan.split(data, 0.3, seed)
    shuffled = rng.sample(data * 2, 2 * len(data))
    _, again = plan.split(shuffled, 0.3, seed)
    assert {e.prompt_key for e in held_out} == {e.prompt_key for e in again}


@given(st.integers(20, 200), st.integers(0, 20), seeds)
def test_a_prompt_stays_on_its_side_when_data_are_added(before, added, seed):
    """But for those at the border: at most as many as were added, and one for rounding."""
    few = [example(p, (1.0, 0.0)) for p in range(before)]
    more = few + [example(1000 + p, (1.0, 0.0)) for p in range(added)]
    was, now = ({e.prompt_key for e in plan.split(data, 0.2, seed)[1]} for data in (few, more))
    old = {e.prompt_key for e in few}
    assert len((was ^ now) & old) <= added + 1


# --- the order -----------------------------------------------------------------------------------


@given(st.integers(1, 40), seeds, st.integers(1, 50), st.integers(0, 20))
def test_the_stream_is_epochs_that_are_permutations(size, seed, batch_size, steps):
    order = plan.Order(size, seed)
    stream = [i for step in range(steps) for i in order.batch(step, batch_size)]
    assert len(stream) == steps * batch_size
    for start in range(0, len(stream) - size + 1, size):
        assert sorted(stream[start : start + size]) == list(range(size))
    assert stream == plan.Order(size, seed).batch(0, len(stream)), "however it is cut, and with no memory"


@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), seeds, st.integers(1, 50), st.integers(0, 20))
def test_grouped_examples_of_a_prompt_stand_together_in_every_epoch(prompts, seed, batch_size, steps):
    units = [example(p, (1.0, 0.0)) for p in prompts]
    order = plan.order(units, seed, group_by_prompt=True)
    stream = [i for step in range(steps) for i in order.batch(step, batch_size)]
    assert stream == plan.order(units, seed, True).batch(0, len(stream)), "however it is cut, and with no memory"
    plain = plan.order(units, seed).batch(0, len(stream))
    for start in range(0, len(stream) - len(units) + 1, len(units)):
        epoch, ungrouped = stream[start : start + len(units)], plain[start : start + len(units)]
        assert sorted(epoch) == list(range(len(units)))
        met = [prompts[i] for i in epoch]
        assert [p for p, _ in itertools.groupby(met)] == list(dict.fromkeys(prompts[i] for i in ungrouped))
        for prompt in set(prompts):
            assert [i for i in epoch if prompts[i] == prompt] == [i for i in ungrouped if prompts[i] == prompt]


def test_grouped_steps_have_fewer_tokens():
    units = [example(p, (1.0, 0.0), (i + 1, 3)) for i in range(4) for p in range(8)]
    steps = {
        grouped: [[units[i] for i in plan.order(units, 0, grouped).batch(step, 8)] for step in range(4)]
        for grouped in (False, True)
    }
    assert all(len(batch) == 8 for batches in steps.values() for batch in batches)
    fewer, more = (sum(map(tokens, steps[grouped])) for grouped in (True, False))
    assert fewer == tokens(units) < more, "grouped, every prompt is read once an epoch"


def test_another_seed_or_epoch_is_another_order():
    first = plan.Order(100, 0).batch(0, 100)
    assert first != plan.Order(100, 1).batch(0, 100)
    assert first != plan.Order(100, 0).batch(1, 100)


# --- micro-batches -------------------------------------------------------------------------------


@st.composite
def batches(draw):
    count = draw(st.integers(1, 25))
    return [
        example(draw(st.integers(0, 6)), (1.0, 0.0), (draw(st.integers(1, 30)), draw(st.integers(1, 30))))
        for _ in range(count)
    ]


def tokens(group: list[Encoded]) -> int:
    """Nodes of the tree that the whole sequences make."""
    sequences = [tuple(map(int, (*e.prompt, *r))) for e in group for r in e.responses]
    return len({s[: i + 1] for s in sequences for i in range(len(s))})


@given(batches(), st.integers(1, 200))
def test_micro_batches_are_a_partition_near_the_budget(batch, budget):
    groups = plan.microbatches(batch, budget)
    assert sorted(id(e) for group in groups for e in group) == sorted(map(id, batch))
    assert all(groups)
    longest = max(tokens([e]) for e in batch)
    # Filling the lightest first, a group is at most one part above the average, which is at most the budget.
    assert all(tokens(group) <= budget + max(longest, budget) for group in groups)


@given(batches(), st.integers(1, 200))
def test_rows_are_a_partition_within_the_budget(batch, budget):
    groups = plan.in_rows(batch, budget)
    assert sorted(id(e) for group in groups for e in group) == sorted(map(id, batch))
    for group in groups:
        width = max(len(e.prompt) + len(r) for e in group for r in e.responses)
        assert len(group) == 1 or width * sum(len(e.responses) for e in group) <= budget


@given(batches())
def test_a_huge_budget_is_one_micro_batch_and_a_tiny_one_is_one_each(batch):
    assert len(plan.microbatches(batch, 10**9)) == 1
    assert all(len(group) == 1 for group in plan.microbatches(batch, 1))


@given(batches())
def test_pairs_of_a_prompt_stay_together_where_they_fit(batch):
    budget = max(tokens([e for e in batch if e.prompt_key == p]) for p in {e.prompt_key for e in batch})
    groups = plan.microbatches(batch, budget)
    for prompt in {e.prompt_key for e in batch}:
        assert sum(any(e.prompt_key == prompt for e in group) for group in groups) == 1


def test_turns_of_a_conversation_stay_together_and_are_counted_once():
    """The prompt of the second turn is the prompt of the first with its answer."""
    ids = lambda *tokens: np.array(tokens, np.int32)  # noqa: E731
    talks = []
    for talk in range(3):
        first, answer, asked = ids(9, talk, 1, 1, 1, 1), ids(5, 5, 5, 5), ids(6)
        turns = [first, np.concatenate([first, answer, asked])]
        for i, prompt in enumerate(turns):
            responses = (answer, ids(7))
            scored = tuple(np.ones(len(r), bool) for r in responses)
            talks.append(Encoded(prompt, responses, scored, (1.0, 0.0), f"{talk}", f"{talk}{i}", f"{talk}{i}"))
    assert tokens(talks[:2]) == 17, "6 + 4 + 1, then 1 + 4 + 1: the second turn's prompt adds one token"
    for budget in (17, 18, 30):
        groups = plan.microbatches(talks[::2] + talks[1::2], budget)
        assert [sorted(e.source for e in g) for g in groups] == [["0", "0"], ["1", "1"], ["2", "2"]] or budget == 30
        assert max(tokens(g) for g in groups) <= 33
    assert len(plan.microbatches(talks, 49)) == 1, "three times 16, and once the token that all begin with"


def test_what_all_begin_with_leaves_less_room():
    """A system prompt of 50 tokens is in every micro-batch, so that one of 60 has room for 10 more."""
    system = np.full(50, 99, np.int32)
    batch = [replace(e, prompt=np.concatenate([system, e.prompt])) for e in (example(p, (1.0, 0.0)) for p in range(6))]
    groups = plan.microbatches(batch, 60)
    assert len(groups) == 4 and max(tokens(g) for g in groups) <= 62


# --- weights -------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 5), max_size=40), seeds)
def test_each_counts_its_weight_rounded_one_way_or_the_other(weights, seed):
    times = plan.repeated(weights, seed).tolist()
    assert times == sorted(times) == plan.repeated(weights, seed).tolist()
    for i, weight in enumerate(weights):
        assert times.count(i) in (int(weight), int(weight) + (weight % 1 > 0))


def test_a_fraction_is_that_share():
    assert 450 < len(plan.repeated([0.5] * 1000, 0)) < 550
