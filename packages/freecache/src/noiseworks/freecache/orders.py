"""Which masked tokens a step reveals, how many, and when a text has ended."""

from collections.abc import Sequence

import torch
from noiseworks.core import noise
from noiseworks.core.errors import InputError
from noiseworks.freecache.options import Order, Sampling
from noiseworks.kits.masked_lm import HostSpec, confidence, transfer_schedule
from torch import Tensor

_SCORE = {"maskgit_plus": "top1", "topk_margin": "margin", "entropy": "neg_entropy"}
# Streams of their own, beyond the counters that draws of tokens use.
_ORDER_STREAM = 2**40


def default_order(spec: HostSpec) -> Order:
    """Return the order that the host's users take: `low_confidence` for LLaDA, `entropy` for Dream."""
    return "low_confidence" if spec.kind == "llada" else "entropy"


def uniform(keys: Tensor, call: int) -> Tensor:
    """Return one uniform in [0, 1) a position, float32 [B, n], that depends on row and call alone."""
    drawn = noise.uniform(keys.reshape(-1), (1,), counter0=_ORDER_STREAM + call)
    return drawn.reshape(keys.shape)


def order_scores(
    order: Order, plain: Tensor, shaped: Tensor, drawn: Tensor, where: Tensor, length: int, uniforms: Tensor
) -> Tensor:
    """Return the score of each drawn token; the highest are revealed first, [B, n].

    Args:
        order: Which tokens come first.
        plain: Aligned logits as the model gives them, [B, n, V].
        shaped: The same after temperature, nucleus and top k.
        drawn: Drawn tokens, int64 [B, n].
        where: Positions on the canvas, int64 [n].
        length: Positions N of the canvas.
        uniforms: U(0, 1) draws [B, n].
    """
    if order in ("random", "origin"):
        return uniforms
    if order == "low_confidence":
        # By the untempered probability: a noised one says little about how sure the model is.
        return confidence(plain, drawn, "top1")
    if order == "position_weighted":
        return confidence(shaped, drawn, "top1") * (1 - where / length)
    return confidence(shaped, drawn, _SCORE[order])


def block_counts(spec: HostSpec, sampling: Sampling) -> list[int]:
    """Return how many tokens each step reveals in block-wise decoding; they sum to `gen_length`.

    LLaDA shares a block's masks evenly among its steps. Dream has the times linspace(1, eps, steps + 1) over all
    steps: with M masks left in the block and in later ones, step i reveals int(M (1 - t_{i+1} / t_i)) of the
    block's masks at most, and the block's last step all that remain.

    Args:
        spec: The host's contract.
        sampling: Lengths and steps.
    """
    blocks, per_block, block_length = sampling.blocks, sampling.block_steps, sampling.block_length
    if spec.kind == "llada":
        return transfer_schedule(block_length, per_block, "even") * blocks
    shares, counts = dream_shares(blocks * per_block, sampling.eps), []
    for block in range(blocks):
        left = block_length
        for step in range(per_block):
            later = block_length * (blocks - block - 1)
            count = min(int(shares[block * per_block + step] * (left + later)), left)
            counts.append(left if step == per_block - 1 else count)
            left -= counts[-1]
    return counts


def dream_shares(steps: int, eps: float) -> Tensor:
    """Return 1 - t_{i+1} / t_i of Dream's times, float32 [steps]."""
    times = torch.linspace(1, eps, steps + 1)
    return 1 - times[1:] / times[:-1]


def ended(answers: Tensor, spec: HostSpec, consecutive: int, *, rightmost: bool) -> tuple[Tensor, Tensor]:
    """Return which texts have ended, bool [B], and from where on they are filled with ends, int64 [B].

    Ends count only when everything before them is revealed: an end at the right may belong to a text that is
    still to come.

    Args:
        answers: Completions with masks, int64 [B, G].
        spec: The host's contract.
        consecutive: How many ends in a row, at least 1.
        rightmost: Whether they must be the right-most revealed tokens (the rule for Dream), or may stand anywhere
            in the revealed start of the answer (the rule for LLaDA).
    """
    masked = answers == spec.mask_id
    clean = (~masked).long().cumprod(dim=1)
    ends = torch.isin(answers, torch.tensor(spec.eos_ids, device=answers.device)) & clean.bool()
    length = clean.sum(dim=1)
    if ends.shape[1] < consecutive:
        return torch.zeros_like(length, dtype=torch.bool), length
    runs = ends.unfold(1, consecutive, 1).all(dim=-1)
    if rightmost:
        last = (length - consecutive).clamp(min=0)
        at_last = runs.gather(1, last.unsqueeze(1)).squeeze(1) & (length >= consecutive)
        return at_last & ((~masked).sum(dim=1) == length), length
    return runs.any(dim=1), runs.long().argmax(dim=1) + consecutive


def fill(answers: Tensor, rows: Tensor, cut: Tensor, spec: HostSpec) -> Tensor:
    """Return completions whose `rows` hold the end of text from position `cut` on.

    Args:
        answers: int64 [B, G].
        rows: bool [B].
        cut: int64 [B].
        spec: The host's contract; its first end is used.
    """
    after = torch.arange(answers.shape[1], device=answers.device) >= cut.unsqueeze(1)
    return torch.where(rows.unsqueeze(1) & after, spec.eos_ids[0], answers)


def check_ends(spec: HostSpec, early_stop: int) -> None:
    """Refuse early stop on a model that names no end of text.

    Raises:
        InputError: When there is no end.
    """
    ends: Sequence[int] = spec.eos_ids
    if early_stop and not ends:
        raise InputError("early_stop needs an end of text, the model names none; pass early_stop=0")
