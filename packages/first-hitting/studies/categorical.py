"""Time the categorical side of sampling against the straightforward forms.

    python packages/first-hitting/studies/categorical.py --rows 64 --vocabulary 50257

Four comparisons in one process, each pair in turns, all in float64 where the draw is concerned:

- draws: inverting the cumulative sum, and the exponential race, against Gumbel-max, on [rows, vocabulary];
- ancestral steps: drawing only where a token is revealed against drawing at every mask of every step;
- head: running the output head at the one position that is revealed against running it everywhere, end to end;
- loop: one sequence with a small vocabulary, where drawing is the least of the work, against the plainest loop.

Medians in seconds and their ratios are printed as JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from noiseworks.first_hitting import AncestralSettings, Settings, ancestral_sample, fhs_sample, host_denoiser
from noiseworks.first_hitting.categorical import categorical
from noiseworks.kits.masked_lm import aligned_logits, detect_host, make_llada
from torch import Tensor

Form = Callable[[torch.Generator], object]


def draws(rows: int, vocabulary: int, device: str) -> dict[str, Form]:
    """Return the three correct ways to draw one token a row from the same logits."""
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0)).to(device)

    def by(method: str) -> Form:
        return lambda generator: categorical(logits, method, generator=generator)

    return {"gumbel64": by("gumbel64"), "cdf64": by("cdf64"), "exponential": by("exponential")}


def ancestral(length: int, num_steps: int, vocabulary: int, device: str) -> dict[str, Form]:
    """Return ancestral sampling in full and lazily, from a fixed table in place of a network."""
    table = torch.randn(1, length, vocabulary, generator=torch.Generator().manual_seed(0)).to(device)
    canvas = torch.full((1, length), vocabulary, device=device)

    def denoise(tokens: Tensor, times: Tensor | None, positions: Tensor) -> Tensor:
        return table

    def form(lazy: bool) -> Form:
        settings = AncestralSettings(vocabulary, num_steps, method="gumbel64", lazy=lazy)
        return lambda generator: ancestral_sample(denoise, canvas, settings, generator=generator)

    return {"every mask": form(False), "reveals only": form(True)}


def head(length: int, vocabulary: int, device: str) -> dict[str, Form]:
    """Return first-hitting sampling on a small model with the head at every position and at one."""
    ids = {"mask_token_id": vocabulary - 1, "eos_token_id": vocabulary - 2, "pad_token_id": vocabulary - 2}
    model = make_llada(vocabulary, d_model=128, n_layers=4, **ids).to(device)
    spec = detect_host(model)
    canvas, settings = torch.full((1, length), spec.mask_id, device=device), Settings(spec.mask_id)

    def everywhere(tokens: Tensor, times: Tensor | None, positions: Tensor) -> Tensor:
        logits = aligned_logits(model, tokens, spec=spec)
        return logits.gather(1, positions.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))

    one = host_denoiser(model, spec)
    return {
        "every position": lambda generator: fhs_sample(everywhere, canvas, settings, generator=generator),
        "one position": lambda generator: fhs_sample(one, canvas, settings, generator=generator),
    }


def loop(length: int, vocabulary: int, device: str) -> dict[str, Form]:
    """Return first-hitting sampling of one sequence, and the loop that anybody would write for it."""
    ids = {"mask_token_id": vocabulary - 1, "eos_token_id": vocabulary - 2, "pad_token_id": vocabulary - 2}
    model = make_llada(vocabulary, d_model=128, n_layers=4, **ids).to(device)
    spec = detect_host(model)
    canvas, settings = torch.full((1, length), spec.mask_id, device=device), Settings(spec.mask_id)

    @torch.no_grad()
    def plain(generator: torch.Generator) -> Tensor:
        tokens = canvas.clone()
        for _ in range(length):
            logits = model(tokens).logits
            logits[..., spec.mask_id] = -torch.inf
            masked = (tokens[0] == spec.mask_id).nonzero()[:, 0]
            place = masked[torch.randint(len(masked), (1,), generator=generator, device=device)]
            p = logits[0, place].double().softmax(dim=-1)
            tokens[0, place] = torch.multinomial(p, 1, generator=generator)[:, 0]
        return tokens

    one = host_denoiser(model, spec)
    return {
        "plain loop": plain,
        "first-hitting": lambda generator: fhs_sample(one, canvas, settings, generator=generator),
    }


def measure(forms: dict[str, Form], turns: int, device: str) -> dict[str, dict[str, float]]:
    """Return medians in seconds, and each form's speed relative to the first form."""
    # On a CPU the process's own time, which other work on the machine does not count in.
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(turns + 1):
        for name, form in forms.items():
            generator = torch.Generator(device).manual_seed(turn)
            begin = clock()
            form(generator)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                seconds[name].append(clock() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first, *others = medians
    return {"seconds": medians, "times faster": {name: medians[first] / medians[name] for name in others}}


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {
        "rows": 64,
        "vocabulary": 50257,
        "length": 128,
        "steps": 1024,
        "small": 1024,
        "tiny": 512,
        "turns": 3,
    }
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args(words)
    report = {
        "loop": measure(loop(chosen.length, chosen.tiny, chosen.device), chosen.turns, chosen.device),
        "draws": measure(draws(chosen.rows, chosen.vocabulary, chosen.device), chosen.turns, chosen.device),
        "ancestral": measure(
            ancestral(chosen.length, chosen.steps, chosen.small, chosen.device), 1, chosen.device
        ),
        "head": measure(head(32, chosen.vocabulary, chosen.device), 1, chosen.device),
    }
    print(json.dumps(vars(chosen) | report, indent=2))


if __name__ == "__main__":
    main()
