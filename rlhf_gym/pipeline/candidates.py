"""Drawing the candidates of a round: which policies write, in which ways, and how they share a prompt's responses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_gym.files import read_packed, write_packed
from rlhf_gym.lm.chat import Prompt, Response, as_response, to_json
from rlhf_gym.manifest import UNFINISHED
from rlhf_gym.pipeline.context import Run
from rlhf_gym.pipeline.decoding import Decoding, write_responses
from rlhf_gym.preferences import Candidate
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import LearnedReward, load_reward
from rlhf_gym.settings import CollectConfig


@dataclass(frozen=True)
class Writer:
    """A policy and the decoding it writes with."""

    name: str
    """The policy's name."""
    source: str | Path
    """The policy's folder or hub name."""
    decoding: Decoding
    """The decoding it writes with."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 1.0
    """Top-p of sampling."""

    def candidate(self, prompt: Prompt, response: Response) -> Candidate:
        """The response as a candidate, with the policy and the sampling that wrote it."""
        return Candidate(
            prompt,
            response,
            source=self.name,
            temperature=self.temperature,
            top_p=self.top_p,
            decoding=str(self.decoding),
        )


def draw_candidates(run: Run, round: int) -> list[Candidate]:
    """Up to `samples_per_prompt` responses to each of this round's prompts, prompt by prompt; repeats included."""
    config = run.config.collect
    prompts = round_prompts(run, round)
    writers = writers_of(config, round_policies(run, round), best_of=round > 1 or config.reward_model is not None)
    reward = _judge(run, round) if any(w.decoding.kind == "best-of" for w in writers) else None
    draws = [writer.decoding.draws for writer in writers]
    shares = [take_turns(i, config.samples_per_prompt, draws) for i in range(len(prompts))]
    found: dict[tuple[int, int], Candidate] = {}
    for number, writer in enumerate(writers):
        places = [(i, j) for i, share in enumerate(shares) for j, whose in enumerate(share) if whose == number]
        asked = [prompts[i] for i, _ in places]
        kept = run.folder.stage("collect", round) / UNFINISHED / f"responses-{number}.zip"
        written = ranks().broadcast(read_packed(kept), "responses that are kept")
        if written is None:
            samples = write_responses(
                run.load_policy(writer.source),
                run.task,
                asked,
                writer.decoding,
                seed=run.config.seed + 1000 * round + number,
                temperature=writer.temperature,
                top_p=writer.top_p,
                reward=reward,
                progress=run.progress(f"responses of {writer.name}"),
            )
            written = [to_json(response) for response in samples.responses]
            if ranks().leads:
                write_packed(kept, written)
        for place, prompt, response in zip(places, asked, map(as_response, written), strict=True):
            found[place] = writer.candidate(prompt, response)
    return [found[place] for place in sorted(found)]


def writers_of(config: CollectConfig, policies: Sequence[tuple[str, str | Path]], *, best_of: bool) -> list[Writer]:
    """Every policy in every way: each temperature with each top-p where chance decides, once where it does not.

    Without `best_of` there is no r_φ yet to choose by, and that way is passed over.
    """
    found = []
    for name, source in policies:
        for decoding in map(Decoding.parse, config.decodings):
            if decoding.kind == "best-of" and not best_of:
                continue
            if not decoding.draws:
                found.append(Writer(name, source, decoding))
                continue
            for temperature in config.temperatures:
                found += [Writer(name, source, decoding, temperature, top_p) for top_p in config.top_ps]
    return found


def take_turns(first: int, k: int, draws: Sequence[bool]) -> list[int]:
    """Who writes each of a prompt's k responses: all in turn, beginning with number `first`, by their numbers.

    A writer whose response is always the same (`draws` is False) has one turn; with none but such, k is not reached.
    """
    turns: list[int] = []
    number = first
    while len(turns) < k and (any(draws) or len(turns) < len(draws)):
        writer = number % len(draws)
        if draws[writer] or writer not in turns:
            turns.append(writer)
        number += 1
    return turns


def round_prompts(run: Run, round: int) -> list[Prompt]:
    """This round's prompts: the task's, drawn without repetition."""
    prompts = run.task.prompts
    rng = np.random.default_rng((run.config.seed, round))
    chosen = rng.permutation(len(prompts))[: run.config.collect.num_prompts]
    return list(dict.fromkeys(prompts[int(i)] for i in chosen))


def round_policies(run: Run, round: int) -> list[tuple[str, str | Path]]:
    """Who writes this round's candidates, as `collect.sources` says: (name, folder or hub name), each once."""
    found: dict[str, str | Path] = {}
    for source in run.config.collect.sources:
        past = re.fullmatch(r"round-(\d+)", source)
        if source == "sft" or (source == "previous" and round == 1):
            found.setdefault("the SFT policy", run.sft)
        elif source == "previous" or past:
            earlier = round - 1 if past is None else int(past[1])
            if earlier < round:
                for seed in run.seeds:
                    found.setdefault(f"policy {seed} of round {earlier}", run.policy(earlier, seed))
        else:
            found.setdefault(source, source)
    if not found:
        raise ValueError(
            f"expected collect.sources to name a policy that is there in round {round}, got "
            f"{', '.join(run.config.collect.sources)}"
        )
    return list(found.items())


def _judge(run: Run, round: int) -> LearnedReward:
    """r_φ that the best of n are the best by: the one given, else that of the round before."""
    source = run.config.collect.reward_model
    return run.load_reward(round - 1) if source is None else load_reward(source, run.device)
