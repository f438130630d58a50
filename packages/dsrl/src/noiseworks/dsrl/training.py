"""Training and evaluation of a steered policy."""

from noiseworks.dsrl.decoder import NoiseDecoder
from noiseworks.dsrl.latent_env import LatentNoiseVecEnv
from noiseworks.dsrl.noise_aliasing import make_learner
from noiseworks.dsrl.options import Decoding, Evaluation, Learning
from noiseworks.dsrl.steering import SteeredPolicy
from noiseworks.kits.rl.options import Recorded, World
from noiseworks.kits.rl.sb3 import GymnasiumVecEnv
from noiseworks.kits.rl.sources import load_data, make_env
from noiseworks.kits.rl.stepping import EpisodeReport, evaluate_returns
from stable_baselines3 import SAC


def train(decoder: NoiseDecoder, world: World, decoding: Decoding, learning: Learning) -> tuple[SAC, int]:
    """Return a learner that has decided `learning.decisions` chunks, and the environment steps that those took.

    Args:
        decoder: The frozen policy.
        world: The environment.
        decoding: Magnitude and ties of the noise.
        learning: Settings.
    """
    venv = GymnasiumVecEnv(make_env(world, learning.envs, needs="dsrl", chunk=decoder.chunk))
    env = LatentNoiseVecEnv(venv, decoder, decoding)
    learner = make_learner(env, learning)
    if learning.data is not None:
        recorded = Recorded(learning.data, learning.record_steps, 0, world.episode_steps, world.reward)
        learner.add_recorded(load_data(recorded, needs="dsrl"))
    learner.learn(learning.decisions)
    return learner, env.steps


def evaluate(policy: SteeredPolicy, world: World, evaluation: Evaluation) -> EpisodeReport:
    """Return the episodes of a policy; lengths count chunks."""
    env = make_env(
        world, min(evaluation.together, evaluation.episodes), needs="dsrl", chunk=policy.decoder.chunk
    )
    return evaluate_returns(env, policy.act, evaluation.episodes, evaluation.evaluation_seed)
