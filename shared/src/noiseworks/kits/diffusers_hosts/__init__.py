"""What methods that attach to a diffusers pipeline share: row layouts, denoiser hooks, noise levels, models.

- `layouts`: which rows or calls of the denoiser are conditional and which are not, per pipeline family.
- `hooks`: `DenoiserHook`, the base of hooks on the UNet or transformer, and how it is attached.
- `runs`: which run a call belongs to, in pipelines that share a denoiser, nest or run in threads.
- `conditions`: encoding other prompts as the host does and putting them in place of its own.
- `forecasts`: the guided prediction and x_0 at a call, decoding, classifier and energy guidance.
- `rows`: selecting batch rows in nested arguments; reading and replacing the prediction in an output.
- `levels`: the noise level (alpha, sigma) at a timestep, and conversions between prediction types.
- `options`, `drawing`: the options of drawing, batches with one seed a sample, the folder of a run.
- `loading`: `load_pipeline` for a directory, a hub id or `testbed:<name>`; per-sample generators.
- `units`, `pruned_denoiser`: attention heads and feed-forward neurons, masked or removed for good.
- `recording`: what a pipeline feeds its denoiser at one step.
- `through`: gradients through a whole run, with the memory of one step.
- `tiny`, `tokenizers`: random pipelines of every family, built in a second without a download.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
