"""The probe: a few sequences are scored both ways, so that no model is read wrongly in silence.

The truth is the model itself, one sequence at a time, through its own forward, its own attention and
its own logits. The first of the ways (tree, rows, logits) that reproduces it is used.
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from prefopt.errors import UserError
from prefopt.model.language_model import LanguageModel, Way
from prefopt.types import Encoded

log = logging.getLogger(__name__)
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.05}
"""Largest difference of one token's log-prob, nats. A wrong mask is off by more than this in any trained
model; in bfloat16 the layouts differ by rounding, so the bar is that of rounding."""
MOST = 0.5
"""nats: the bar of a tree where a model's own rounding is large, twice which it is"""
COMPILED_AT = 2048
"""tokens: a compiler chooses its kernels by the batch that it sees first"""
LOST = 0.25
"""of a weight's gradient: more than rounding, and what a compiler that leaves something out would be off by"""


def probe(lm: LanguageModel, longest: int = 64, learns: bool = False) -> None:
    """Set ``lm`` to the fastest way that gives its own numbers; ``lm.why`` says what stood in the way.

    ``longest``: tokens of the longest sequence that will be read. A sliding window shows only in texts
    longer than it, so where such texts will come, the probe is as long. ``learns``: a tree must have a gradient, too.
    """
    examples = random_examples(lm, longest)
    read = [*examples, examples[0]]
    truth = one_at_a_time(lm, read)
    if not truth.isfinite().all():
        name = lm.bare.name_or_path or type(lm.bare).__name__
        raise UserError(f"{name}: its log-probs are not finite: its weights are damaged, or too large for {lm.dtype}")
    own = 2 * rounding(lm, read, truth)
    why = ""
    ways: tuple[Way, ...] = ("tree", "rows", "logits")
    for way in ways:
        try:
            lm.read_as(way, why)
            scored = [lm.score(lm.pack(some)).token for some in (examples, examples[:1])]  # attention has two ways too
            off = float((torch.cat(scored) - truth).abs().max())  # type: ignore[arg-type]
            if learns and way == "tree":
                learn(lm, examples)
        except Exception as error:  # whatever a model's own code raises on an input that it does not know
            said = str(error).splitlines()[0][:120] if str(error) else ""
            problem = f"its own code stops with {type(error).__name__}: {said}"
        else:
            if off <= max(TOLERANCE[lm.dtype], min(MOST, own) if way == "tree" else own):
                return
            problem = f"log-probs differ by up to {off:.2g} nats from one sequence at a time"
        why = why or f"{type(lm.bare).__name__} is read one sequence per row: as a token tree, {problem}"
    raise UserError(f"no way of reading {type(lm.bare).__name__} reproduces its own logits: {why}")


def rounding(lm: LanguageModel, examples: list[Encoded], narrow: torch.Tensor) -> float:
    """How far one token's log-prob, ``narrow`` [N] of one sequence at a time, is off for what it is computed in."""
    wide = next(lm.module.parameters()).dtype
    if lm.dtype == wide:
        return 0.0
    return float((narrow - one_at_a_time(LanguageModel(lm.module, dtype=wide), examples)).abs().max())


def learn(lm: LanguageModel, examples: list[Encoded]) -> None:
    """A backward pass to the first layer, in the least memory: its kernels are others than those of a forward pass."""
    parameters = trained(lm)
    if parameters:
        lm.logprobs(lm.pack(examples), room=1).sum.sum().backward(inputs=parameters[:1])
    lm.module.zero_grad()


def compile_layers(lm: LanguageModel, longest: int) -> str:
    """Compile the layers of ``lm``, which is read as a tree; why not, where they don't give and learn what they did."""
    examples = random_examples(lm, longest, COMPILED_AT)
    try:
        before = learnt(lm, examples)
        lm.compile()
        problem = difference(lm, learnt(lm, examples), before)
    except Exception as error:  # whatever a compiler raises
        log.debug("compiling", exc_info=True)
        problem = f"{type(error).__name__}: {' '.join(str(error).split()[:24])}"
    if problem:
        lm.compile(wanted=False)
        return f"the layers of {type(lm.bare).__name__} are not compiled, so a step takes longer: {problem}"
    return ""


Learnt = tuple[torch.Tensor, torch.Tensor]
"""[N] token log-probs, and [W] the norm of the gradient of each weight in the layers that is trained"""


def learnt(lm: LanguageModel, examples: list[Encoded]) -> Learnt:
    """Of one pass over all of them."""
    try:
        token = lm.logprobs(lm.pack(examples)).token
        assert token is not None
        token.sum().backward()
        norms = [torch.zeros(()) if p.grad is None else p.grad.norm().cpu() for p in trained(lm)]
    finally:
        lm.module.zero_grad()
    return token.detach(), torch.stack(norms)


def difference(lm: LanguageModel, now: Learnt, before: Learnt) -> str:
    """In words, where it is more than rounding."""
    far = float((now[0] - before[0]).abs().max())
    if not far <= TOLERANCE[lm.dtype]:  # nan is no number to be below
        return f"log-probs would differ by up to {far:.2g} nats"
    norm = before[1]
    lost = float(((now[1] - norm).abs() / (norm + norm.mean())).max())
    if not lost <= LOST:
        return f"a gradient would differ by {lost:.0%}"
    gone = int(((now[1] == 0) & (norm > 0)).sum())
    return f"{gone} gradients would be left out" if gone else ""


def trained(lm: LanguageModel) -> list[torch.nn.Parameter]:
    """The weights in the layers that learn."""
    return [p for layer in lm.layers for p in layer.parameters() if p.requires_grad]


@torch.no_grad()
def one_at_a_time(lm: LanguageModel, examples: list[Encoded]) -> torch.Tensor:
    """[N] token log-probs in ``pack``'s order, each response alone in one plain forward: the definition."""
    lm.read_as("logits")
    out = []
    for example in examples:
        for response, scored in zip(example.responses, example.scored, strict=True):
            ids = torch.from_numpy(np.concatenate([example.prompt, response]).astype(np.int64)).to(lm.device)
            with lm.computing():
                logits = lm.bare(input_ids=ids[None], use_cache=False).logits[0]
            at = torch.from_numpy(np.flatnonzero(scored) + len(example.prompt) - 1).to(lm.device)
            out.append(logits[at].float().log_softmax(-1).gather(1, ids[at + 1, None])[:, 0])
    return torch.cat(out)


def random_examples(lm: LanguageModel, longest: int, tokens_in_all: int = 0) -> list[Encoded]:
    """Two prompts or more with three responses each, of random tokens: branches, shared beginnings, several depths."""
    config = lm.bare.config.get_text_config()
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None) or 0
    enough = 24 if lm.device.type == "cpu" else 150  # a GPU's kernel goes by blocks of 128
    prompt = window + 8 if window and longest > window else min(enough, max(24, longest - 10))  # responses are of 10
    rng = np.random.default_rng(0)

    def tokens(n: int) -> np.ndarray:
        return rng.integers(3, config.vocab_size, n, dtype=np.int32)

    def example(n: int) -> Encoded:
        start = tokens(3)
        responses = (np.concatenate([start, tokens(7)]), np.concatenate([start, tokens(2)]), tokens(5))
        return Encoded(
            tokens(n), responses, tuple(np.ones(len(r), bool) for r in responses), (None,) * 3, "probe", "", ""
        )

    return [*(example(prompt) for _ in range(max(1, tokens_in_all // prompt))), example(20)]
