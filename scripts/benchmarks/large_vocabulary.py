"""python scripts/benchmarks/large_vocabulary.py: what a vocabulary of 50,000 costs stock agents in memory, and where.

Each agent makes one rollout and one update over it in a process of its own, on a GPT-2 of one layer, 32 wide, with
random weights; the peak of its resident memory is read at the end. Some two minutes on one core, most of them TRPO's,
although its conjugate gradients stop after 3 steps here (10 to 15 are usual; it is the same memory). The models are
tiny on purpose: what is left is the cost of the vocabulary, which grows with steps × V and not with the model.
"""

from __future__ import annotations

import multiprocessing
import resource

import tyro

AGENTS = ("nothing learned", "PPO", "MaskablePPO", "TRPO", "DQN on a shortlist of 16")
SLOTS = 8
STEPS = 32


def main(vocab_size: int = 50_000) -> None:
    """Measure each agent at this vocabulary, and print the table."""
    print(f"one float32 array of steps × V: {4 * SLOTS * STEPS * vocab_size / 2**20:.0f} MB\n")
    print(f"| {SLOTS} slots × {STEPS} steps, V = {vocab_size:,}, a 1-layer GPT-2, 32 wide ", end="")
    print("| peak memory, MB | above an agent that does nothing, MB | masks in its buffer, MB |\n|---|---|---|---|")
    base = 0.0
    for name in AGENTS:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            peak, masks = process.apply(measure, (name, vocab_size))
        base = base or peak
        print(f"| {name} | {peak:.0f} | {peak - base:.0f} | {f'{masks:.0f}' if masks else '–'} |", flush=True)


def measure(name: str, vocab_size: int) -> tuple[float, float]:
    """Peak memory of this process after a rollout and an update, and what the buffer's masks take, in MB.

    What is large is imported here: a process begins with the peak of the one that started it.
    """
    import torch
    from sb3_contrib import TRPO, MaskablePPO
    from stable_baselines3 import DQN, PPO
    from transformers import GPT2Config, GPT2LMHeadModel

    from rlhf_gym.agents import AttachPolicy, LMActorCriticPolicy, LMFeaturesExtractor
    from rlhf_gym.agents.maskable import MaskableLMActorCriticPolicy  # not in the room's front: it needs sb3-contrib
    from rlhf_gym.envs import ActionMask, SB3VecEnv, ShortlistVectorActions, TokenVectorEnv
    from rlhf_gym.lm import Shared
    from rlhf_gym.tasks import reviews_task

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab_size, n_layer=1, n_embd=32, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=1
    )
    model = Shared(GPT2LMHeadModel(config).eval())
    engine = TokenVectorEnv(
        SLOTS,
        prompts=[[3, 4, 5], [6, 7]],
        tokenizer=reviews_task().tokenizer,
        reference=model,
        reward=lambda prompts, responses: [float(len(response)) for response in responses],
        max_new_tokens=16,
        stop_token_ids=(1,),
        action_mask=ActionMask(top_k=50),
    )
    steps = SLOTS * STEPS
    settings = {"policy_kwargs": {"model": model}, "n_steps": STEPS, "batch_size": steps, "gamma": 1.0, "device": "cpu"}
    masks = 0.0
    if name == "PPO":
        PPO(LMActorCriticPolicy, SB3VecEnv(engine), n_epochs=1, **settings).learn(steps, AttachPolicy())
    elif name == "MaskablePPO":
        agent = MaskablePPO(MaskableLMActorCriticPolicy, SB3VecEnv(engine), n_epochs=1, **settings)
        masks = agent.learn(steps, AttachPolicy()).rollout_buffer.action_masks.nbytes / 2**20
    elif name == "TRPO":
        agent = TRPO(LMActorCriticPolicy, SB3VecEnv(engine), cg_max_steps=3, n_critic_updates=1, **settings)
        agent.learn(steps, AttachPolicy())
    elif name.startswith("DQN"):
        short = SB3VecEnv(ShortlistVectorActions(engine, 16))
        features = {"features_extractor_class": LMFeaturesExtractor, "features_extractor_kwargs": {"model": model}}
        own = {"policy_kwargs": features, "buffer_size": 10_000, "learning_starts": steps, "gamma": 1.0}
        DQN("MultiInputPolicy", short, device="cpu", **own).learn(2 * steps)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, masks


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
