"""Which of the guide's ids stand for the masked model's: the same ones, or a mapping by text where allowed."""

from dataclasses import dataclass
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.masked_lm import HostSpec
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Another vocabulary, token by token.

    Attributes:
        ids: The guide's id of each id of the masked model, int64 [V]: the first one of its text.
        exact: bool [V]: whether that one token reads back to the same text; drafts of other tokens are rejected.
    """

    ids: Tensor
    exact: Tensor


def token_map(
    tokenizers: tuple[Any, Any] | None, spec: HostSpec, guide: nn.Module, *, allow_retokenize: bool = False
) -> TokenMap | None:
    """Return how to read the masked model's ids as the guide's, or None where they are the same.

    Two vocabularies are the same when every plain token and every end of text has the same id in both; masks and
    other special tokens may differ (Dream and Qwen2.5 differ in those alone).

    Args:
        tokenizers: Tokenizers of the masked model and of the guide; None when the ids are known to agree.
        spec: Contract of the masked model.
        guide: The guide.
        allow_retokenize: Whether another vocabulary may be mapped by text.

    Raises:
        InputError: When the vocabularies differ and mapping is not allowed.
    """
    size = guide.get_input_embeddings().weight.shape[0]
    if tokenizers is None:
        if spec.vocab_limit is not None and size < spec.vocab_limit:
            raise InputError(
                f"the guide knows {size} tokens and the masked model {spec.vocab_limit}; pass tokenizers=(the "
                "model's, the guide's) or take a guide with the same vocabulary"
            )
        return None
    host, guided = tokenizers
    mine, theirs = host.get_vocab(), guided.get_vocab()
    special = {*host.all_special_tokens, *guided.all_special_tokens, *host.get_added_vocab()}
    special -= {host.convert_ids_to_tokens(end) for end in spec.eos_ids}
    plain = {word: i for word, i in mine.items() if word not in special}
    wrong = next((word for word, i in plain.items() if theirs.get(word) != i or i >= size), None)
    if wrong is None:
        return None
    if not allow_retokenize:
        raise InputError(
            f"the guide has another vocabulary ({wrong!r} is id {plain[wrong]} in the masked model and "
            f"{theirs.get(wrong)} in the guide); take a guide of the model's family, or pass allow_retokenize"
        )
    return _by_text(host, guided, spec, size)


def _by_text(host: Any, guided: Any, spec: HostSpec, size: int) -> TokenMap:
    limit = max(spec.vocab_limit or 0, len(host), spec.mask_id + 1)
    stand_in = guided.unk_token_id if guided.unk_token_id is not None else guided.eos_token_id or 0
    ids = torch.full((limit,), stand_in, dtype=torch.long)
    exact = torch.zeros(limit, dtype=torch.bool)
    for i in host.get_vocab().values():
        if i >= limit or i == spec.mask_id:
            continue
        if i in spec.eos_ids:
            if guided.eos_token_id is not None:
                ids[i], exact[i] = guided.eos_token_id, True
            continue
        text = host.decode([i])
        found = [one for one in guided.encode(text, add_special_tokens=False) if one < size]
        if found:
            ids[i] = found[0]
            exact[i] = len(found) == 1 and guided.decode(found) == text
    return TokenMap(ids, exact)


def guide_prompts(
    prompts: Tensor, attention_mask: Tensor | None, tokenizers: tuple[Any, Any] | None
) -> tuple[Tensor, Tensor]:
    """Return the prompts in the guide's ids and their mask, tokenised anew from their text, int64 [B, P'].

    Args:
        prompts: Prompts in ids of the masked model, int64 [B, P].
        attention_mask: 1 for tokens and 0 for padding, [B, P].
        tokenizers: Tokenizers of the masked model and of the guide.

    Raises:
        InputError: When a prompt becomes empty.
    """
    from noiseworks.kits.masked_lm import pad_prompts

    host, guided = tokenizers
    mask = torch.ones_like(prompts) if attention_mask is None else attention_mask
    texts = [host.decode(row[keep.bool()].tolist()) for row, keep in zip(prompts, mask, strict=True)]
    ids, kept = pad_prompts([guided.encode(text, add_special_tokens=False) for text in texts], 0)
    return ids.to(prompts.device), kept.to(prompts.device)
