"""Noise as action: identities with SAC, what is stored and distilled, and a frozen policy that stays frozen."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from noiseworks.bench.testbeds.maze import record
from noiseworks.bench.testbeds.maze.environment import MazeEnv, MazeVectorEnv
from noiseworks.core.errors import ArtifactError, InputError, NonFiniteError
from noiseworks.dsrl import training
from noiseworks.dsrl.decoder import check_decoder, noise_dim, sensitivity, untie
from noiseworks.dsrl.hosts import HostDecoder
from noiseworks.dsrl.latent_env import LatentNoiseVecEnv
from noiseworks.dsrl.noise_aliasing import DSRLNA, make_learner, sac_settings
from noiseworks.dsrl.options import Decoding, Learning
from noiseworks.dsrl.steering import BestOfPolicy, SteeredPolicy, steered
from noiseworks.dsrl.training import train
from noiseworks.kits.policies.native import NativePolicy, PolicyConfig
from noiseworks.kits.rl.options import World
from noiseworks.kits.rl.sb3 import GymnasiumVecEnv
from noiseworks.kits.training import open_run
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv

CHUNK = 2
TINY = Learning(warmup=9, batch_size=8, hidden=8, layers=2, utd=2, noise_critic_steps=2, envs=3, seed=5)


class Identity:
    """Actions are the noise itself."""

    noise_shape, chunk, action_dim = (CHUNK, 2), CHUNK, 2

    def decode(self, obs, noise):
        return noise


class Linear(Identity):
    """a = 0.5 w, whatever is seen."""

    def decode(self, obs, noise):
        return 0.5 * noise


def mazes(n=3):
    return GymnasiumVecEnv(MazeVectorEnv(n, "open", reward="step_cost", max_steps=8, chunk=CHUNK))


def policy(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = PolicyConfig(
            obs_dim=4, action_dim=2, horizon=4, n_obs_steps=1, n_action_steps=CHUNK, num_train_timesteps=20,
            down_dims=(8, 16), step_embed_dim=8,
        )  # fmt: skip
        return NativePolicy(config).eval()


def test_sac_over_the_identity_is_sac_bit_for_bit():
    # Each is made and trained at once, as stable-baselines3 draws from the global random state.
    plain = SAC("MlpPolicy", mazes(), **sac_settings(TINY)).learn(60)
    noisy = make_learner(
        LatentNoiseVecEnv(mazes(), Identity(), Decoding(magnitude=1.0)),
        Learning(**(vars(TINY) | {"variant": "sac"})),
    )
    noisy.learn(60)
    assert plain.replay_buffer.pos == noisy.replay_buffer.pos == 20
    np.testing.assert_array_equal(plain.replay_buffer.actions, noisy.replay_buffer.actions)
    np.testing.assert_array_equal(plain.replay_buffer.observations, noisy.replay_buffer.observations)
    ours, theirs = noisy.policy.state_dict(), plain.policy.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(noisy.log_ent_coef, plain.log_ent_coef)


def test_magnitude_scales_what_sac_plays():
    env = LatentNoiseVecEnv(mazes(), Linear(), Decoding(magnitude=1.5))
    assert env.action_space.high.max() == 1.5
    env.reset()
    noise = np.full((3, 4), 1.2, np.float32)
    env.step(noise)
    np.testing.assert_allclose(env.decoded, 0.6)
    env.step(np.full((3, 4), 3.0, np.float32))
    np.testing.assert_allclose(env.decoded, 1.0)  # within the environments' bounds


def test_real_steps_are_counted():
    env = LatentNoiseVecEnv(mazes(), Identity(), Decoding())
    env.reset()
    ended = 0
    for _ in range(6):
        ended += env.step(np.zeros((3, 4), np.float32))[2].sum()
    assert ended == 3  # after four chunks of two steps each
    assert env.steps == env.venv.stepper.steps * CHUNK == 6 * 3 * CHUNK


def test_na_keeps_the_played_chunks_and_its_own_warm_up_noise():
    env = LatentNoiseVecEnv(mazes(), Linear(), Decoding(magnitude=1.0))
    learner = DSRLNA(env, Learning(**(vars(TINY) | {"warmup": 300})))
    learner.learn(270)
    kept = learner.replay_buffer.actions[:90].reshape(-1)
    normal = 0.5 * np.random.default_rng(0).normal(size=100_000)
    assert np.std(kept) == pytest.approx(np.std(np.clip(normal, -1, 1)), rel=0.1)
    assert np.abs(kept).max() == 1.0  # |w| > 2: the warm-up noise is not cut at the magnitude
    for magnitude, share in ((1.0, 0.317311), (1.5, 0.133614)):  # of a normal's noise that lies beyond
        assert math.erfc(magnitude / math.sqrt(2)) == pytest.approx(share, abs=1e-6)
        assert (np.abs(kept) > 0.5 * magnitude).mean() == pytest.approx(share, abs=0.05)


def test_na_holds_recorded_chunks_in_the_scale_of_its_critic():
    learner = make_learner(LatentNoiseVecEnv(mazes(), Linear(), Decoding()), TINY)
    data = record("open", "expert", 33, reward="step_cost")
    learner.add_recorded(data)
    chunks, buffer = data.chunked(CHUNK, stride=1), learner.replay_buffer
    assert buffer.pos == 11
    kept = buffer.actions[:11].reshape(33, -1)
    np.testing.assert_allclose(kept, chunks.actions, atol=1e-6)
    np.testing.assert_allclose(buffer.rewards[:11].reshape(-1), chunks.rewards)
    np.testing.assert_array_equal(buffer.dones[:11].reshape(-1) > 0, chunks.terminals | chunks.timeouts)
    with pytest.raises(InputError, match="numbers"):
        learner.add_recorded(replace(data, actions=data.actions[:, :1]))
    with pytest.raises(InputError, match="no noise"):
        Learning(variant="sac", data="maze:open-expert")


def test_na_learns_and_the_policy_stays_frozen():
    base = policy()
    before = {name: t.clone() for name, t in base.state_dict().items()}
    env = LatentNoiseVecEnv(mazes(), HostDecoder(base, steps=2), Decoding(magnitude=1.5))
    learner = DSRLNA(env, TINY)
    start = [p.clone() for p in learner.actor.parameters()]
    learner.learn(30)
    assert all(torch.equal(before[name], t) for name, t in base.state_dict().items())
    assert all(p.grad is None for p in base.parameters())
    assert not all(torch.equal(a, b) for a, b in zip(start, learner.actor.parameters(), strict=True))
    chosen, _ = learner.predict(np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    assert np.abs(chosen).max() <= 1.5


def test_distillation_makes_the_noise_critic_the_action_critic():
    """With a = w, Q_W(s, w) is to be Q_A(s, w), head by head."""
    learner = DSRLNA(
        LatentNoiseVecEnv(mazes(), Identity(), Decoding(magnitude=1.0)),
        Learning(**(vars(TINY) | {"hidden": 32, "learning_rate": 3e-3})),
    )
    with torch.no_grad():
        for number, net in enumerate(learner.action_critic.q_networks):
            net[-1].bias.fill_(3.0 * (number + 1))  # the two heads are far apart
    obs = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    losses = [learner.distil(obs) for _ in range(400)]
    assert losses[-1] < 0.01 * losses[0]
    noise = torch.rand(256, 4, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    for own, real in zip(learner.critic(obs, noise), learner.action_critic(obs, noise), strict=True):
        torch.testing.assert_close(own, real, atol=0.25, rtol=0)


def test_noise_that_changes_nothing_is_worth_the_same_and_the_actor_spreads():
    """With a constant a, Q_W is constant in w, and only the entropy is left to the actor."""

    class Constant(Identity):
        def decode(self, obs, noise):
            return torch.zeros_like(noise)

    learner = DSRLNA(
        LatentNoiseVecEnv(mazes(), Constant(), Decoding(magnitude=1.0)),
        Learning(**(vars(TINY) | {"hidden": 32, "learning_rate": 3e-3})),
    )
    with torch.no_grad():
        for net in learner.action_critic.q_networks:
            net[-1].bias.fill_(3.0)
    generator = torch.Generator().manual_seed(0)
    obs, noise = torch.randn(256, 4, generator=generator), 2 * torch.rand(256, 4, generator=generator) - 1
    losses = [learner.distil(obs) for _ in range(400)]
    assert losses[-1] < 0.01 * losses[0]
    for own, other in zip(learner.critic(obs, noise), learner.critic(obs, -noise), strict=True):
        torch.testing.assert_close(own, other, atol=0.25, rtol=0)
    before = learner.actor.action_log_prob(obs)[1].mean().item()
    for _ in range(150):
        u, log_prob = learner.actor.action_log_prob(obs)
        worth = learner.combine(learner.critic(obs, u))
        learner._step(learner.actor.optimizer, (log_prob.reshape(-1, 1) - worth).mean())
    highest = 4 * math.log(2)  # uniform in the box
    after = -learner.actor.action_log_prob(obs)[1].mean().item()
    assert -before < after <= highest + 0.05
    assert after > highest - 0.5


def test_target_of_the_action_critic_is_its_formula(monkeypatch):
    env = LatentNoiseVecEnv(mazes(), Linear(), Decoding(magnitude=1.5))
    learner = DSRLNA(env, TINY)
    learner.learn(9)
    batch = learner.replay_buffer.sample(8)
    seen = {}
    monkeypatch.setattr(
        learner, "_step", lambda optimizer, loss: seen.setdefault(id(optimizer), loss.detach())
    )
    state = torch.get_rng_state()
    learner._learn(batch)
    torch.set_rng_state(state)
    with torch.no_grad():
        learner.actor.action_log_prob(batch.observations)
        u, log_prob = learner.actor.action_log_prob(batch.next_observations)
        action = (0.5 * 1.5 * u).clamp(-1, 1)
        least = torch.cat(learner.action_critic_target(batch.next_observations, action), 1).amin(1)
        y = batch.rewards[:, 0] + (1 - batch.dones[:, 0]) * 0.99 * (least - log_prob)  # temperature 1
        values = learner.action_critic(batch.observations, batch.actions)
        expected = 0.5 * sum(((q[:, 0] - y) ** 2).mean() for q in values)
    torch.testing.assert_close(seen[id(learner.action_optimizer)], expected)


def test_actor_finds_the_noise_of_the_best_action():
    """Q_A = -(a - 0.3)^2 and a = 0.5 w: the best noise is 0.6, and 1 (the edge) where the best action is 0.9."""
    for best, noise in ((0.3, 0.6), (0.9, 1.0)):
        learner = DSRLNA(
            LatentNoiseVecEnv(mazes(), Linear(), Decoding(magnitude=1.0)),
            Learning(**(vars(TINY) | {"hidden": 32, "learning_rate": 1e-2, "target_entropy": -8.0})),
        )
        learner.critic.forward = lambda obs, u, best=best: (
            2 * (-((0.5 * u - best) ** 2).sum(1, keepdim=True),)
        )
        obs = torch.zeros(64, 4)
        for _ in range(250):
            u, log_prob = learner.actor.action_log_prob(obs)
            learner._step(
                learner.actor.optimizer,
                (0.001 * log_prob.reshape(-1, 1) - learner.combine(learner.critic(obs, u))).mean(),
            )
        found = steered(learner, deterministic=True)
        mean = learner.actor(obs[:1], deterministic=True)
        torch.testing.assert_close(mean, torch.full_like(mean, noise), atol=0.12, rtol=0)
        np.testing.assert_allclose(found.act(obs[:1].numpy()).reshape(-1), 0.5 * mean[0].detach(), atol=1e-6)


def test_a_policy_decodes_as_diffusers_samples():
    base = policy()
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(base.scheduler.config)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [16, 12, 8, 4, 0]
    scheduler.set_timesteps(8)
    assert scheduler.timesteps.tolist() == [14, 12, 10, 8, 6, 4, 2, 0]
    scheduler.set_timesteps(5)
    obs = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    noise = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0))
    x = noise.clone()
    with torch.no_grad():
        cond = base.encode({"obs": torch.from_numpy(obs)[:, None]})
        for k in scheduler.timesteps:
            x = scheduler.step(base.denoise(x, k.expand(6), cond), k, x).prev_sample
    decoder = HostDecoder(base, steps=5)
    check_decoder(decoder, obs)
    torch.testing.assert_close(decoder.decode(obs, noise), x[:, :CHUNK], atol=1e-5, rtol=1e-5)


def test_steered_policies_are_saved(tmp_path):
    decoder = HostDecoder(policy(), steps=2)
    learner = DSRLNA(LatentNoiseVecEnv(mazes(), decoder, Decoding(magnitude=1.2, tie="repeat")), TINY)
    learner.learn(12)
    obs = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
    steered(learner).save_pretrained(tmp_path / "actor")
    loaded = SteeredPolicy.from_pretrained(tmp_path / "actor", decoder, seed=4)
    np.testing.assert_array_equal(loaded.act(obs), steered(learner, seed=4).act(obs))
    free = SteeredPolicy(decoder, seed=4)
    assert np.abs(free.act(obs) - loaded.act(obs)).max() > 0
    with pytest.raises(InputError, match="no noise actor"):
        free.save_pretrained(tmp_path / "none")
    with pytest.raises(ArtifactError, match="starts noise"):
        SteeredPolicy.from_pretrained(tmp_path / "actor", Identity())


def test_tied_noise_is_the_same_at_every_step():
    noise = torch.randn(5, 2)
    assert torch.equal(untie(noise, (4, 2), "repeat"), noise[:, None].expand(5, 4, 2))
    assert (noise_dim((4, 2), "repeat"), noise_dim((4, 2), "none")) == (2, 8)
    assert torch.equal(untie(torch.arange(8.0)[None], (4, 2), "none")[0, 1], torch.tensor([2.0, 3.0]))


def test_what_noise_decides_is_told_for_each_observation():
    class Half(Identity):  # half the noise where the first number is 1, nothing of it where it is 0
        def decode(self, obs, noise):
            return 0.5 * noise * torch.as_tensor(obs["x"][:, :1, None])

    seen = {"x": np.array([[1.0], [0.0]], np.float32)}
    found = sensitivity(Half(), seen, draws=400)
    torch.testing.assert_close(found.slope, torch.tensor([0.5, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.spread, torch.tensor([0.5, 0.0]), atol=0.03, rtol=0)
    tied = sensitivity(Linear(), np.zeros((1, 4), np.float32), draws=50, tie="repeat")
    assert tied.slope.item() == pytest.approx(0.5 * math.sqrt(CHUNK), abs=1e-4)


class Random(Identity):
    def decode(self, obs, noise):
        return torch.rand_like(noise)


class Short(Identity):
    def decode(self, obs, noise):
        return noise[:, :1]


def test_what_cannot_be_steered_is_refused():
    with pytest.raises(InputError, match="not deterministic"):
        LatentNoiseVecEnv(mazes(), Random()).reset()
    with pytest.raises(InputError, match=r"\(3, 1, 2\)"):
        LatentNoiseVecEnv(mazes(), Short()).reset()
    with pytest.raises(InputError, match="ActionChunk"):
        LatentNoiseVecEnv(DummyVecEnv([MazeEnv]), Identity())
    with pytest.raises(InputError, match="LatentNoiseVecEnv"):
        DSRLNA(mazes())
    with pytest.raises(InputError, match="training mode"):
        HostDecoder(policy().train())
    with pytest.raises(InputError, match="magnitude"):
        Decoding(magnitude=0.0)


def test_layer_norm_stands_before_every_activation_and_is_saved_with_the_actor(tmp_path):
    env = LatentNoiseVecEnv(mazes(), HostDecoder(policy(), 2), Decoding())
    learner = make_learner(env, replace(TINY, layer_norm=True))
    kinds = [type(layer).__name__ for layer in learner.actor.latent_pi]
    assert kinds == ["Linear", "LayerNorm", "Tanh"] * TINY.layers
    for critic in (
        learner.critic,
        learner.critic_target,
        learner.action_critic,
        learner.action_critic_target,
    ):
        for head in critic.q_networks:
            assert [type(layer).__name__ for layer in head] == [
                "Linear",
                "LayerNorm",
                "Tanh",
            ] * TINY.layers + ["Linear"]
    trained = {id(p) for group in learner.critic.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in learner.critic.parameters()}
    assert torch.equal(learner.action_critic.qf0[1].weight, learner.action_critic.q_networks[0][1].weight)
    learner.learn(24)
    found = steered(learner, deterministic=True)
    found.save_pretrained(tmp_path / "actor")
    again = SteeredPolicy.from_pretrained(tmp_path / "actor", found.decoder, deterministic=True)
    obs = np.zeros((2, 4), np.float32)
    np.testing.assert_array_equal(found.act(obs), again.act(obs))


def test_the_best_of_n_is_what_the_critic_of_actions_likes_best():
    learner = make_learner(LatentNoiseVecEnv(mazes(), Linear(), Decoding()), TINY)

    class Likes(torch.nn.Module):
        def forward(self, obs, actions):
            value = -(actions - obs[:, :1]).square().sum(1, keepdim=True)
            return value, value + 5

    learner.action_critic = Likes()
    obs = np.array([[0.4, 0, 0, 0], [-0.4, 0, 0, 0]], np.float32)
    one, many = (BestOfPolicy(learner, n, seed=0).act(obs) for n in (1, 2000))
    assert many.shape == (2, CHUNK, 2)
    near, far = (np.square(found.reshape(2, -1) - obs[:, :1]).sum(1) for found in (many, one))
    assert (near < 0.1).all()
    assert (far > near).all()
    with pytest.raises(InputError, match="candidates"):
        BestOfPolicy(learner, 0)


@pytest.mark.parametrize("variant", ["na", "sac"])
def test_a_reward_that_is_nan_stops_with_the_last_checkpoint(tmp_path, monkeypatch, variant):
    class Broken(MazeVectorEnv):
        resets = 0

        def reset(self, **settings):
            type(self).resets += 1
            return super().reset(**settings)

        def step(self, actions):
            seen, reward, *rest = super().step(actions)
            return (seen, reward * math.nan if self.resets > 2 else reward, *rest)

    monkeypatch.setattr(
        training,
        "make_env",
        lambda *args, **kw: Broken(3, "open", reward="step_cost", max_steps=4, chunk=CHUNK),
    )
    learning = replace(TINY, variant=variant, decisions=30, round_decisions=6, checkpoint_every=0)
    with open_run(tmp_path / "run", {"learning": learning}) as run:
        with pytest.raises(NonFiniteError, match="reward"):
            train(HostDecoder(policy(), 2), World("maze:open"), Decoding(), learning, run)
        assert torch.load(run.last, weights_only=True)["step"] == 2


def test_training_leaves_the_global_random_states_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    train(HostDecoder(policy(), 2), World("maze:open", 6), Decoding(), replace(TINY, decisions=12))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])
