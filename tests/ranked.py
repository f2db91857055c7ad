"""What tests run on several ranks: `torchrun … -m tests.ranked FOLDER CASE …`; a case leaves FOLDER/CASE.RANK.pt.

`launch` starts them so. `fork` starts them from one process that has imported everything, which is quicker. Each case
is a function of the folder, and returns what `torch.save` can write.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def launch(
    folder: Path, size: int, *cases: str, check: bool = True, timeout: float = 240, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the cases on so many ranks, one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    done = subprocess.run(
        [*command, "-m", "tests.ranked", str(folder), *cases],
        env=environment(**variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert not check or done.returncode == 0, done.stderr[-6000:]
    return done


def fork(
    folder: Path, size: int, *cases: str, timeout: float = 240, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the cases on so many ranks without torchrun."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.ranked", str(folder), *cases],
        env=environment(RANKED_FORKS=str(size), **variables, **rendezvous(size)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done


def rendezvous(size: int) -> dict[str, str]:
    """What ranks without a launcher find one another by."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def environment(**variables: str) -> dict[str, str]:
    """What a rank finds in its environment, beside what its launcher says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "RANK", "WORLD"))}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **variables}


def start_without_launcher(folder: Path, size: int, case: str, *, timeout: float = 240) -> list[tuple[int, str]]:
    """Run the case on so many ranks that nobody looks after; the exit status and the messages of each one."""
    common = rendezvous(size)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ranked", str(folder), case],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **common),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=timeout)[1] for process in started]
    return [(process.returncode, messages) for process, messages in zip(started, said, strict=True)]


def results(folder: Path, case: str, size: int) -> list[Any]:
    """What the case returned on each rank."""
    return [torch.load(folder / f"{case}.{rank}.pt", weights_only=False) for rank in range(size)]


# -- the same episodes ---------------------------------------------------------------------------------------------


def settings_of(kind: str) -> tuple[type, dict[str, Any], dict[str, Any]]:
    """An agent's class, its arguments, and those of its environment."""
    from rlhf_gym.agents import (
        AdaptiveKL,
        Clip,
        EntropyBonus,
        KLInLoss,
        MovingReference,
        PretrainingMix,
        TokenGRPO,
        TokenPPO,
        TokenReinforce,
    )
    from rlhf_gym.lm import LoRA

    # the bias of keys has no gradient but rounding's, which Adam's own eps of 1e-5 would blow up
    adam = {"optimizer_kwargs": {"eps": 1e-4}}
    shared = {
        "policy_kwargs": adam,
        "n_episodes": 16,
        "batch_size": 8,
        "n_epochs": 2,
        "learning_rate": 1e-3,
        "seed": 0,
        "device": "cpu",
    }
    texts = [[3, 4, 5, 6], [7, 8], [9, 10, 11], [12, 13, 14, 15, 16]]
    ppo = shared | {"kl_controller": AdaptiveKL(0.1, 1.0, horizon=50), "mask_truncated": True, "target_kl": 2e-3}
    return {
        "ppo": (TokenPPO, ppo | {"micro_batch_size": 3}, {}),
        "idle": (TokenPPO, shared | {"batch_size": 2, "n_epochs": 1}, {"kl_in": "loss"}),
        "grpo": (
            TokenGRPO,
            shared | {"micro_batch_size": 2, "aggregation": "sequence", "regularisers": [KLInLoss("k2")]},
            {"samples_per_prompt": 4, "kl_in": "loss"},
        ),
        "lora": (
            TokenPPO,
            shared | {"policy_kwargs": adam | {"lora": LoRA(r=2, alpha=4, target_modules="all-linear")}},
            {},
        ),
        "critic": (
            TokenPPO,
            shared | {"policy_kwargs": adam | {"critic": "separate", "freeze_layers": 1}, "critic_warmup": 1},
            {},
        ),
        "mixed": (
            TokenReinforce,
            shared
            | {
                "normalize_advantage": True,
                "surrogate": Clip(0.2),
                "regularisers": [PretrainingMix(texts, 0.5, batch_size=3), MovingReference(0.3), EntropyBonus(0.01)],
            },
            {},
        ),
    }[kind]


KINDS = ("ppo", "idle", "grpo", "lora", "critic", "mixed")


def three_updates(kind: str, collect: Callable[..., Any], sharding: str = "none") -> dict[str, Any]:
    """Three iterations of an agent whose rollouts come from `collect`; its weights, and what it logged last."""
    from rlhf_gym.agents import base
    from rlhf_gym.envs import TokenVectorEnv
    from rlhf_gym.lm import parts
    from tests.toy import word_settings

    cls, arguments, overrides = settings_of(kind)
    env = TokenVectorEnv(8, **word_settings(reward_timing="deferred", **overrides))
    played = base.collect_rollout
    at_once = parts.LOGITS_AT_ONCE
    base.collect_rollout = collect  # type: ignore[assignment]
    if kind == "critic":
        parts.LOGITS_AT_ONCE = 200  # chunks of ten tokens, computed again in the backward pass
    try:
        agent = cls("LMPolicy", env, sharding=sharding, **arguments)
        logged: list[dict[str, float]] = []
        train = agent.train

        def counted() -> None:
            train()
            logged.append({k: float(v) for k, v in agent.logger.name_to_value.items() if not k.startswith("time/")})

        agent.train = counted
        while len(logged) < 3:
            agent.learn(1, reset_num_timesteps=not logged)
    finally:
        base.collect_rollout = played
        parts.LOGITS_AT_ONCE = at_once
    weights = {name: p.detach().clone() for name, p in agent.policy.named_parameters() if p.requires_grad}
    state = {"kl_coef": agent.kl_controller.kl_coef, "updates": agent._n_updates, "tokens": agent.num_timesteps}
    return {"weights": weights, "logged": logged, "state": state}


def record(kind: str, folder: Path) -> dict[str, Any]:
    """Three updates in this process; the rollouts are left in the folder for the ranks to play."""
    from rlhf_gym.agents.rollout import collect_rollout

    rollouts = []

    def collect(*args: Any, **kwargs: Any) -> Any:
        rollouts.append(collect_rollout(*args, **kwargs))
        return rollouts[-1]

    result = three_updates(kind, collect)
    (folder / f"{kind}.rollouts").write_bytes(pickle.dumps(rollouts))
    return result


def same(kind: str, folder: Path, sharding: str = "none") -> dict[str, Any]:
    """Three updates on this rank's share of the rollouts that `record` left."""
    from rlhf_gym.ranks import ranks

    rollouts = iter(pickle.loads((folder / f"{kind}.rollouts").read_bytes()))

    def collect(policy: Any, env: Any, n_episodes: int, **_: Any) -> Any:
        whole = next(rollouts)
        group = ranks()
        rows = [r for r in range(len(whole.episodes)) if r // env.samples_per_prompt % group.size == group.rank]
        assert len(rows) == n_episodes
        return whole.take(rows)

    return three_updates(kind, collect, sharding)


def sharded(kind: str, folder: Path) -> dict[str, Any]:
    """The same with the weights spread over the ranks while they are updated."""
    return same(kind, folder, "full")


# -- prompts, random numbers, files --------------------------------------------------------------------------------


def device() -> str:
    """Where `make_agent`'s agents learn."""
    return os.environ.get("RANKED_DEVICE", "cpu")


def sharding() -> Any:
    """Whether `make_agent`'s agents spread what they learn over the ranks."""
    return os.environ.get("RANKED_SHARDING", "none")


def make_agent(seed: int | None = 0, **overrides: Any) -> Any:
    """A PPO on seven prompts, eight episodes a rollout, its scores normalised."""
    from rlhf_gym.agents import TokenPPO
    from rlhf_gym.envs import NormalizeScore, TokenVectorEnv
    from tests.toy import word_settings

    prompts = [[3 + i] * (1 + i % 3) for i in range(7)]
    given = {"reward_timing": "deferred", "prompts": prompts, "shaping": (NormalizeScore(),)}
    env = TokenVectorEnv(3, **word_settings(**(given | overrides)))
    arguments = {
        "n_episodes": 8,
        "batch_size": 4,
        "n_epochs": 2,
        "learning_rate": 1e-3,
        "device": device(),
        "sharding": sharding(),
        "verbose": 1,
    }
    return TokenPPO("LMPolicy", env, seed=seed, **arguments)


def iterations(agent: Any, count: int, *, reset: bool) -> list[dict[str, Any]]:
    """So many iterations: the prompts and responses of each one, and this process's random state after its rollout."""
    from stable_baselines3.common.callbacks import BaseCallback

    seen: list[dict[str, Any]] = []

    class Watch(BaseCallback):
        def _on_rollout_end(self) -> None:
            episodes = agent.rollout.episodes
            seen.append(
                {
                    "prompts": [e.prompt_ids.tolist() for e in episodes],
                    "numbers": [e.number for e in episodes],
                    "responses": [e.response_ids.tolist() for e in episodes],
                    "random": torch.get_rng_state().tolist(),
                }
            )

        def _on_step(self) -> bool:
            return len(seen) < count

    agent.learn(10**6, callback=Watch(), reset_num_timesteps=reset)
    return seen


def files(folder: Path) -> dict[str, Any]:
    """Two iterations, a file, two more; then that file, and two more from there; and one of an agent without a seed."""
    from rlhf_gym.agents import TokenPPO

    agent = make_agent()
    first = iterations(agent, 2, reset=True)
    agent.save(folder / "agent")
    statistics = agent.engine.token_reward.shaping.state_dict()
    went_on = iterations(agent, 2, reset=False)
    again = TokenPPO.load(folder / "agent", make_agent().env, device=device(), sharding=sharding())
    resumed = iterations(again, 2, reset=False)
    return {
        "first": first,
        "went_on": went_on,
        "resumed": resumed,
        "weights": [[p.detach().cpu() for p in one.policy.parameters()] for one in (agent, again)],
        "statistics": statistics,
        "share": agent.engine.share,
        "free": iterations(make_agent(None), 1, reset=True),
    }


def spread(folder: Path) -> dict[str, Any]:
    """A sharded agent acts, saves in the middle of a rollout, and is loaded; a file of replicas is loaded sharded."""
    import numpy as np
    from stable_baselines3.common.callbacks import BaseCallback

    from rlhf_gym.agents import TokenPPO
    from rlhf_gym.agents.rollout import evaluated
    from rlhf_gym.envs import TokenVectorEnv
    from rlhf_gym.lm import LoRA, Shared
    from tests.tiny import tiny_llama
    from tests.toy import word_settings

    agent = make_agent(max_new_tokens=24, stop_token_ids=())
    found: dict[str, Any] = {"apart": [], "acting": [], "updating": [], "saved": None}

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            if agent.num_timesteps > 500 and found["saved"] is None:  # in the third rollout, at another step on each
                found["saved"] = {name: p.detach().clone() for name, p in agent.policy.named_parameters()}
                agent.save(folder / "midway")
            return True

        def _on_rollout_end(self) -> None:
            again = evaluated(agent.policy, agent.rollout.episodes).log_probs
            pairs = zip(again, agent.rollout.log_probs, strict=True)
            found["apart"].append(max(float(np.abs(a - b).max()) for a, b in pairs))
            found["acting"].append(agent.policy.held_bytes())

    agent.learn(4 * 8 * 24, callback=Watch())
    agent.policy.optimizer.register_step_pre_hook(lambda *_: found["updating"].append(agent.policy.held_bytes()))
    agent.learn(8 * 24, callback=Watch(), reset_num_timesteps=False)
    found["weights"] = sum(p.nbytes for p in agent.policy.parameters())
    found["replayed"] = len(agent.policy._decoder._steps)
    agent.save_pretrained(folder / "policy")
    agent.save(folder / "sharded")
    for before, after, how in (("sharded", "plain", "none"), ("plain", "again", "full")):
        TokenPPO.load(folder / before, agent.env, device="cpu", sharding=how).save(folder / after)
    # embeddings that are not tied, bf16, an adapter
    reference = Shared(tiny_llama(seed=1))
    env = TokenVectorEnv(3, **word_settings(reward_timing="deferred", reference=reference))
    lora = LoRA(r=2, alpha=4, target_modules="all-linear")
    settings = {"n_episodes": 8, "batch_size": 4, "learning_rate": 1e-3, "seed": 0, "device": "cpu", "sharding": "full"}
    for name, kwargs in {"untied": {}, "adapter": {"lora": lora}}.items():
        one = TokenPPO("LMPolicy", env, policy_kwargs={"bf16": True, **kwargs}, **settings).learn(1)
        one.save_pretrained(folder / name, merge=True)
        found[name] = next(iter(one.policy.optimizer.state.values()))["exp_avg"].abs().max().full_tensor()
    return found


def optimum(folder: Path) -> tuple[float, float]:
    """How much RLOO misses the enumerable environment's optimum by, and the total variation from it."""
    from stable_baselines3.common.utils import LinearSchedule

    from rlhf_gym.agents import TokenRLOO
    from tests.toy import make_tabular_toy

    toy = make_tabular_toy(0)
    agent = TokenRLOO(
        "LMPolicy",
        toy.env(64, samples_per_prompt=8),
        learning_rate=LinearSchedule(0.1, 0.0, 1.0),
        n_episodes=128,
        batch_size=128,
        seed=0,
        device="cpu",
        policy_kwargs={"use_cache": False},
    )
    agent.learn(36_000)
    return toy.best - toy.objective(agent.policy.model), toy.total_variation(agent.policy.model)


def watched(folder: Path) -> dict[str, Any]:
    """A run that a monitor watches and the KL ends, one of DPO on pairs it makes, one of GRPO that refills groups."""
    from rlhf_gym.agents import DPO, StopOnKL, TokenGRPO
    from rlhf_gym.monitoring import RLHFMonitor

    stop = StopOnKL(0.02)
    agent = make_agent()
    agent.learn(10**6, callback=[RLHFMonitor(folder=folder / "monitor", verbose=0), stop])
    settings = {"n_episodes": 8, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    dpo = DPO("LMPolicy", make_agent().env, **settings)
    dpo.learn(1)
    pairs = [e.prompt_ids.tolist() for e in dpo.buffer.episodes]
    env = make_agent(samples_per_prompt=2, reward=lambda prompts, responses: ["good" in r for r in responses]).env
    env.engine.token_reward.own_kl_coef = 0.0  # so that most groups earn the same
    grpo = TokenGRPO("LMPolicy", env, max_refills=3, **settings)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        grpo.learn(1)
    return {
        "kl": stop.stopped_at,
        "tokens": agent.num_timesteps,
        "pairs": pairs,
        "numbers": [e.number for e in grpo.buffer.episodes],
        "learned": grpo.buffer.learned.tolist(),
        "weights": [p.detach().clone() for one in (agent, dpo, grpo) for p in one.policy.parameters()],
    }


def unequal(folder: Path) -> dict[str, Any]:
    """Six rollouts; the last rank has one slot, the others eight each, so that it steps more often than they do."""
    from rlhf_gym.agents import TokenPPO
    from rlhf_gym.envs import TokenVectorEnv
    from rlhf_gym.ranks import ranks
    from tests.toy import word_settings

    group = ranks()
    slots = 1 if group.rank == group.size - 1 else 8
    env = TokenVectorEnv(slots, **word_settings(reward_timing="step"))
    arguments = {"n_episodes": 16, "batch_size": 2, "n_epochs": 1, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    agent = TokenPPO("LMPolicy", env, **arguments)
    steps, plain = [0], env.step

    def counted(actions: Any) -> Any:
        steps[-1] += 1
        return plain(actions)

    env.step = counted  # type: ignore[method-assign]
    for number in range(6):
        agent.learn(1, reset_num_timesteps=number == 0)
        steps.append(0)
    weights = [p.detach().clone() for p in agent.policy.parameters()]
    return {"steps": steps[:-1], "weights": weights, "tokens": agent.num_timesteps, "updates": agent._n_updates}


# -- stages of a run -----------------------------------------------------------------------------------------------


def supervised(folder: Path) -> dict[str, Any]:
    """Weights and figures of an SFT and of a reward modelling; each batch has more examples than there are ranks, the
    last of an epoch has one."""
    from rlhf_gym.preferences import Preference
    from rlhf_gym.ranks import ranks
    from rlhf_gym.rewards import RewardModel, RewardNormalizer
    from rlhf_gym.training import RewardModelingConfig, SFTConfig, train_reward_model, train_sft
    from tests.tiny import tiny_gpt2
    from tests.tiny_runs import tiny_task

    task = tiny_task()
    shown = list(task.demonstrations)
    unseen = list(task.heldout_demonstrations)
    settings: Any = {"epochs": 2, "learning_rate": 1e-3, "micro_batch_size": 2, "use_cpu": True}
    root = folder / f"of {ranks().size}"
    model = tiny_gpt2(n_layer=1, n_embd=16)
    with torch.no_grad():  # what the other ranks begin with does not count
        next(iter(model.parameters())).add_(ranks().rank)
    config = SFTConfig(batch_size=8, **settings)
    sft = train_sft(model, task.tokenizer, shown[:33], heldout=unseen, config=config, output_dir=root / "sft")
    pairs = [Preference(a.prompt, a.response, b.response) for a, b in pairwise(shown)]
    reward = RewardModel.from_language_model(tiny_gpt2(n_layer=1, n_embd=16), task.tokenizer, heads=2)
    reward.normalizers = [RewardNormalizer(1.0, 2.0)] * 2
    judged = train_reward_model(
        reward,
        pairs[:31],
        heldout=pairs[31:],
        config=RewardModelingConfig(batch_size=6, bootstrap=True, **settings),
        output_dir=root / "reward",
    )
    weights = {
        f"{kind}.{name}": parameter.detach().clone()
        for kind, trained in (("sft", model), ("reward", reward))
        for name, parameter in trained.named_parameters()
    }
    for name in [name for name in weights if name.endswith("c_attn.bias")]:
        weights[name][16:32] = 0  # the bias of keys has no gradient but rounding's, which Adam blows up
    return {"figures": [vars(sft), vars(judged)], "weights": weights, "unit": reward.normalizers}


def short_config(run_dir: Path) -> Any:
    """A run of two iterations, with a look at the best of n on two prompts."""
    from dataclasses import replace

    from tests.tiny_runs import tiny_config

    given = tiny_config(run_dir)
    return replace(
        given,
        agent=replace(given.agent, total_tokens=120),
        reward=replace(given.reward, probe_samples=8),
        evaluate=replace(given.evaluate, best_of_samples=4, best_of_prompts=2),
    )


def whole(folder: Path) -> dict[str, Any]:
    """A run, figures about its models, and its agent once more, which is interrupted on the last rank alone."""
    from rlhf_gym.pipeline import prepare, run
    from rlhf_gym.ranks import ranks
    from tests.tiny_runs import count_good, quiet, said, tiny_task

    given = short_config(folder / "run")
    console = quiet() if ranks().leads else None
    run(given, task=tiny_task(), console=console)
    figures = stage_figures(prepare(given, task=tiny_task(), console=console))
    calls = 0

    def interrupted(prompts: list[str], responses: list[str]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3 and ranks().rank == ranks().size - 1:
            raise KeyboardInterrupt
        return count_good(prompts, responses)

    said_of = "" if console is None else said(console)
    try:
        run(given, task=tiny_task(gold=interrupted), redo="train", console=console)
    except BaseException as error:
        return {"figures": figures, "said": said_of, "ended": type(error).__name__}
    return {"figures": figures, "said": said_of, "ended": "not at all"}


def stage_figures(run: Any) -> dict[str, Any]:
    """What a run's models say of responses that no chance decides about, and how many are drawn to each prompt."""
    from rlhf_gym.pipeline.collect import all_preferences
    from rlhf_gym.pipeline.decoding import Decoding, write_responses
    from rlhf_gym.pipeline.samples import gold_scores, log_probs, proxy_scores
    from rlhf_gym.pipeline.selection import member_deltas
    from rlhf_gym.preferences import Candidate, CandidatePair
    from rlhf_gym.training import evaluate_sft, score_pairs

    policy = run.load_policy(run.sft)
    reward = run.load_reward(1)
    prompts = list(run.task.prompts)[:7]
    written = {
        kind: write_responses(policy, run.task, prompts, Decoding.parse(kind), seed=0) for kind in ("greedy", "beam-2")
    }
    samples = written["greedy"]
    pairs = [
        CandidatePair(Candidate(p, "good film"), Candidate(p, r))
        for p, r in zip(prompts, samples.responses, strict=True)
    ]
    return {
        "responses": {kind: found.responses for kind, found in written.items()},
        "scores": proxy_scores(reward, run.task.tokenizer, samples, at_once=2),
        "gold": gold_scores(run.task.gold, samples),
        "log_probs": [row.tolist() for row in log_probs(policy, samples)],
        "pairs": score_pairs(reward, all_preferences(run, 1)[1]).delta,
        "deltas": member_deltas([reward], pairs),
        "sft": vars(evaluate_sft(policy, run.task.tokenizer, run.task.heldout_demonstrations)),
        "drawn": write_responses(policy, run.task, prompts, Decoding.parse("sample"), seed=0).responses,
    }


def dialogues(folder: Path) -> dict[str, Any]:
    """A run on dialogues, and figures about it."""
    from rlhf_gym.pipeline import prepare, run
    from rlhf_gym.ranks import ranks
    from tests.tiny_runs import quiet, tiny_dialogues

    task = tiny_dialogues(folder / "model")
    given = short_config(folder / "dialogues")
    console = quiet() if ranks().leads else None
    run(given, task=task, console=console)
    return dialogue_figures(prepare(given, task=task, console=console))


def dialogue_figures(run: Any) -> dict[str, Any]:
    """What the run's models make of dialogues that no chance decides about; what others say while an agent learns."""
    from dataclasses import replace

    from rlhf_gym.lm import Shared
    from rlhf_gym.pipeline.agents import make_agent, make_env
    from rlhf_gym.pipeline.samples import draw, gold_scores, log_probs, proxy_scores

    prompts = list(run.task.prompts)[:7]
    policy = run.load_policy(run.sft)
    others = replace(run.task.others, reply=lambda messages, rng: "the cast")
    samples = draw(policy, replace(run.task, others=others), prompts, seed=0, greedy_decoding=True)
    reward = run.load_reward(1)
    agent = make_agent(run, "train", 1, 0, make_env(run, "train", 1, 0, Shared(reward)))
    agent.learn(1)
    return {
        "responses": samples.responses,
        "scores": proxy_scores(reward, run.task.tokenizer, samples),
        "gold": gold_scores(run.task.gold, samples),
        "log_probs": [row.tolist() for row in log_probs(policy, samples)],
        "drawn": draw(policy, run.task, [prompts[0]] * 8, seed=0).responses,
        "said": {e.number: [m.content for m in e.messages if m.role == "user"] for e in agent.buffer.episodes},
        "weights": [p.detach().clone() for p in agent.policy.parameters()],
    }


# -- failures ------------------------------------------------------------------------------------------------------


def differ(folder: Path) -> list[str]:
    """What is said where ranks are not alike: in a setting, and in a weight that one of them changes."""
    from stable_baselines3.common.callbacks import BaseCallback

    from rlhf_gym.ranks import ranks

    agent = make_agent()
    agent.n_episodes = 8 * (1 + ranks().rank)
    said = []
    try:
        agent.learn(1)
    except ValueError as error:
        said.append(str(error))

    class Meddle(BaseCallback):
        def _on_rollout_end(self) -> None:
            if ranks().rank == 1:
                with torch.no_grad():
                    next(iter(agent.policy.parameters())).view(-1)[3] += 1e-3

        def _on_step(self) -> bool:
            return True

    agent.n_episodes = 8
    try:
        agent.learn(10**6, callback=Meddle())
    except RuntimeError as error:
        said.append(str(error))
    return said


def failing(how: str, folder: Path) -> None:
    """Rank 1 raises, is killed, or hangs in its second rollout; or it raises in its first update."""
    import datetime
    import time

    from torch.distributed.distributed_c10d import _set_pg_timeout

    from rlhf_gym.ranks import ranks
    from tests.toy import word_reward

    calls = 0

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 2 and ranks().rank == 0 and how == "hangs":
            _set_pg_timeout(datetime.timedelta(seconds=3))
        if calls == 2 and ranks().rank == 1:
            if how == "raises":
                raise ValueError("this reward knows no such word")
            if how == "hangs":
                time.sleep(120)
            os.kill(os.getpid(), 9)
        return word_reward(prompts, responses)

    (folder / f"pid.{os.environ['RANK']}").write_text(str(os.getpid()))
    if how != "raises in an update":
        make_agent(reward=reward).learn(10**6)
    agent = make_agent()
    loss = agent.minibatch_loss

    def failing_loss(*args: Any) -> Any:
        if ranks().rank == 1 and agent.policy.optimizer.state:
            raise ValueError("this reward knows no such word")
        return loss(*args)

    agent.minibatch_loss = failing_loss
    try:
        agent.learn(10**6)
    except ValueError:
        for act in (lambda: agent.save(folder / "half"), lambda: agent.learn(1)):
            with suppress(FloatingPointError):
                act()
                print("half an update was taken for a whole one")
        raise


def become_rank(size: int) -> None:
    """Go on as one of so many new processes; the old one waits for them, and ends all where one fails."""
    import rlhf_gym.agents
    import rlhf_gym.pipeline  # noqa: F401 (what all need is imported once)
    import tests.toy  # noqa: F401

    children = []
    for rank in range(size):
        if (child := os.fork()) == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            return
        children.append(child)
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)
    sys.exit(0)


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    if "RANKED_FORKS" in os.environ:
        become_rank(int(os.environ["RANKED_FORKS"]))
    if "RANKED_OWN_GROUP" in os.environ:
        torch.distributed.init_process_group("gloo")

        def refuse(*_: Any) -> None:
            raise OSError("no room")

        os.posix_fallocate = refuse  # there is no memory to share: gradients go by all_reduce
    for case in sys.argv[2:]:
        torch.manual_seed(0)
        name, *argument = case.split(":")
        torch.save(globals()[name](*argument, folder), folder / f"{case}.{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
