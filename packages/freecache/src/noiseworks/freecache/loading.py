"""A masked model and its guide by name, and a decoding of prompts by mode, for the commands and the claim."""

from dataclasses import dataclass
from typing import Any

import torch
from noiseworks.core.checks import check_choice
from noiseworks.core.devices import resolve_device, resolve_dtype
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model, without_loading_bars
from noiseworks.freecache.baselines import full_recompute_generate
from noiseworks.freecache.cache import CommitRule
from noiseworks.freecache.decoding import Decoded, Sampling, freecache_generate
from noiseworks.freecache.guidance import Acceptance, Strategy
from noiseworks.freecache.guided import GuidedDiffusion, Mode
from noiseworks.freecache.windows import WINDOWS
from noiseworks.kits.masked_lm import HostSpec, load_host
from torch import Tensor, nn

MODES = ("none", "cache", "guide", "both")


@dataclass(frozen=True)
class Loaded:
    """A masked model with what belongs to it, and a guide where one was named."""

    model: nn.Module
    tokenizer: Any
    spec: HostSpec
    guide: nn.Module | None
    guide_tokenizer: Any
    device: torch.device

    @property
    def tokenizers(self) -> tuple[Any, Any]:
        """The tokenizers of the model and of the guide."""
        return self.tokenizer, self.guide_tokenizer


def load(model: str, guide: str | None, device: str, dtype: str) -> Loaded:
    """Load a masked model and a guide.

    Args:
        model: A directory, a hub id or testbed:<name>.
        guide: The same, or None.
        device: auto, cpu, cuda or cuda:<n>.
        dtype: float32, bfloat16 or float16.

    Raises:
        InputError: When a model cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, kind = resolve_device(device), resolve_dtype(dtype)
    host, tokenizer, spec = load_host(model, dtype=kind)
    found = guide_tokenizer = None
    if guide is not None:
        source = resolve_model(guide)
        try:
            with without_loading_bars():
                found = AutoModelForCausalLM.from_pretrained(source, dtype=kind).eval().to(where)
            guide_tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot load the guide {guide}: {str(error).splitlines()[0]}") from error
    return Loaded(host.to(where), tokenizer, spec, found, guide_tokenizer, where)


def decode(
    loaded: Loaded,
    ids: Tensor,
    mask: Tensor,
    mode: str,
    sampling: Sampling,
    *,
    commit: CommitRule = "lazy",
    guided: GuidedDiffusion | None = None,
    seed: int = 0,
) -> Decoded:
    """Decode prompts by one of `MODES`: `none`, `cache`, or `guide` and `both` with a `GuidedDiffusion`."""
    seeds = [seed + row for row in range(len(ids))]
    if mode == "none":
        common = {"attention_mask": mask, "spec": loaded.spec, "seeds": seeds}
        return full_recompute_generate(loaded.model, ids, sampling, **common)
    if mode == "cache":
        fields = vars(sampling)
        return freecache_generate(
            loaded.model, ids, attention_mask=mask, commit=commit, spec=loaded.spec, seeds=seeds, **fields
        )
    return guided.generate(ids, attention_mask=mask, gen_length=sampling.gen_length, seeds=seeds)


def make_guided(
    loaded: Loaded,
    *,
    windows: str,
    block_length: int,
    verify: int = 32,
    strategy: Strategy = "deterministic",
    guide_mode: Mode = "guided",
    match_any: bool = False,
    early_stop: bool = True,
    allow_retokenize: bool = False,
    sliding: int | None = None,
) -> GuidedDiffusion:
    """Return guided decoding with the loaded guide; `windows` is one of `WINDOWS` or none."""
    check_choice("windows", windows, (*WINDOWS, "none"))
    if loaded.guide is None:
        raise InputError("guided decoding needs a guide; name one with --guide")
    return GuidedDiffusion(
        loaded.model,
        loaded.guide,
        tokenizers=loaded.tokenizers,
        acceptance=Acceptance(strategy),
        verify=verify,
        cache=None if windows == "none" else windows,
        block_length=block_length,
        sliding=max(128, verify) if sliding is None else sliding,
        mode=guide_mode,
        match_any=match_any,
        early_stop=early_stop,
        allow_retokenize=allow_retokenize,
        spec=loaded.spec,
    )
