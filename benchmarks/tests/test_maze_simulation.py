"""The maze's maps, motion, rewards and behaviours have the figures that they are defined by."""

import time

import numpy as np
import pytest
from noiseworks.bench.testbeds.maze import (
    MAPS,
    Behaviour,
    MazeBatch,
    advance,
    make_layout,
    measure_returns,
    references,
)
from noiseworks.bench.testbeds.maze.simulation import GOAL_RADIUS, RADIUS
from noiseworks.core.errors import InputError

# Means and standard errors of 1000 episodes.
EXPERT_SPARSE = {
    "open": (85.58, 0.22),
    "umaze": (134.07, 0.27),
    "medium": (220.19, 0.40),
    "large": (257.93, 0.60),
    "fork": (44.45, 0.02),
}
RANDOM_SPARSE = {
    "open": (3.58, 0.38),
    "umaze": (10.19, 0.83),
    "medium": (6.72, 0.71),
    "large": (4.05, 0.61),
    "fork": (0.0, 0.0),
}
EXPERT_COST = {
    "open": (-14.42, 0.22),
    "umaze": (-15.93, 0.27),
    "medium": (-29.81, 0.40),
    "large": (-42.07, 0.60),
    "fork": (-55.55, 0.02),
}
RANDOM_COST = {
    "open": (-92.23, 0.69),
    "umaze": (-132.84, 1.25),
    "medium": (-229.06, 1.90),
    "large": (-286.00, 1.80),
    "fork": (-100.0, 0.0),
}


def started(n=1, layout="umaze", **options):
    env = MazeBatch(n, layout, **options)
    env.reset(np.arange(n), np.zeros(n, int), np.arange(n))
    return env


@pytest.mark.parametrize(
    ("name", "free", "longest", "steps"),
    [
        ("open", 15, 6, 100),
        ("umaze", 7, 6, 150),
        ("medium", 26, 10, 250),
        ("large", 46, 18, 300),
        ("fork", 28, 14, 100),
    ],
)
def test_maps_have_their_cells_and_paths(name, free, longest, steps):
    layout = make_layout(name)
    assert (len(layout.cells), layout.max_steps) == (free, steps)
    assert layout.distances[layout.cell_index(layout.goal)].max() == longest


def test_fork_has_a_short_and_a_long_way():
    layout = make_layout("fork")
    start, goal = layout.starts[0], layout.cell_index(layout.goal)
    lengths = [
        layout.distances[layout.cell_index(way), start] + layout.distances[goal, layout.cell_index(way)]
        for way in ((1, 5), (7, 5))
    ]
    assert lengths == [12, 16]


def test_next_cells_lead_along_a_shortest_path():
    layout = make_layout("large")
    count = np.arange(len(layout.cells))
    for target in count:
        step = layout.distances[target, count] - layout.distances[target, layout.next_cell[target]]
        np.testing.assert_array_equal(step, count != target)


def test_motion_is_the_closed_form_until_the_wall_stops_it():
    env = started()
    env.states[0] = 1.5, 3.5, 0.0, 0.0
    for _ in range(10):
        env.step(np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(env.states[0], [3.42884902, 3.5, 3 * (1 - 0.8**10), 0.0], atol=5e-9)
    for _ in range(10):
        env.step(np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(env.states[0], [3.849999, 3.5, 0.0, 0.0], atol=1e-12)


def test_motion_upwards():
    env = started()
    env.states[0] = 1.5, 3.5, 0.0, 0.0
    heights = []
    for _ in range(3):
        env.step(np.array([[0.0, -1.0]]))
        heights.append(env.states[0, 1])
    np.testing.assert_allclose(heights, [3.44, 3.332, 3.1856], atol=1e-12)


@pytest.mark.parametrize("name", list(MAPS))
def test_no_corner_is_ever_inside_a_wall(name):
    env = started(1000, name)
    rng, walls = np.random.default_rng(0), env.layout.walls
    for step in range(200):
        # Long pushes reach the walls at full speed, single random ones hardly do.
        if step % 7 == 0:
            push = rng.uniform(-1, 1, (1000, 2)) * rng.choice([1, 8], (1000, 1))
        env.step(push)
        for a in (-RADIUS, RADIUS):
            for b in (-RADIUS, RADIUS):
                x, y = (env.states[:, :2] + (a, b)).astype(int).T
                assert not walls[y, x].any()


def test_open_is_symmetric_under_reflection():
    """The map without its goal is; so are the paths of mirrored pushes."""
    rng, walls = np.random.default_rng(1), make_layout("open").walls
    states = np.zeros((500, 4))
    states[:, 0], states[:, 1] = rng.uniform(1.2, 5.8, 500), rng.uniform(1.2, 3.8, 500)
    mirrored = states * (-1, 1, -1, 1) + (7, 0, 0, 0)
    for _ in range(60):
        push = rng.uniform(-1, 1, (500, 2))
        states, mirrored = advance(walls, states, push), advance(walls, mirrored, push * (-1, 1))
        np.testing.assert_allclose(mirrored, states * (-1, 1, -1, 1) + (7, 0, 0, 0), atol=1e-9)


def test_rows_depend_on_their_own_seed_alone():
    options = {"layout": "medium", "process_noise": 0.1}
    many = MazeBatch(5, **options)
    many.reset(np.arange(5), np.zeros(5, int), np.arange(10, 15))
    rng, pushes = np.random.default_rng(2), []
    for _ in range(50):
        pushes.append(rng.uniform(-1, 1, (5, 2)))
        many.step(pushes[-1])
    for row in range(5):
        one = MazeBatch(1, **options)
        one.reset(np.zeros(1, int), np.zeros(1, int), np.array([10 + row]))
        for push in pushes:
            one.step(push[row : row + 1])
        np.testing.assert_array_equal(one.states[0], many.states[row])


def test_process_noise_shakes_the_velocity():
    env = started(2000, "medium", process_noise=0.3)
    env.states[:] = *env.layout.centre(env.goals[0]), 0.0, 0.0
    env.step(np.zeros((2000, 2)))
    assert env.states[:, 2:].std() == pytest.approx(0.3, abs=0.02)


def test_starts_lie_near_the_centres_of_all_cells_but_the_goal():
    env = started(3000, "umaze")
    away = np.abs(env.states[:, :2] % 1 - 0.5)
    assert away.max() <= 0.1
    assert away.max() > 0.099
    counts = np.bincount(
        env.layout.index[(env.states[:, 1].astype(int) * 5 + env.states[:, 0].astype(int))], minlength=7
    )
    assert counts[env.goals[0]] == 0
    assert counts.sum() == 3000
    assert abs(counts[counts > 0] - 500).max() < 90
    assert (started(100, "fork").states[:, :2].astype(int) == (1, 3)).all()


def test_sparse_return_counts_the_steps_on_the_goal():
    env = started(1, "open")
    centre = env.layout.centre(env.goals)[0]
    env.states[0, :2] = centre
    assert [env.step(np.zeros((1, 2))).reward[0] for _ in range(7)] == [1.0] * 7
    env.states[0, :2] = centre - (GOAL_RADIUS + 0.01, 0)
    assert env.step(np.zeros((1, 2))).reward[0] == 0


def test_dense_and_cost_rewards():
    env = started(1, "open", reward="dense")
    env.states[0, :2] = env.layout.centre(env.goals)[0] - (2.0, 0)
    assert env.step(np.zeros((1, 2))).reward[0] == pytest.approx(np.exp(-2.0))
    env = started(1, "open", reward="step_cost")
    env.states[0, :2] = env.layout.centre(env.goals)[0] - (0.55, 0)
    assert env.step(np.zeros((1, 2))) == (-1.0, False, False)
    assert env.step(np.array([[1.0, 0.0]])) == (0.0, True, False)


def test_an_episode_that_terminates_is_not_also_truncated():
    env = started(1, "fork", reward="step_cost", max_steps=1)
    env.states[0, :2] = env.layout.centre(env.goals)[0]
    assert env.step(np.zeros((1, 2))) == (0.0, True, False)
    env = started(1, "fork", reward="step_cost", max_steps=1)
    assert env.step(np.zeros((1, 2))) == (-1.0, False, True)


def test_mazes_that_are_not_active_stand_still():
    env = started(4, "open")
    before = env.states.copy()
    result = env.step(np.ones((4, 2)), np.array([True, False, True, False]))
    np.testing.assert_array_equal(env.states[[1, 3]], before[[1, 3]])
    assert (env.states[[0, 2]] != before[[0, 2]]).any(1).all()
    np.testing.assert_array_equal(env.steps, [1, 0, 1, 0])
    assert not result.reward[[1, 3]].any()


def agrees(values, mean, error):
    own = values.std(ddof=1) / len(values) ** 0.5
    assert abs(values.mean() - mean) <= 3 * np.hypot(own, error) + 1e-9, (values.mean(), own, mean, error)


@pytest.mark.parametrize("layout", list(MAPS))
@pytest.mark.parametrize(
    ("reward", "expert", "random"),
    [("sparse", EXPERT_SPARSE, RANDOM_SPARSE), ("step_cost", EXPERT_COST, RANDOM_COST)],
)
def test_references_have_their_returns(layout, reward, expert, random):
    best = measure_returns(layout, "expert", 1000, 3000, reward=reward, noise=False)
    worst = measure_returns(layout, "random", 1000, 3000, reward=reward)
    agrees(best, *expert[layout])
    agrees(worst, *random[layout])
    low, high = references(layout, reward)
    agrees(best, high, 0.2)
    agrees(worst, low, 0.6)


@pytest.mark.parametrize(
    ("behaviour", "figures"),
    [
        ("expert", {"umaze": 134.2, "medium": 219.8, "large": 258.2}),
        ("slow", {"umaze": 121.9, "medium": 197.5, "large": 227.4}),
        ("medium", {"umaze": 87.3, "medium": 123.4, "large": 129.8}),
        ("navigate", {"umaze": 7.6, "medium": 5.1, "large": 2.3}),
    ],
)
def test_behaviours_have_their_returns(behaviour, figures):
    for layout, mean in figures.items():
        values = measure_returns(layout, behaviour, 1000, 4000, reward="sparse")
        agrees(values, mean, values.std(ddof=1) / len(values) ** 0.5)


def roll_out(behaviour, max_steps):
    env = MazeBatch(1000, "fork", reward="step_cost", max_steps=max_steps)
    env.reset(np.arange(1000), np.zeros(1000, int), np.arange(1000))
    policy = Behaviour(behaviour, env, 5)
    upper = policy.targets == env.layout.cell_index((1, 5))
    total, live, solved = np.zeros(1000), np.ones(1000, bool), np.zeros(1000, bool)
    while live.any():
        result = env.step(policy.act())
        total += result.reward * live
        solved |= live & result.terminated
        live &= ~(result.terminated | result.truncated)
    return total, solved, upper


def test_routes_take_both_ways_at_their_speeds():
    total, solved, upper = roll_out("routes", 100)
    assert solved.all()
    assert upper.mean() == pytest.approx(0.5, abs=0.05)
    assert total[upper].mean() == pytest.approx(-56.0, abs=0.2)
    assert total[~upper].mean() == pytest.approx(-74.5, abs=0.2)
    total, solved, upper = roll_out("routes-slow", 150)
    assert solved.all()
    assert total[upper].mean() == pytest.approx(-100.0, abs=0.3)
    assert total[~upper].mean() == pytest.approx(-133.4, abs=0.3)
    _, solved, upper = roll_out("routes", 66)
    np.testing.assert_array_equal(solved, upper)


def test_mazes_step_fast():
    env = started(256, "medium")
    push = np.random.default_rng(0).uniform(-1, 1, (256, 2))
    begin = time.process_time()
    for _ in range(200):
        env.step(push)
    assert 200 * 256 / (time.process_time() - begin) > 50_000


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"layout": "xl"}, "open, umaze"),
        ({"layout": ["###", "#G", "###"]}, "one length"),
        ({"layout": ["####", "#GG#", "####"]}, "one G"),
        ({"layout": ["####", "#G..", "####"]}, "closed"),
        ({"layout": ["#####", "#G#.#", "#####"]}, "connected"),
        ({"layout": ["####", "#Gx#", "####"]}, "'x'"),
        ({"reward": "shaped"}, "sparse, dense"),
        ({"max_steps": 0}, "max_steps"),
        ({"process_noise": -1.0}, "process_noise"),
    ],
)
def test_bad_mazes_are_refused(bad, words):
    with pytest.raises(InputError, match=words):
        MazeBatch(1, **bad)


def test_bad_steps_and_behaviours_are_refused():
    with pytest.raises(InputError, match="reset"):
        MazeBatch(1).step(np.zeros((1, 2)))
    env = started(2)
    with pytest.raises(InputError, match=r"\(2, 2\)"):
        env.step(np.zeros((1, 2)))
    with pytest.raises(InputError, match="NaN"):
        env.step(np.full((2, 2), np.nan))
    with pytest.raises(InputError, match="expert, slow"):
        Behaviour("lazy", env)
    with pytest.raises(InputError, match="fork"):
        Behaviour("routes", env)
    with pytest.raises(InputError, match="0 to 6"):
        env.reset(np.zeros(1, int), np.zeros(1, int), np.zeros(1, int), cells=np.array([7]))
