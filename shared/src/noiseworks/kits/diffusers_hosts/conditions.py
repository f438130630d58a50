"""Changing what the denoiser is conditioned on in the middle of a run: encode as the host does, replace, hand on.

A condition is a dict of the denoiser's keyword arguments with one row a sample; it may be nested, as
`added_cond_kwargs` is. Encode once a run and not in every step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall
from torch import Tensor

Condition = Mapping[str, Any]


def cond_rows(call: DenoiserCall) -> Tensor:
    """Return the indices of a call's conditional rows, int64 `[B]`; none in the "uncond" call of two."""
    return role_rows(call, "cond")


def role_rows(call: DenoiserCall, role: str) -> Tensor:
    """Return the indices of a call's rows of a role; without guidance all rows are "cond".

    Args:
        call: The call.
        role: "cond", "image" or "uncond".
    """
    if call.role is not None or not call.run.guided:
        mine = role == (call.role or "cond")
        return torch.arange(call.rows if mine else 0)
    roles = call.run.layout.roles
    if role not in roles:
        return torch.arange(0)
    first = roles.index(role) * call.run.batch
    return torch.arange(first, first + call.run.batch)


@torch.no_grad()
def encode_condition(call: DenoiserCall, prompts: Sequence[str] | Sequence[int]) -> dict[str, Any]:
    """Return what the host itself would feed for other prompts, one row a sample of the call.

    The text encoders see the prompts as one batch, as when the host is called with them. So for several prompts
    a sample, encode one batch of the host's own size for each of them: one batch of all of them at once changes
    last bits, and images drawn with the host's own prompt would not be the host's any more.

    Args:
        call: A call of the run, usually the first, in `begin_run`.
        prompts: A text a sample (a class label for DiT), or one for every n samples in a row, which are then
            repeated as by `num_images_per_prompt=n`.

    Raises:
        InputError: When their number does not divide the number of samples.
        UnsupportedHostError: When the host's own text arguments have another shape, as with embeddings that
            the user computed.
    """
    pipe, family, batch = call.run.pipe, call.run.layout.family, call.run.batch
    if not prompts or batch % len(prompts):
        raise InputError(f"the batch has {batch} samples, got {len(prompts)} prompts: give one a sample")
    each, device, texts = batch // len(prompts), call.sample.device, list(prompts)
    if family == "dit":
        labels = torch.tensor(texts, device=device).repeat_interleave(each)
        return {"class_labels": labels}
    text = call.kwargs["encoder_hidden_states"]
    common = {"device": device, "num_images_per_prompt": each}
    plain = {**common, "do_classifier_free_guidance": False}
    scale = (getattr(pipe, "_cross_attention_kwargs", None) or {}).get("scale")
    tuned = {"lora_scale": scale, "clip_skip": getattr(pipe, "_clip_skip", None)}
    if family == "sdxl":
        hidden, _, pooled, _ = pipe.encode_prompt(texts, **plain, **tuned)
        found = {"encoder_hidden_states": hidden, "added_cond_kwargs": {"text_embeds": pooled}}
    elif family == "sd3":
        tokens = text.shape[1] - pipe.tokenizer_max_length
        hidden, _, pooled, _ = pipe.encode_prompt(
            texts, texts, texts, max_sequence_length=tokens, **plain, **tuned
        )
        found = {"encoder_hidden_states": hidden, "pooled_projections": pooled}
    elif family == "flux":
        hidden, pooled, _ = pipe.encode_prompt(texts, max_sequence_length=text.shape[1], **common)
        found = {"encoder_hidden_states": hidden, "pooled_projections": pooled}
    elif family == "pixart":
        hidden, mask, _, _ = pipe.encode_prompt(texts, max_sequence_length=text.shape[1], **plain)
        found = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
    elif family == "instruct-pix2pix":
        hidden = pipe._encode_prompt(texts, **plain)
        found = {"encoder_hidden_states": hidden}
    else:
        hidden, _ = pipe.encode_prompt(texts, **plain, **tuned)
        found = {"encoder_hidden_states": hidden}
    if hidden.shape[1:] != text.shape[1:]:
        raise UnsupportedHostError(
            f"these prompts have {tuple(hidden.shape[1:])} text features and this run {tuple(text.shape[1:])}: "
            "call the pipeline with prompts as text"
        )
    return found


def with_condition(call: DenoiserCall, condition: Condition) -> DenoiserCall:
    """Return a call whose conditional rows have another condition; all other rows are as they were.

    Args:
        call: The call. Its "uncond" call of two comes back unchanged.
        condition: One row a sample, from `encode_condition` or made of such.

    Raises:
        InputError: When the condition names an argument that the call does not have, or has other rows.
    """
    rows = cond_rows(call)
    if not len(rows):
        return call
    return replace(call, kwargs=_replaced(call.kwargs, condition, rows))


def _replaced(values: Mapping[str, Any], condition: Condition, rows: Tensor) -> dict[str, Any]:
    changed = dict(values)
    for name, new in condition.items():
        if name not in values:
            raise InputError(f"the denoiser was called without {name}, which the condition holds")
        old = values[name]
        if isinstance(new, Mapping):
            changed[name] = _replaced(old, new, rows)
            continue
        if new.shape != (len(rows), *old.shape[1:]):
            raise InputError(
                f"the condition's {name} has shape {tuple(new.shape)}, needed: {(len(rows), *old.shape[1:])}"
            )
        changed[name] = old.index_copy(0, rows.to(old.device), new.to(old))
    return changed
