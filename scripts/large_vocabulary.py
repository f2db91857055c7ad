"""python scripts/large_vocabulary.py: what a vocabulary of 50,000 costs stock agents in memory, and where it goes.

Each agent makes one rollout and one update over it in a process of its own, on a GPT-2 of one layer, 32 wide, with
random weights; the peak of its resident memory is read at the end. Some two minutes on one core, most of them TRPO's,
although its conjugate gradients stop after 3 steps here (10 to 15 are usual; it is the same memory). The models are
tiny on purpose: what is left is the cost of the vocabulary, which grows with steps × V and not with the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

AGENTS = ("nothing", "PPO", "MaskablePPO", "TRPO", "DQN")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=50_000)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--n-steps", type=int, default=32)
    parser.add_argument("--agent", choices=AGENTS, help="this one alone, here (what each process is told)")
    arguments = parser.parse_args()
    if arguments.agent:
        print(json.dumps(measure(arguments.agent, arguments.vocab_size, arguments.num_envs, arguments.n_steps)))
        return
    steps = arguments.num_envs * arguments.n_steps
    print(f"V = {arguments.vocab_size:,}, {arguments.num_envs} slots × {arguments.n_steps} steps = {steps} steps")
    print(f"one float32 array of steps × V: {megabytes(4 * steps * arguments.vocab_size):.0f} MB")
    print("| agent | peak memory, MB | above nothing learned, MB | masks in its buffer, MB | seconds |")
    print("|---|---|---|---|---|")
    base = 0.0
    for name in AGENTS:
        options = [f"--vocab-size={arguments.vocab_size}", f"--num-envs={arguments.num_envs}"]
        command = [sys.executable, __file__, *options, f"--n-steps={arguments.n_steps}", f"--agent={name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        base = base or found["peak"]
        masks = f"{found['masks']:.0f}" if found["masks"] else "–"
        print(
            f"| {name} | {found['peak']:.0f} | {found['peak'] - base:.0f} | {masks} | {found['seconds']:.1f} |",
            flush=True,
        )


def measure(name: str, vocab_size: int, num_envs: int, n_steps: int) -> dict[str, float]:
    """Peak memory of this process after a rollout and an update, MB; what the buffer's masks take; seconds."""
    import time

    import torch
    from sb3_contrib import TRPO, MaskablePPO
    from stable_baselines3 import DQN, PPO
    from transformers import GPT2Config, GPT2LMHeadModel

    from rlhf_gym.agents import AttachPolicy, LMActorCriticPolicy, LMFeaturesExtractor
    from rlhf_gym.agents.maskable import MaskableLMActorCriticPolicy
    from rlhf_gym.envs import ActionMask, SB3VecEnv, ShortlistVectorActions, TokenVectorEnv
    from rlhf_gym.lm import Shared
    from rlhf_gym.tasks import reviews_task

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab_size, n_layer=1, n_embd=32, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=1
    )
    model = Shared(GPT2LMHeadModel(config).eval())
    engine = TokenVectorEnv(
        num_envs,
        prompts=[[3, 4, 5], [6, 7]],
        tokenizer=reviews_task().tokenizer,
        reference=model,
        reward=lambda prompts, responses: [float(len(response)) for response in responses],
        max_new_tokens=16,
        stop_token_ids=(1,),
        action_mask=ActionMask(top_k=50),
    )
    env = SB3VecEnv(engine)
    settings = {"policy_kwargs": {"model": model}, "n_steps": n_steps, "gamma": 1.0, "seed": 0, "device": "cpu"}
    whole = num_envs * n_steps
    started = time.perf_counter()
    masks = 0.0
    if name == "PPO":
        PPO(LMActorCriticPolicy, env, batch_size=whole, n_epochs=1, **settings).learn(whole, AttachPolicy())
    elif name == "MaskablePPO":
        agent = MaskablePPO(MaskableLMActorCriticPolicy, env, batch_size=whole, n_epochs=1, **settings)
        agent.learn(whole, AttachPolicy())
        masks = megabytes(agent.rollout_buffer.action_masks.nbytes)
    elif name == "TRPO":
        TRPO(LMActorCriticPolicy, env, batch_size=whole, cg_max_steps=3, n_critic_updates=1, **settings).learn(
            whole, AttachPolicy()
        )
    elif name == "DQN":
        short = SB3VecEnv(ShortlistVectorActions(engine, 16))
        features = {"features_extractor_class": LMFeaturesExtractor, "features_extractor_kwargs": {"model": model}}
        DQN(
            "MultiInputPolicy",
            short,
            policy_kwargs=features,
            buffer_size=10_000,
            learning_starts=whole,
            gamma=1.0,
            device="cpu",
        ).learn(2 * whole)
    seconds = time.perf_counter() - started
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "masks": masks, "seconds": seconds}


def megabytes(count: float) -> float:
    return count / 2**20


if __name__ == "__main__":
    main()
