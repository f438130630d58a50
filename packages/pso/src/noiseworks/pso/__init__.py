"""PSO (arXiv 2410.03190): tuning few-step distilled pipelines on pairs, at the timesteps of their own sampler.

Read `objective` (labels and the three losses), `samplers` (the few-step sampler of a pipeline), `training` (online, on
given pairs, and on pictures of a subject), then `commands`. Steps, rollouts and the loop are those of
`noiseworks.kits.image_tuning`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
