"""What `noiseworks-first-hitting` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Hardware, Spread
from noiseworks.core.output import check_file, lines_of, write_json, write_rows
from noiseworks.first_hitting.options import Bound, Comparison, Length, Precision, Sampling


def sample(
    *,
    model: str,
    prompt: str,
    length: Spread[Length] = Length(),
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
    out: Path | None = None,
) -> dict[str, Any]:
    """Complete prompts by first-hitting sampling.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        prompt: A text, or a file with one prompt a line.
        length: How much is generated.
        sampling: How tokens are revealed and drawn.
        hardware: Where the model runs.
        out: File for the completions, one JSON object a line.

    Returns:
        Completions and seconds.
    """
    if out is not None:
        check_file(out)
    prompts, _ = lines_of(prompt), resolve_model(model)
    import time

    import torch
    from noiseworks.first_hitting.categorical import CORRECT
    from noiseworks.first_hitting.transformers import FirstHittingGenerator
    from noiseworks.kits.masked_lm import load_host

    host, tokenizer, spec = load_host(model, dtype=hardware.torch_dtype() or "auto")
    generator = FirstHittingGenerator(host.to(hardware.torch_device()), tokenizer, spec)
    source = (
        {"seeds": range(length.seed, length.seed + len(prompts))}
        if sampling.method in CORRECT
        else {"generator": torch.Generator().manual_seed(length.seed)}
    )
    start = time.perf_counter()
    settings = generator.settings(**vars(sampling))
    texts = generator.generate(prompts, length.gen_length, settings, **source)
    seconds = time.perf_counter() - start
    if out is not None:
        rows = [{"prompt": asked, "completion": text} for asked, text in zip(prompts, texts, strict=True)]
        write_rows(out, rows)
    return {"completions": texts, "seconds": seconds}


def compare(
    *,
    model: str,
    comparison: Spread[Comparison] = Comparison(),
    scorer: str | None = None,
    hardware: Spread[Hardware] = Hardware(),
    out: Path | None = None,
) -> dict[str, Any]:
    """Compare first-hitting sampling with ancestral sampling on unconditional samples of your model.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        comparison: What is compared.
        scorer: A causal language model on the same tokens, for generative perplexity.
        hardware: Where the model runs.
        out: File for the table as JSON.

    Returns:
        One entry a sampler: network calls, draws, seconds, peak memory of its tensors in MiB, unigram entropy and
        distinct tokens of the samples, the first of them as text and, with a scorer, generative perplexity; never
        perplexity alone.
    """
    if out is not None:
        check_file(out)
    resolve_model(model)
    from noiseworks.first_hitting.comparison import causal_scorer, compare_samplers
    from noiseworks.first_hitting.transformers import host_denoiser
    from noiseworks.kits.masked_lm import load_host

    device, dtype = hardware.torch_device(), hardware.torch_dtype()
    judge = None if scorer is None else causal_scorer(scorer, device, dtype)
    host, tokenizer, spec = load_host(model, dtype=dtype or "auto")
    denoiser = host_denoiser(host.to(device), spec)
    table = compare_samplers(denoiser, spec, comparison, judge, device, tokenizer.decode)
    if out is not None:
        write_json(out, table)
    return {"samplers": table}


def precision(*, precision: Spread[Precision] = Precision()) -> dict[str, Any]:
    """Show what Gumbel-max with uniforms of a type does to a distribution, drawn at once and in an ancestral step.

    Args:
        precision: The distribution and the uniforms.

    Returns:
        The bound M, and for both cases the distribution (of at most 16 classes), entropy in nats and effective
        temperature; for the step also how often it reveals relative to δ.
    """
    p, delta = _distribution(precision.probs), precision.delta
    import torch
    from noiseworks.first_hitting.categorical import (
        effective_temperature,
        entropy,
        gumbel_bound,
        truncated_probs,
    )

    p = torch.tensor(p, dtype=torch.float64)
    bound = gumbel_bound(getattr(torch, precision.dtype))
    step = truncated_probs(torch.cat([delta * p, p.new_tensor([1 - delta])]), bound)[:-1]
    result: dict[str, Any] = {
        "bound": bound,
        "entropy": entropy(p),
        "reveals relative to delta": float(step.sum() / delta),
    }
    for name, found in (("at once", truncated_probs(p, bound)), ("ancestral step", step / step.sum())):
        result[name] = {"entropy": entropy(found), "probs": found[:16].tolist()}
    result["at once"]["effective_temperature"] = effective_temperature(p, bound) if len(p) > 1 else 1.0
    return result


def _distribution(text: str) -> list[float]:
    try:
        if text.startswith("zipf:"):
            weights = [1 / rank for rank in range(1, int(text.removeprefix("zipf:")) + 1)]
            total = sum(weights)
            return [weight / total for weight in weights]
        p = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"probs must be numbers with commas between, or zipf:V, got {text!r}") from None
    if not all(value > 0 for value in p) or abs(sum(p) - 1) > 1e-6:
        raise InputError(f"probs must be positive and sum to 1, got {text!r}")
    return p


def evidence(
    *,
    model: str,
    prompt: str,
    bound: Spread[Bound] = Bound(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Bound the negative log-likelihood of texts under a masked model by the time-free evidence bound.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        prompt: A text, or a file with one text a line.
        bound: How the bound is estimated.
        hardware: Where the model runs.

    Returns:
        Nats of each text, and perplexity over all tokens.
    """
    texts, _ = lines_of(prompt), resolve_model(model)
    import torch
    from noiseworks.first_hitting.objective import elbo
    from noiseworks.first_hitting.transformers import host_denoiser
    from noiseworks.kits.masked_lm import load_host

    host, tokenizer, spec = load_host(model, dtype=hardware.torch_dtype() or "auto")
    denoiser = host_denoiser(host.to(hardware.torch_device()), spec)
    generator, nats, tokens = torch.Generator().manual_seed(bound.seed), [], 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]], device=hardware.torch_device())
        nats.append(float(elbo(denoiser, ids, spec.mask_id, draws=bound.draws, generator=generator)))
        tokens += ids.shape[1]
    return {"nats": nats, "tokens": tokens, "perplexity": float(torch.tensor(sum(nats) / tokens).exp())}
