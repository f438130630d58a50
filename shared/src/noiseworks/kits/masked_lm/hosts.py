"""The contract between a method and a masked diffusion language model: `HostSpec` and `aligned_logits`."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError, first_line
from noiseworks.core.models import resolve_model, without_loading_bars
from noiseworks.kits.masked_lm.dream import DreamModel
from noiseworks.kits.masked_lm.llada import LLaDAModelLM
from safetensors import SafetensorError
from torch import Tensor, nn

# Ends of a turn that the released configurations do not name: <|eot_id|> of LLaDA, <|im_end|> of Dream.
_END_OF_TURN = {"llada": {126081: 126348}, "dream": {151643: 151645}}


@dataclass(frozen=True)
class HostSpec:
    """What a method must know of a model.

    Attributes:
        mask_id: Id of [MASK].
        eos_ids: Ids that end a text; the first one fills what follows.
        pad_id: Id of left padding.
        shift: 0 where row i of the logits predicts token i (LLaDA), 1 where it predicts token i + 1 (Dream).
        vocab_limit: Ids from here on are no tokens and are never drawn; None for no limit.
        max_length: Longest sequence of prompt and completion; None for no limit.
        kind: `llada` or `dream`.
    """

    mask_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    shift: int
    vocab_limit: int | None
    max_length: int | None
    kind: Literal["llada", "dream"]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the host itself: what a peft model wraps (its adapters stay in place), else the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def detect_host(model: nn.Module, tokenizer: Any = None, *, shift: int | None = None) -> HostSpec:
    """Return the contract of a LLaDA- or Dream-style model, native or of the released remote code.

    Args:
        model: The model, adapted by peft or not.
        tokenizer: Its tokenizer; tells which ids are tokens.
        shift: Overrides the shift: pass 0 for a Dream model whose forward shifts by itself.

    Raises:
        InputError: For another kind of model, or when no mask id is found.
    """
    config = unwrapped(model).config
    kind = str(getattr(config, "model_type", "")).lower()
    if kind not in ("llada", "dream"):
        raise InputError(
            f"need a LLaDA or Dream model, got model_type {getattr(config, 'model_type', None)!r}"
        )
    if shift not in (None, 0, 1):
        raise InputError(f"shift must be 0 or 1, got {shift!r}")
    mask = getattr(config, "mask_token_id", None)
    mask = getattr(tokenizer, "mask_token_id", None) if mask is None else mask
    if mask is None:
        raise InputError(
            "the model has no mask id; set config.mask_token_id or give the tokenizer a mask token"
        )
    eos = getattr(config, "eos_token_id", None)
    found = [*eos] if isinstance(eos, list | tuple) else [eos, getattr(tokenizer, "eos_token_id", None)]
    ends = list(dict.fromkeys(one for one in found if one is not None))
    ends += [turn for end, turn in _END_OF_TURN[kind].items() if end in ends and turn not in ends]
    pad = getattr(config, "pad_token_id", None)
    pad = getattr(tokenizer, "pad_token_id", None) if pad is None else pad
    length = getattr(config, "max_sequence_length", None) or getattr(config, "max_position_embeddings", None)
    limit = getattr(config, "vocab_size", None) if tokenizer is None else len(tokenizer)
    return HostSpec(
        mask_id=int(mask),
        eos_ids=tuple(ends),
        pad_id=int(ends[0] if pad is None and ends else pad or 0),
        shift=(1 if kind == "dream" else 0) if shift is None else shift,
        vocab_limit=limit,
        max_length=length,
        kind=kind,
    )


def load_host(name: str | Path, *, dtype: torch.dtype | str | None = None) -> tuple[nn.Module, Any, HostSpec]:
    """Load a LLaDA or Dream model, its tokenizer and its contract; no remote code runs.

    Args:
        name: A directory, a hub id or `testbed:<name>`.
        dtype: Type of the weights; `auto` or None keeps that of the checkpoint.

    Returns:
        The model in evaluation mode, the tokenizer, the contract.

    Raises:
        InputError: When the model is of another kind, or its files cannot be read or are not the whole model's.
    """
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    source = resolve_model(name)
    try:
        folder = Path(source)
        config = folder / "config.json" if folder.is_dir() else Path(cached_file(source, "config.json"))
        found = json.loads(config.read_text())
        kind = found.get("model_type") if isinstance(found, dict) else None
        if kind not in ("llada", "Dream"):
            raise InputError(f"{name} holds a model of type {kind!r}; need 'llada' or 'Dream'")
        classes = {"llada": LLaDAModelLM, "Dream": DreamModel}
        model = load_weights(classes[kind], source, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot load {name}: {first_line(error)}") from error
    return model, tokenizer, detect_host(model, tokenizer)


def load_weights(kind: Any, source: str, *, dtype: torch.dtype | str | None = None) -> nn.Module:
    """Load a transformers model whose checkpoint holds all of its tensors, no others, and finite numbers alone.

    transformers fills tensors that a checkpoint lacks with random numbers, so that a model of noise would answer.

    Args:
        kind: The model's class, or an auto class.
        source: A directory or a hub id.
        dtype: Type of the weights; `auto` or None keeps that of the checkpoint.

    Returns:
        The model in evaluation mode.

    Raises:
        InputError: Naming the first tensor that is missing, unexpected, of another shape, NaN or infinite.
        OSError: When there are no files.
        SafetensorError: When a file of weights is cut off.
        ValueError: When transformers cannot read them.
    """
    with without_loading_bars(), _without_reports():
        model, report = kind.from_pretrained(
            source,
            dtype="auto" if dtype is None else dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    wrong = {"lacks": "missing_keys", "has an unexpected": "unexpected_keys"}
    found = [(word, sorted(report[key])) for word, key in wrong.items()]
    found.append(("has another shape of", sorted(name for name, *_ in report["mismatched_keys"])))
    for word, names in found:
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(
                f"the checkpoint {source} {word} {names[0]}{more}; it is of another model or cut off"
            )
    for name, weight in model.named_parameters():
        if not all(bool(end.isfinite()) for end in weight.detach().aminmax()):
            raise InputError(
                f"{name} of the checkpoint {source} holds NaN or infinity; take another checkpoint"
            )
    return model.eval()


@contextmanager
def _without_reports() -> Iterator[None]:
    """Keep transformers' table of unfit tensors out of the standard error: the refusal is one line."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def pad_prompts(ids: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return prompts of different lengths left padded: ids and mask (1 token, 0 padding), int64 [B, P].

    Raises:
        InputError: When there is no prompt or one has no tokens.
    """
    if not ids or not all(len(row) for row in ids):
        raise InputError("a prompt has no tokens; give it some text")
    length = max(map(len, ids))
    padded = torch.tensor([[pad_id] * (length - len(row)) + list(row) for row in ids])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids])
    return padded, mask


def check_prompt(input_ids: Tensor, spec: HostSpec, gen_length: int) -> None:
    """Refuse prompts that cannot be completed.

    Args:
        input_ids: int64 [B, P].
        spec: The host's contract.
        gen_length: Tokens to generate.

    Raises:
        InputError: On another shape, a [MASK] in a prompt, a pad id that is the mask id, or too long a text.
    """
    if input_ids.ndim != 2 or input_ids.shape[0] == 0:
        raise InputError(f"need prompts as int64 [B, P], got shape {tuple(input_ids.shape)}")
    if spec.pad_id == spec.mask_id:
        raise InputError(f"pad id and mask id are both {spec.mask_id}; give the tokenizer another pad token")
    if bool((input_ids == spec.mask_id).any()):
        raise InputError(
            f"a prompt holds the mask id {spec.mask_id}; remove it, only the completion is masked"
        )
    length = input_ids.shape[1] + gen_length
    if spec.max_length is not None and length > spec.max_length:
        raise InputError(f"prompt and completion have {length} tokens, the model takes {spec.max_length}")


def aligned_logits(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    spec: HostSpec,
    positions: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return logits whose row i predicts token i; [MASK] and ids that are no tokens have -inf.

    Args:
        model: The host.
        input_ids: int64 [B, L].
        attention_mask: 1 for tokens and 0 for padding, [B, L].
        spec: The host's contract.
        positions: int64 [B, n]; native hosts compute the head only there.
        dtype: Type of the result, by default the model's.

    Returns:
        [B, L, V], or [B, n, V] with `positions`. Position 0 of a shifted host has no prediction and gets a copy
        of row 0.
    """
    host = unwrapped(model)
    rows = positions
    if positions is not None and spec.shift:
        rows = (positions - spec.shift).clamp(min=0)
    if hasattr(host, "hidden_states") and rows is not None:
        hidden = host.hidden_states(input_ids, attention_mask)
        logits = host.get_output_embeddings()(_take(hidden, rows))
    else:
        logits = _forward(model, input_ids, attention_mask, spec)
        if rows is not None:
            logits = _take(logits, rows)
        elif spec.shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
    logits = logits if dtype is None else logits.to(dtype)
    forbidden = _forbidden(logits.shape[-1], spec.vocab_limit, spec.mask_id, logits.device)
    return logits.masked_fill(forbidden, -torch.inf)


@cache
def _forbidden(size: int, limit: int | None, mask_id: int, device: torch.device) -> Tensor:
    """Return which of `size` ids are never predicted: [MASK], and those that are no tokens; made once a vocabulary."""
    # Inside inference mode it would be a tensor that autograd refuses later.
    with torch.inference_mode(False):
        forbidden = torch.arange(size, device=device) >= (size if limit is None else limit)
        forbidden[mask_id] = True
        return forbidden


def check_logits(logits: Tensor, call: int) -> None:
    """Stop when a position's logits hold NaN or infinity, or allow no token; one copy from the device.

    Args:
        logits: [..., V]; -inf forbids a token.
        call: Number of the network call, for the message.

    Raises:
        NonFiniteError: Naming the call.
    """
    check_finite("the largest logit of a position", logits.amax(dim=-1), call)


def _take(rows: Tensor, positions: Tensor) -> Tensor:
    return rows.gather(1, positions.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def _forward(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, spec: HostSpec) -> Tensor:
    if spec.kind == "dream" and attention_mask is not None and not isinstance(unwrapped(model), DreamModel):
        # The released Dream code takes padding as positions and a mask of query and key.
        tokens = attention_mask.bool()
        allowed = tokens[:, None, None, :] & tokens[:, None, :, None]
        allowed = allowed | ~allowed.any(-1, keepdim=True)
        positions = (tokens.long().cumsum(-1) - 1).masked_fill(~tokens, 1)
        return model(input_ids, attention_mask=allowed, position_ids=positions).logits
    return model(input_ids, attention_mask=attention_mask).logits
