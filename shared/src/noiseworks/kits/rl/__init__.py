"""What methods of reinforcement learning share: recorded experience, acting, scores, offline learners.

Environments, vector environments and spaces are Gymnasium's, data sets on disk Minari's, online learners and replay
buffers stable-baselines3's; this kit joins them (the extra `[rl]`).

- `transitions`: `Transitions`, recorded experience with its rules, windows and chunks; D4RL's dictionaries.
- `options`, `sources`: data and environments by name, for commands.
- `minari`: from and to Minari's data sets.
- `stepping`: recording and evaluation in vector environments of every autoreset mode, chunks of actions.
- `sb3`: a Gymnasium vector environment as stable-baselines3's, transitions as its replay buffer.
- `replay`: a ring of transitions, and batches that mix it with recorded ones.
- `scores`: normalised scores and their intervals.
- `networks`, `offline`: critics and actors; TD3+BC and IQL, which judge data.
- `denoising`: policy gradients through the steps of a denoising chain, advantages, scaled rewards.
"""
