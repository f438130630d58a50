"""Tuning text-to-image pipelines by rewards and preferences: what such methods have in common.

Read `options`, `steps` (one reverse step and its log-probability), `chain` (the steps of one sampler), `policy` (a
pipeline's denoiser as the policy of that chain), `trajectories`, `preferences` and `policy_gradient` (the algebra),
`rewards`, `adapters`, then `tuner` (the loop) and `ddpo`, the common baseline, which is also the example of a method;
`evaluation` and `reports` try what came of it.
See the guide "Write a tuning method".
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
