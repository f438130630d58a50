"""The empty prompt's condition of each family, for perpendicular negative prompts."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.errors import UnsupportedHostError
from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall
from noiseworks.kits.diffusers_hosts.layouts import Layout, layout_of
from noiseworks.kits.diffusers_hosts.rows import take_rows
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FAMILIES = ("sd", "sdxl", "sd3", "pixart")


def check_extras(layout: Layout, perp_neg: float, uncond_zero: float) -> None:
    """Refuse a host that cannot take a perpendicular negative prompt or uncond-zero.

    Raises:
        UnsupportedHostError: Naming the reason.
    """
    if perp_neg and layout.family not in FAMILIES:
        raise UnsupportedHostError(
            f"perp_neg needs a negative prompt and both predictions in one call, which {layout.family} does "
            f"not have; it works on {', '.join(FAMILIES)}"
        )
    if uncond_zero and layout.calls != "rows":
        raise UnsupportedHostError(
            f"uncond_zero replaces the conditional prediction, which {layout.family} has used already when "
            "the unconditional call comes; set it to 0"
        )


@torch.no_grad()
def empty_condition(pipe: "DiffusionPipeline", call: DenoiserCall) -> dict[str, Any]:
    """Return what the host itself feeds for the empty prompt: the denoiser's text arguments, one row each.

    Args:
        pipe: A pipeline of `FAMILIES`.
        call: A guided call of the run, which says how many tokens the host uses.

    Raises:
        UnsupportedHostError: When the host's own text arguments have another shape, as with embeddings that
            the user computed.
    """
    device, text = call.sample.device, call.kwargs["encoder_hidden_states"]
    common = {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    skip = {"clip_skip": getattr(pipe, "_clip_skip", None)}
    family = layout_of(pipe).family
    if family == "sdxl":
        _, hidden, _, pooled = pipe.encode_prompt("", **common, **skip)
        found = {"encoder_hidden_states": hidden, "added_cond_kwargs": {"text_embeds": pooled}}
    elif family == "sd3":
        tokens = text.shape[1] - pipe.tokenizer_max_length
        _, hidden, _, pooled = pipe.encode_prompt("", "", "", max_sequence_length=tokens, **common, **skip)
        found = {"encoder_hidden_states": hidden, "pooled_projections": pooled}
    elif family == "pixart":
        _, _, hidden, mask = pipe.encode_prompt("", max_sequence_length=text.shape[1], **common)
        found = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
    else:
        _, hidden = pipe.encode_prompt("", **common, **skip)
        found = {"encoder_hidden_states": hidden}
    if hidden.shape[1:] != text.shape[1:]:
        raise UnsupportedHostError(
            f"perp_neg: the empty prompt has {tuple(hidden.shape[1:])} text features and this run "
            f"{tuple(text.shape[1:])}; pass prompts as text"
        )
    return found


def with_condition(
    call: DenoiserCall, rows: Tensor, layout: Layout, condition: dict[str, Any]
) -> DenoiserCall:
    """Return a call on some rows of another, with one condition for all of them.

    Args:
        call: The call.
        rows: Row indices, int64 `[n]`.
        layout: The family's layout.
        condition: Keyword arguments with one row each; nested dicts are merged.
    """
    args, kwargs = take_rows((call.args, call.kwargs), rows, call.rows, layout.shared)
    sample = call.sample.index_select(0, rows.to(call.sample.device))
    return replace(call, sample=sample, args=args, kwargs=_merged(kwargs, condition, len(rows)))


def _merged(values: dict[str, Any], condition: dict[str, Any], rows: int) -> dict[str, Any]:
    merged = dict(values)
    for name, value in condition.items():
        if isinstance(value, dict):
            merged[name] = _merged(values[name], value, rows)
        else:
            merged[name] = value.to(values[name].dtype).expand(rows, *value.shape[1:])
    return merged
