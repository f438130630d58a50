"""What `noiseworks-first-hitting` runs: each verb is one of these functions."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.artifacts import atomic_write, check_writable
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.devices import resolve_device, resolve_dtype
from noiseworks.core.errors import InputError
from noiseworks.first_hitting.ancestral import AncestralSettings, ancestral_sample
from noiseworks.first_hitting.categorical import effective_temperature, entropy, gumbel_bound, truncated_probs
from noiseworks.first_hitting.metrics import distinct_tokens, generative_nll, unigram_entropy
from noiseworks.first_hitting.objective import elbo
from noiseworks.first_hitting.sampling import Order, Settings, Variant, fhs_sample
from noiseworks.first_hitting.transformers import FirstHittingGenerator, host_denoiser
from noiseworks.kits.masked_lm import load_host

_TYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def _prompts(prompt: str) -> list[str]:
    """Return the lines of a file of that name, or the text itself."""
    path = Path(prompt)
    lines = path.read_text().splitlines() if len(prompt) < 4096 and path.is_file() else [prompt]
    found = [line for line in lines if line.strip()]
    if not found:
        raise InputError(f"no prompt in {prompt!r}; give a text, or a file with one prompt a line")
    return found


def sample(
    *,
    model: str,
    prompt: str,
    gen_length: int = 128,
    variant: Variant = "exact",
    steps: int | None = None,
    order: Order = "uniform",
    precision: str = "cdf64",
    temperature: float = 1.0,
    top_p: float | None = None,
    top_k: int | None = None,
    block_length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    out: Path | None = None,
) -> dict[str, Any]:
    """Complete prompts by first-hitting sampling.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        prompt: A text, or a file with one prompt a line.
        gen_length: Tokens to generate.
        variant: exact, parallel, extrapolate or predictor_corrector.
        steps: Network calls a block of the variants other than exact.
        order: uniform (the model's own distribution), confidence or left_to_right.
        precision: How tokens are drawn: cdf64, exponential, gumbel64, or the faulty gumbel32 and gumbel16.
        temperature: Of the draws; 0 takes the likeliest token.
        top_p: Mass of the nucleus.
        top_k: Tokens kept.
        block_length: Tokens a block, revealed one block after the other.
        seed: Prompt i is completed with seed + i, where the precision is a correct one.
        device: auto, cpu, cuda or cuda:<n>.
        dtype: Type of the weights.
        out: File for the completions, one JSON object a line.

    Returns:
        Completions, network calls and seconds.
    """
    if out is not None:
        check_writable(out)
    settings = Settings(
        mask_id=0,
        variant=variant,
        steps=steps,
        order=order,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        method=precision,
        block_length=block_length,
    )
    check_number("gen_length", gen_length, low=1, integer=True)
    prompts = _prompts(prompt)
    host, tokenizer, spec = load_host(model, dtype=resolve_dtype(dtype))
    generator = FirstHittingGenerator(host.to(resolve_device(device)), tokenizer, spec)
    options = {key: value for key, value in vars(settings).items() if key != "mask_id"}
    start = time.perf_counter()
    faulty = precision in ("gumbel32", "gumbel16")
    source = (
        {"generator": torch.Generator().manual_seed(seed)}
        if faulty
        else {"seeds": range(seed, seed + len(prompts))}
    )
    texts = generator.generate(prompts, gen_length, generator.settings(**options), **source)
    seconds = time.perf_counter() - start
    if out is not None:
        rows = [{"prompt": asked, "completion": text} for asked, text in zip(prompts, texts, strict=True)]
        atomic_write(out, "".join(json.dumps(row) + "\n" for row in rows))
    return {"completions": texts, "seconds": seconds}


def compare(
    *,
    model: str,
    gen_length: int = 64,
    samples: int = 16,
    grid: str = "64,256,1024",
    precision: str = "gumbel64",
    scorer: str | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    out: Path | None = None,
) -> dict[str, Any]:
    """Compare first-hitting sampling with ancestral sampling on unconditional samples of a model.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        gen_length: Tokens a sample, after one end-of-text token as prompt.
        samples: Samples of each row of the table.
        grid: Numbers of time steps T of the ancestral baseline, commas between.
        precision: How the baseline draws.
        scorer: A causal language model on the same tokens, for generative perplexity.
        seed: Of the samples.
        device: auto, cpu, cuda or cuda:<n>.
        dtype: Type of the weights.
        out: File for the table as JSON.

    Returns:
        One entry a sampler: seconds, network calls, draws, unigram entropy and distinct tokens of the samples and,
        with a scorer, generative perplexity; never perplexity alone.
    """
    if out is not None:
        check_writable(out)
    try:
        steps = [int(part) for part in grid.split(",")]
    except ValueError:
        raise InputError(f"grid must be whole numbers with commas between, got {grid!r}") from None
    check_number("samples", samples, low=1, integer=True)
    target, precision_type = resolve_device(device), resolve_dtype(dtype)
    host, _, spec = load_host(model, dtype=precision_type)
    denoiser = host_denoiser(host.to(target), spec)
    judge = _scorer(scorer, target, precision_type)
    start = torch.full((samples, 1), spec.eos_ids[0] if spec.eos_ids else spec.pad_id, device=target)
    canvas = torch.cat([start, start.new_full((samples, gen_length), spec.mask_id)], dim=1)
    table = []
    for count in [None, *steps]:
        begin = time.perf_counter()
        if count is None:
            found = fhs_sample(denoiser, canvas, Settings(spec.mask_id), seeds=range(seed, seed + samples))
            row = {"sampler": "first-hitting", "calls": found.calls, "draws": samples * gen_length}
        else:
            settings = AncestralSettings(spec.mask_id, count, method=precision)
            source = torch.Generator().manual_seed(seed)
            found = ancestral_sample(denoiser, canvas, settings, generator=source)
            row = {"sampler": f"ancestral, T = {count}", "calls": found.calls, "draws": found.draws}
        row["seconds"] = time.perf_counter() - begin
        text = found.tokens[:, 1:].cpu()
        row["unigram_entropy"] = float(unigram_entropy(text).mean())
        row["distinct_tokens"] = float(distinct_tokens(text).double().mean())
        if judge is not None:
            row["perplexity"] = float(generative_nll(judge, found.tokens).mean().exp())
        table.append(row)
    if out is not None:
        atomic_write(out, json.dumps(table, indent=2) + "\n")
    return {"samplers": table}


def _scorer(name: str | None, device: torch.device, dtype: torch.dtype):
    if name is None:
        return None
    from noiseworks.core.models import resolve_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(resolve_model(name), dtype=dtype).to(device).eval()
    return lambda tokens: model(tokens).logits


def precision(
    *, probs: str = "0.5,0.3,0.15,0.05", dtype: str = "float32", delta: float = 1e-4
) -> dict[str, Any]:
    """Show what Gumbel-max with uniforms of a type does to a distribution, drawn at once and in an ancestral step.

    Args:
        probs: Probabilities with commas between, or zipf:<V> for p ∝ 1 / rank.
        dtype: float16, bfloat16, float32 or float64.
        delta: Probability that a masked token is revealed in the ancestral step, in (0, 1).

    Returns:
        The bound M, and for both cases the distribution (of at most 16 classes), entropy in nats and effective
        temperature; for the step also how often it reveals relative to δ.
    """
    check_choice("dtype", dtype, tuple(_TYPES))
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True)
    p = _distribution(probs)
    bound = gumbel_bound(_TYPES[dtype])
    step = truncated_probs(torch.cat([delta * p, torch.tensor([1 - delta], dtype=torch.float64)]), bound)[:-1]
    cases = {"at once": truncated_probs(p, bound), "ancestral step": step / step.sum()}
    result: dict[str, Any] = {
        "bound": bound,
        "entropy": entropy(p),
        "reveals relative to delta": float(step.sum() / delta),
    }
    for name, found in cases.items():
        result[name] = {"entropy": entropy(found), "probs": found[:16].tolist()}
    result["at once"]["effective_temperature"] = effective_temperature(p, bound) if len(p) > 1 else 1.0
    return result


def _distribution(text: str) -> torch.Tensor:
    try:
        if text.startswith("zipf:"):
            p = 1 / torch.arange(1, int(text.removeprefix("zipf:")) + 1, dtype=torch.float64)
            return p / p.sum()
        p = torch.tensor([float(part) for part in text.split(",")], dtype=torch.float64)
    except ValueError:
        raise InputError(f"probs must be numbers with commas between, or zipf:<V>, got {text!r}") from None
    if not bool((p > 0).all()) or abs(float(p.sum()) - 1) > 1e-6:
        raise InputError(f"probs must be positive and sum to 1, got {text!r}")
    return p


def evidence(
    *, model: str, prompt: str, draws: int = 4, seed: int = 0, device: str = "auto", dtype: str = "float32"
) -> dict[str, Any]:
    """Bound the negative log-likelihood of texts under a masked model by the time-free evidence bound.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        prompt: A text, or a file with one text a line.
        draws: Random masks of each number of masks.
        seed: Of the masks.
        device: auto, cpu, cuda or cuda:<n>.
        dtype: Type of the weights.

    Returns:
        Nats of each text, and perplexity over all tokens.
    """
    check_number("draws", draws, low=1, integer=True)
    texts, target = _prompts(prompt), resolve_device(device)
    host, tokenizer, spec = load_host(model, dtype=resolve_dtype(dtype))
    denoiser = host_denoiser(host.to(target), spec)
    generator, nats, tokens = torch.Generator().manual_seed(seed), [], 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]], device=target)
        nats.append(float(elbo(denoiser, ids, spec.mask_id, draws=draws, generator=generator)))
        tokens += ids.shape[1]
    return {"nats": nats, "tokens": tokens, "perplexity": float(torch.tensor(sum(nats) / tokens).exp())}
