"""Several ranks by torchrun, one thread each: as one process given the same episodes, prompts, files, failures."""

import json
import os
import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_gym.agents import Regulariser, TokenPPO
from rlhf_gym.agents.saving import read_state
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.ranks import Ranks, ranks
from tests.ranked import KINDS, fork, iterations, launch, make_agent, record, results, start_without_launcher
from tests.toy import word_settings


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_learn_what_one_process_learns_from_the_same_episodes(size, tmp_path):
    """Three updates, as replicas and sharded. Unequal lengths, micro-batches, `target_kl`, whitening; PPO, GRPO, LoRA;
    "idle" has minibatches with fewer rows than there are ranks."""
    kinds = KINDS if size == 2 else ("ppo", "idle", "grpo", "lora")
    alone = {kind: record(kind, tmp_path) for kind in kinds}
    assert 3 <= alone["ppo"]["state"]["updates"] < 12  # target_kl has ended some updates
    assert alone["grpo"]["state"]["updates"] == 12
    ways = [(how, kind) for how in ("same", "sharded") for kind in kinds]
    cases = [*(f"{how}:{kind}" for how, kind in ways), "unequal"]
    if size == 2:
        launch(tmp_path, size, *cases)  # they make their own group, and share memory
    else:
        fork(tmp_path, size, *cases, RANKED_OWN_GROUP="yes")  # they find the script's group, and share none
    for how, kind in ways:
        one = alone[kind]
        for other in results(tmp_path, f"{how}:{kind}", size):
            assert other["state"] == pytest.approx(one["state"], rel=1e-6), kind
            for name, value in one["weights"].items():
                torch.testing.assert_close(other["weights"][name], value, atol=1e-6, rtol=0, msg=f"{kind}: {name}")
            for mine, theirs in zip(one["logged"], other["logged"], strict=True):
                for line in (mine, theirs):
                    line.pop("train/value_clip_fraction", None)  # rounding decides about values at the edge
                assert theirs == pytest.approx(mine, abs=1e-5, rel=1e-4, nan_ok=True), kind

    *others, slow = results(tmp_path, "unequal", size)  # ranks that step unequally often meet all the same
    for other in others:
        assert len(slow["steps"]) == len(other["steps"]) == 6
        assert sum(slow["steps"]) > 1.5 * sum(other["steps"])
        assert (other["tokens"], other["updates"]) == (slow["tokens"], 6 * 8)
        assert all(torch.equal(a, b) for a, b in zip(slow["weights"], other["weights"], strict=True))


def test_prompts_random_states_and_files_of_two_ranks(tmp_path):
    """The prompts are those of one process, in its order; what was saved goes on bit for bit; rank 0 alone prints."""
    done = launch(tmp_path, 2, "files", "optimum", "watched", "differ")
    zero, one = results(tmp_path, "files", 2)
    alone = iterations(make_agent(), 5, reset=True)
    for mine, theirs in ((zero, one), (one, zero)):
        for name in ("first", "went_on", "resumed", "free"):
            for here, there in zip(mine[name], theirs[name], strict=True):
                assert here["random"] != there["random"]
                assert {k: v for k, v in here.items() if k != "random"} == {
                    k: v for k, v in there.items() if k != "random"
                }
        played = mine["first"] + mine["went_on"]
        assert [i["prompts"] for i in played] == [i["prompts"] for i in alone[:4]]
        assert [i["numbers"] for i in played] == [list(range(n, n + 8)) for n in (0, 8, 16, 24)]
        assert len({tuple(map(tuple, (i["responses"]))) for i in played}) == 4
        assert mine["went_on"] == mine["resumed"]
        assert all(torch.equal(a, b) for a, b in zip(*mine["weights"], strict=True))
        assert mine["share"] == (0, 1)
    assert all(torch.equal(a, b) for a, b in zip(zero["weights"][0], one["weights"][0], strict=True))
    assert zero["statistics"] == one["statistics"]
    assert [s["count"] for s in zero["statistics"]] == [8]
    assert [len(s["seen"]) for s in zero["statistics"]] == [8]
    # another number of ranks: the same prompts go on, and it says what is not the same
    with pytest.warns(UserWarning, match="expected 2 ranks, as .* was saved with, got 1"):
        agent = TokenPPO.load(tmp_path / "agent", make_agent().env, device="cpu")
    assert [i["prompts"] for i in iterations(agent, 2, reset=False)] == [i["prompts"] for i in alone[2:4]]

    missed, variation = results(tmp_path, "optimum", 2)[0]
    print(f"two ranks: J* − J = {missed:.4f}, TV = {variation:.4f}")
    assert missed <= 0.01
    assert variation < 0.02
    assert results(tmp_path, "optimum", 2)[1] == (missed, variation)

    zero, one = results(tmp_path, "watched", 2)
    assert all(torch.equal(a, b) for a, b in zip(zero.pop("weights"), one.pop("weights"), strict=True))
    assert zero == one
    assert zero["kl"] > 0.02
    lines = (tmp_path / "monitor" / "monitor.jsonl").read_text().splitlines()
    assert len(lines) >= 2
    assert done.stdout.count("total_timesteps") == 2 + 2 + 2 + 1 + 1 + len(lines)  # iterations, each logged once
    assert json.loads(lines[-1])["tokens"] == zero["tokens"]
    assert json.loads(lines[-1])["figures"]["kl"] == pytest.approx(zero["kl"], rel=1e-5)
    order = [prompt for iteration in alone for prompt in iteration["prompts"]]
    assert zero["pairs"] == [prompt for prompt in order[:4] for _ in range(2)]
    assert zero["numbers"] == list(range(len(zero["numbers"])))
    assert len(zero["numbers"]) > 8 and len(zero["numbers"]) % 4 == 0
    assert 0 < sum(zero["learned"]) < len(zero["learned"])

    for said in results(tmp_path, "differ", 2):
        assert "expected one n_episodes on all ranks, got" in said[0]
        assert "expected the same weights on all 2 ranks" in said[1]
        assert "got others on rank 1 than on rank 0" in said[1]


def test_sharded_agents_act_on_whole_weights_and_leave_the_files_of_one_process(tmp_path):
    fork(tmp_path, 2, "files", "spread", RANKED_SHARDING="full")
    zero, one = results(tmp_path, "files", 2)
    for mine, theirs in ((zero, one), (one, zero)):
        assert mine["went_on"] == mine["resumed"]
        assert [i["responses"] for i in mine["went_on"]] == [i["responses"] for i in theirs["went_on"]]
        assert all(torch.equal(a, b) for a, b in zip(*mine["weights"], strict=True))
    with pytest.warns(UserWarning, match="expected 2 ranks, as .* was saved with, got 1"):
        agent = TokenPPO.load(tmp_path / "agent", make_agent().env, device="cpu")
    agent.learn(1, reset_num_timesteps=False)

    midway = read_state(tmp_path / "midway").policy
    for found in results(tmp_path, "spread", 2):
        assert len(found["apart"]) == 5
        assert max(found["apart"]) < 1e-5  # what was played is what the policy says of it, replayed steps included
        assert found["replayed"]
        whole = found["weights"]  # P parameters of 4 bytes: 16 P in one process
        assert max(found["acting"]) < 0.55 * 4 * whole
        assert max(found["updating"]) < 0.55 * 4 * whole
        assert all(torch.equal(saved, found["saved"][name]) for name, saved in midway.items())
        assert found["untied"] > 0
        assert found["adapter"] > 0
    sharded, plain, again = (read_state(tmp_path / name) for name in ("sharded", "plain", "again"))
    for other in (plain, again):
        assert other.data == sharded.data
        assert other.policy.keys() == sharded.policy.keys()
        assert all(torch.equal(value, other.policy[name]) for name, value in sharded.policy.items())
        for index, moments in sharded.optimizer.items():
            assert all(torch.equal(value, other.optimizer[index][name]) for name, value in moments.items())
    for folder in ("policy", "untied", "adapter"):
        assert AutoModelForCausalLM.from_pretrained(tmp_path / folder).num_parameters() > 0


def test_what_cannot_be_sharded_is_refused_before_any_work():
    class OnItsOwn(Regulariser):
        def add_gradient(self, micro_batch_size):
            return {}

    with pytest.raises(ValueError, match=r"expected sharding to be one of \('none', 'full'\), got 'some'"):
        TokenPPO(sharding="some")
    with pytest.raises(ValueError, match=r"policy\.forward_pass with sharding=.full., got OnItsOwn"):
        TokenPPO(sharding="full", regularisers=[OnItsOwn()])
    assert not TokenPPO("LMPolicy", make_agent().env, sharding="full").policy.sharded  # one process holds everything


@pytest.mark.parametrize("how", ["raises", "is killed", "hangs", "raises in an update"])
def test_a_rank_that_fails_ends_all(how, tmp_path):
    sharding = "full" if how == "raises in an update" else "none"
    done = launch(tmp_path, 2, f"failing:{how}", check=False, RANKED_SHARDING=sharding)
    assert done.returncode != 0
    assert "half an update" not in done.stdout
    assert not (tmp_path / "half.zip").exists()
    for rank in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"pid.{rank}").read_text()), 0)
    if how.startswith("raises"):
        assert done.stderr.count("ValueError: this reward knows no such word") == 1
        assert "raised on rank 1 of 2" in done.stderr
        assert done.stdout.count("Using cpu device") == 1  # rank 0 alone prints
        assert "StoppedError" not in done.stderr
    elif how == "hangs":
        assert done.stderr.count("StoppedError: expected all 2 ranks at the end of a rollout; rank 0 waited") == 1
        assert "did not find rank 1, which was last seen at" in done.stderr
        (waited,) = re.findall(r"rank 0 waited ([\d.]+) s", done.stderr)
        assert 2 < float(waited) < 60  # the group's limit is 3 s; the other one sleeps for 120
    else:
        assert "Signal 9 (SIGKILL)" in done.stderr


def test_ranks_without_a_launcher_learn_of_one_another(tmp_path):
    """One says what was raised, and where; the other one ends after it, silently."""
    (status, silent), (other, message) = start_without_launcher(tmp_path, 2, "failing:raises")
    assert (status, other) == (1, 1)
    assert "Traceback" not in silent
    assert message.count("ValueError: this reward knows no such word") == 1
    assert "raised on rank 1 of 2" in message


def test_a_rank_that_is_killed_without_a_launcher_is_missed(tmp_path):
    (status, message), (killed, _) = start_without_launcher(tmp_path, 2, "failing:is killed")
    assert (status, killed) == (1, -9)
    assert message.count("StoppedError: expected all 2 ranks at the end of a rollout; rank 0 waited") == 1
    assert "did not find rank 1, which was last seen at" in message


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants two GPUs, there are fewer")
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_gpus(sharding, tmp_path):
    launch(tmp_path, 2, "files", RANKED_DEVICE="cuda", RANKED_SHARDING=sharding)
    zero, one = results(tmp_path, "files", 2)
    assert all(torch.equal(a, b) for a, b in zip(zero["weights"][0], one["weights"][0], strict=True))
    assert zero["went_on"] == zero["resumed"]


def test_shares_of_an_order_are_the_order():
    """Three shares of seven prompts, each of them twice in a row, over several passes and resets."""

    def played(share, sizes):
        env = TokenVectorEnv(2, **word_settings(prompts=[[3 + i] for i in range(7)], samples_per_prompt=2))
        env.reset(seed=5)
        env.seed(5)
        env.share = share
        found = []
        for size in sizes:
            env.reset(options={"episodes": size})
            seen = {}
            while not env.parked.all():
                env.step(np.zeros(2, dtype=np.int64))
                seen |= {e.number: int(e.input_ids[0]) for e in env.last_step.episodes}
            found.append(seen)
            copy = TokenVectorEnv(2, **word_settings(prompts=[[3 + i] for i in range(7)], samples_per_prompt=2))
            copy.load_state_dict(env.state_dict())
            copy.share = share
            env = copy
        return found

    whole = played((0, 1), [6, 12, 24])
    parts = [played((i, 3), [2, 4, 8]) for i in range(3)]
    first = min(whole[0])
    for rollout, (expected, *shares) in enumerate(zip(whole, *parts, strict=True)):
        union = {number: prompt for share in shares for number, prompt in share.items()}
        assert sum(map(len, shares)) == len(union) == len(expected)
        assert dict(sorted(union.items())) == dict(sorted(expected.items())), rollout
    assert first == min(min(part[0]) for part in parts)
    with pytest.raises(ValueError, match=r"expected share=\(i, n\) with 0 <= i < n, got \(2, 2\)"):
        TokenVectorEnv(1, **word_settings()).share = (2, 2)


def test_a_process_by_itself_is_one_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    group = ranks()
    assert (group.rank, group.size, group.leads) == (0, 1, True)
    assert group.gather("x", "here") == ["x"]
    assert group.broadcast("x", "here") == "x"
    assert group.any(True, "here")
    assert not group.any(False, "here")
    tensor = torch.ones(2)
    group.add_up([tensor], "here")
    assert tensor.tolist() == [1.0, 1.0]
    assert isinstance(group, Ranks)
    assert group.waited == 0
