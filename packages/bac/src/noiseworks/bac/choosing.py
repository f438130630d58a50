"""The best plan for an error budget: the cheapest of many, uniform ones among them, measured on the policy.

How far outputs may be off depends on the policy, and no similarity of features tells it. So plans are tried from the
cheapest on, and the first whose error is within the budget is taken. The error of an outcome (actions, an image) is
relative to what other noise changes in it, which a policy that is sampled from leaves to chance anyway.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from noiseworks.bac.attaching import attach
from noiseworks.bac.bubbling import FEED_FORWARD
from noiseworks.bac.options import Schedule
from noiseworks.bac.plan import CachePlan, make_plan
from noiseworks.bac.profiling import FeatureProfile
from noiseworks.core.checks import check_finite, check_number
from torch import Tensor

Run = Callable[[int], Tensor]
UPDATES = (2, 3, 4, 5, 7, 10, 14, 20)


class Tried(NamedTuple):
    """A plan that was measured.

    Attributes:
        plan: The plan.
        error: Mean squared difference of its outcome to the full run's with the same noise, over that of two full
            runs with different noise.
    """

    plan: CachePlan
    error: float


def candidates(
    profile: FeatureProfile, updates: Sequence[int] = UPDATES, schedule: Schedule = Schedule()
) -> list[CachePlan]:
    """Return plans from the cheapest on: uniform, unified, block-wise and bubbled at each number of updates, and full.

    Args:
        profile: The policy's profile.
        updates: Numbers M; those above K are left out.
        schedule: How block-wise plans are made, but for M.
    """
    steps, found = profile.num_steps, []
    able = [kind for kind in profile.kinds if schedule.bubble_scope == "all" or kind == FEED_FORWARD]
    bubbles = {0, min(schedule.bubble, len(able))}
    for m in [m for m in updates if m <= steps]:
        found.append(CachePlan.of_updates(profile, m))
        found.append(CachePlan.unified(profile, replace(schedule, updates=m)))
        found += [make_plan(profile, replace(schedule, updates=m, bubble=n)) for n in bubbles]
    found.append(CachePlan.of_updates(profile, steps))
    return sorted(found, key=lambda plan: plan.cost)


def best_plan(
    policy: Any, plans: Sequence[CachePlan], run: Run, budget: float = 0.25
) -> tuple[CachePlan, list[Tried]]:
    """Return the first of the plans whose error is within a budget, and all that were tried.

    Args:
        policy: What plans are attached to.
        plans: Plans, the cheapest first; `candidates` ends with the full one, which has no error.
        run: Runs the policy once with the noise of a seed and returns its outcome, a tensor of any shape.
        budget: Largest error, see `Tried`.

    Raises:
        InputError: When the budget is not above 0.
        NonFiniteError: When an outcome is not finite.
    """
    check_number("budget", budget, low=0, low_open=True)
    full, other = run(0), run(1)
    check_finite("the outcome of the full run", full)
    spread = max(float((full - other).square().mean()), 1e-12)
    tried = []
    for plan in plans:
        with attach(policy, plan):
            outcome = run(0)
        check_finite(f"the outcome under the plan {plan.method}", outcome)
        tried.append(Tried(plan, float((outcome - full).square().mean()) / spread))
        if tried[-1].error <= budget:
            break
    return min(tried, key=lambda one: (one.error > budget, one.error)).plan, tried
