"""Testbed `metaworld`: tasks of the Meta-World simulator with state observations, through the extra `[metaworld]`.

`MetaWorldBatch` steps several environments of one task; nothing trained on it ships: `noiseworks bench
train-testbed metaworld-reach-v3` trains a policy on the simulator's scripted expert.
"""

from noiseworks.bench.testbeds.metaworld.datasets import demonstrations
from noiseworks.bench.testbeds.metaworld.simulation import TASKS, MetaWorldBatch

__all__ = ["TASKS", "MetaWorldBatch", "demonstrations"]
