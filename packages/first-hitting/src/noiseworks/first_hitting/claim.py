"""The claim: first-hitting sampling is many times faster than ancestral sampling, at the same distribution.

Time is measured on a small LLaDA host with a vocabulary of 4,096 (it does not depend on the weights), quality on a
source of text whose exact conditionals are the denoiser, so that the likelihood of a sample is exact.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import (
    Arm,
    Claim,
    Context,
    Floor,
    Measurement,
    Scale,
    at_least,
    at_most,
    no_worse,
)

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.countdown.chain import MarkovText
    from noiseworks.kits.masked_lm import HostSpec
    from torch import nn

SOURCE_TOKENS = 24
GRID = ((32, (32, 128, 512, 4096)), (128, (128, 1024)))  # lengths, each with numbers of time steps T


@dataclass
class Shared:
    """What the arms of a seed share: the timed host and its contract, the source of text, the seed."""

    host: "nn.Module"
    spec: "HostSpec"
    text: "MarkovText"
    seed: int


def prepare(seed: int, context: Context) -> Shared:
    """Make the timed host (or load the user's), and the source, whose own seed is fixed as a language is."""
    from noiseworks.bench.testbeds.countdown.chain import make_chain
    from noiseworks.kits.masked_lm import detect_host, load_host, make_llada

    if context.model is not None:
        host, _, spec = load_host(context.model)
    else:
        vocabulary = context.settings["vocabulary"]
        ids = {f"{name}_token_id": vocabulary - 2 for name in ("eos", "pad")}
        host = make_llada(vocabulary, d_model=128, n_layers=4, mask_token_id=vocabulary - 1, **ids)
        spec = detect_host(host)
    return Shared(
        host.to(context.device), spec, make_chain(SOURCE_TOKENS, seed=0, classes=SOURCE_TOKENS), seed
    )


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm on one seed: seconds on the host, likelihood and entropy on the source."""
    import torch
    from noiseworks.first_hitting.metrics import unigram_entropy
    from noiseworks.first_hitting.source import curves, own_nats, texts
    from noiseworks.first_hitting.timing import over_steps, time_arm
    from noiseworks.first_hitting.transformers import host_denoiser

    sizes, mask_id = context.settings, shared.spec.mask_id
    denoiser = host_denoiser(shared.host, shared.spec)
    canvas = torch.full((1, sizes["length"]), mask_id, device=context.device)
    seconds, network, calls = time_arm(arm, denoiser, canvas, mask_id, sizes["steps"], shared.seed)
    context.progress(1, 2, "likelihood")
    # The float64 baseline is drawn in its lazy form, which has the same distribution; the naive arm is in no target,
    # and its draws at every mask cost the most.
    samples = sizes["naive_samples" if arm == "ancestral32" else "samples"]
    drawn = "lazy" if arm == "ancestral" else arm
    tokens = texts(drawn, shared.text, samples, sizes["quality_steps"], shared.seed)
    metrics = {
        "seconds": seconds,
        "categorical": seconds - network,
        "calls": float(calls),
        "nll": (-shared.text.log_likelihood(tokens) / tokens.shape[1]).tolist(),
        "entropy": unigram_entropy(tokens).tolist(),
    }
    if arm == "parallel" and sizes["curve"]:
        return Measurement(
            metrics,
            series=curves(shared.text, sizes["curve"], shared.seed),
            notes=(own_nats(shared.text, shared.seed),),
        )
    series = {}
    if arm in ("ancestral", "lazy", "fhs"):
        series = over_steps(arm, denoiser, sizes["grid"], context.device, mask_id, shared.seed)
    timed = (
        f"Seconds are those of {sizes['length']} tokens; ancestral sampling has T = {sizes['steps']} steps."
    )
    return Measurement(metrics, series=series, notes=(timed,) if arm == "ancestral" else ())


def sizes(
    steps: int, vocabulary: int, length: int, samples: int, naive: int, curve: int = 0, grid: Any = None
) -> dict[str, Any]:
    """Return the settings of a scale: T and length on the host, samples of the source, T by length for curves."""
    return {
        "steps": steps,
        "vocabulary": vocabulary,
        "length": length,
        "samples": samples,
        "naive_samples": naive,
        "quality_steps": min(steps, 4096),
        "curve": curve,
        "grid": grid or (),
    }


CLAIM = Claim(
    method="first-hitting",
    paper="Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit Inaccurate Categorical "
    "Sampling (ICLR 2025, arXiv 2409.02908)",
    statement="First-hitting sampling draws from the same distribution as ancestral sampling, up to 20 times faster.",
    testbed="countdown",
    arms=(
        Arm("ancestral", "ancestral, float64 Gumbel", "baseline"),
        Arm("ancestral32", "ancestral, float32 Gumbel", "naive"),
        Arm("lazy", "ancestral, draws only at reveals", "reference"),
        Arm("fhs", "first-hitting", "method"),
        Arm("parallel", "first-hitting, 4 tokens a call", "method"),
    ),
    targets=(
        at_most("seconds", "fhs", "ancestral", ratio=1 / 5, name="seconds, end to end"),
        at_most("categorical", "fhs", "ancestral", ratio=1 / 20, name="seconds in categorical draws"),
        no_worse("nll", "fhs", "ancestral", by=0.05, better="lower", name="exact NLL not above"),
        at_least("nll", "fhs", "ancestral", difference=-0.05, guard=True, name="exact NLL not below"),
    ),
    scales={
        "smoke": Scale((500,), 300, sizes(8, 256, 8, samples=4, naive=4, grid=((8, (8, 16)),))),
        "quick": Scale((500,), 120, sizes(512, 4096, 16, samples=64, naive=64) | {"quality_steps": 256}),
        "laptop": Scale(
            (1000, 1001, 1002), 900, sizes(4096, 4096, 32, samples=512, naive=64, curve=64, grid=GRID)
        ),
        "full": Scale(
            (1000, 1001, 1002),
            36_000,
            sizes(4096, 50257, 1024, samples=2048, naive=256, curve=256, grid=((1024, (1024, 4096)),)),
        ),
    },
    prepare=prepare,
    model_kind="language model",
    run=run,
    preconditions=(
        Floor(
            "ancestral",
            "categorical",
            0.5,
            "categorical draws are only {:.0%} of the baseline's time on this host",
            over="seconds",
        ),
    ),
    units="sample",
    columns={
        "seconds": "seconds a sequence",
        "categorical": "of which not network",
        "calls": "network calls",
        "nll": "exact nats a token",
        "entropy": "unigram entropy",
    },
    version=2,
)
