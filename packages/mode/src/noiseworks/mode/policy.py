"""`EDMPolicy`: a MoDE model in a control loop, ten denoiser calls a replan, all actions executed open loop."""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.params import edm_preconditioning
from noiseworks.kits.policies.loop import randn
from noiseworks.kits.policies.protocols import Generators
from noiseworks.kits.policies.replanning import ReplanningPolicy
from noiseworks.mode.caching import CacheReport, ExpertCache, usage_table
from noiseworks.mode.config import Form, Grid
from noiseworks.mode.edm import sample, sampling_sigmas
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.network import Condition
from torch import Tensor


@lru_cache(maxsize=4096)
def coefficients(sigma: float, sigma_data: float) -> tuple[float, float, float]:
    """Return c_skip, c_out and c_in of a noise level."""
    c = edm_preconditioning(torch.tensor(sigma, dtype=torch.float64), sigma_data)
    return float(c.c_skip), float(c.c_out), float(c.c_in)


class EDMPolicy(ReplanningPolicy):
    """Samples a chunk of actions by DDIM and executes all of it before it replans.

    Args:
        model: The trained model; put into evaluation mode.
        num_inference_steps: Noise levels of the sampler.
        grid: How they are spaced.
        guidance_scale: Above 1, classifier-free guidance against the empty goal: twice the network calls, and for
            models that were trained with `goal_dropout_mode="sample"`.
        num_envs: Environments that it acts in.
        n_action_steps: Actions executed of each prediction; all by default.
        seed: Seed of the noise of environments whose reset names none.

    Raises:
        InputError: When an argument is out of range.
    """

    def __init__(
        self,
        model: MoDEModel,
        *,
        num_inference_steps: int = 10,
        grid: Grid = "exponential",
        guidance_scale: float = 1.0,
        num_envs: int = 1,
        n_action_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        check_number("guidance_scale", guidance_scale, low=0)
        config = model.config
        levels = sampling_sigmas(
            num_inference_steps, grid=grid, sigma_min=config.sigma_min, sigma_max=config.sigma_max
        )
        self.sigmas: list[float] = levels.tolist()
        super().__init__(model.eval(), num_envs=num_envs, n_action_steps=n_action_steps, seed=seed)
        self.model, self.guidance_scale = model, guidance_scale
        self.cache: ExpertCache | None = None
        self._compiled: Callable[..., Tensor] | None = None

    def cache_experts(self, num_steps: int | None = None, form: Form = "merged") -> CacheReport:
        """Merge the experts of every noise level of the sampler, in place of routing; exact.

        Args:
            num_steps: The sampler's steps, to be sure of them; by default whatever the sampler has.
            form: merged or bmm; see `ExpertCache`.

        Raises:
            InputError: When the model is dense or not routed by noise, or the sampler has other steps.
        """
        check_choice("form", form, ("merged", "bmm"))
        if num_steps is not None and num_steps != len(self.sigmas) - 1:
            raise InputError(
                f"the cache must be of the sampler's {len(self.sigmas) - 1} steps, got {num_steps}; set "
                "num_inference_steps of the policy"
            )
        self.cache = ExpertCache(self.model.denoiser, self.sigmas[:-1], form)
        return self.cache.report()

    def compile(self, backend: str = "inductor", mode: str | None = None) -> None:
        """Compile the network for calls whose experts are known: cached steps, or those of a dense model.

        One graph serves all steps, as merged weights are its inputs; another batch size compiles again, and so does
        the first replan. Routed calls depend on how many tokens each expert gets, and stay as they are.

        Args:
            backend: Of `torch.compile`: `inductor` needs a C++ compiler on a CPU; `cudagraphs` replays the eager
                kernels on a GPU.
            mode: Of `torch.compile`, such as `reduce-overhead` or `max-autotune`.

        Raises:
            InputError: When the backend is unknown, or experts are neither cached nor the model dense.
        """
        check_choice("backend", backend, sorted(torch.compiler.list_backends(exclude_tags=())))
        if self.cache is None and not self.model.config.dense:
            raise InputError("routed calls cannot be compiled as one graph: call cache_experts() first")
        self._compiled = torch.compile(self.model.denoiser, backend=backend, mode=mode, dynamic=False)

    def clear_cache(self) -> None:
        """Go back to routing."""
        self.cache = None

    def expert_usage(self) -> Tensor:
        """Return the weight of every expert at every step, [layers, steps, experts]; 0 where it is not chosen."""
        return usage_table(self.model.denoiser, self.sigmas[:-1])

    def freeze_routers(self) -> None:
        """Stop the routers from training."""
        self.model.freeze_routers()

    @torch.inference_mode()
    def denoise(self, x: Tensor, sigma: float | Tensor, cond: Condition) -> Tensor:
        """Return D(a; sigma, s, g) at one noise level, through the cache where there is one.

        Args:
            x: Noisy actions [B, T, A].
            sigma: The level: a number, or a tensor [B] whose entries are equal.
            cond: Of the model's `encode`.

        Raises:
            InputError: When levels differ (use `model.denoise`) or are not above 0.
        """
        if isinstance(sigma, Tensor):
            if not bool((sigma == sigma.reshape(-1)[0]).all()):
                raise InputError("a cached step needs one noise level for all rows; model.denoise mixes them")
            sigma = self._nearest(float(sigma.reshape(-1)[0]))
        check_number("sigma", sigma, low=0, low_open=True)
        if self.cache is not None:
            self.cache.refresh()
        return self._denoise(x, sigma, self.model.denoiser.context(cond))

    def _nearest(self, sigma: float) -> float:
        # A level that passed through float32 is the grid's again.
        near = min(self.sigmas[:-1], key=lambda level: abs(level - sigma))
        return near if abs(near - sigma) <= 1e-6 * near else sigma

    def _denoise(self, x: Tensor, sigma: float, context: Tensor) -> Tensor:
        denoiser = self.model.denoiser
        step = None
        if self.cache is not None:
            step = self.cache.look_up(sigma)
            if step is None:
                warnings.warn(
                    f"the noise level {sigma:g} is not in the expert cache: the call is routed", stacklevel=3
                )
        n = denoiser.noise_embedding(torch.tensor([sigma], device=x.device)) if step is None else step.n
        c_skip, c_out, c_in = coefficients(sigma, self.model.config.sigma_data)
        known = step is not None or self.model.config.dense
        network = self._compiled if known and self._compiled is not None else denoiser
        out = network(c_in * x, n, context, merged=None if step is None else step.merged)
        return c_skip * x + c_out * out.float()

    @torch.no_grad()
    def plan(
        self, cond: Condition, ids: Sequence[int] | None, generator: Generators, rows: int
    ) -> tuple[Tensor, int]:
        """Return a prediction from fresh noise of scale sigma_max."""
        if self.cache is not None:
            self.cache.refresh()
        shape = (rows, self.model.config.chunk, self.model.config.action_dim)
        contexts = [self.model.denoiser.context(cond)]
        if self.guidance_scale != 1:
            empty = cond._replace(goal=torch.zeros_like(cond.goal))
            contexts.append(self.model.denoiser.context(empty))
        calls = 0

        def denoise(x: Tensor, sigma: float) -> Tensor:
            nonlocal calls
            calls += len(contexts)
            found = [self._denoise(x, sigma, context) for context in contexts]
            return found[0] if len(found) == 1 else found[1] + self.guidance_scale * (found[0] - found[1])

        start = self.sigmas[0] * randn(shape, generator, like=contexts[0])

        return sample(denoise, start, self.sigmas), calls
