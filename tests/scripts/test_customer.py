"""The circle on dialogues in its smallest form: what is compared, what r_φ reads, the table and the picture."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.lm import Shared, load_causal_lm
from rlhf_gym.rewards import RewardModel
from rlhf_gym.tasks import customer_task, reviews_task

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "studies"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "models"))
import build_customer
import customer


def test_the_script_in_its_smallest_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def go() -> str:
        folders = {"run_dir": tmp_path / "runs", "output": tmp_path / "customer.png"}
        customer.main(seeds=1, labels=24, tokens=8, points=1, **folders)
        return capsys.readouterr().out

    said = go()
    assert "| SFT | " in said and "| PPO | " in said and "held-out comparisons predicted: " in said
    assert "nan" not in said and said.count("Human: ") >= 2
    assert (tmp_path / "customer.png").stat().st_size > 10_000
    kept = (tmp_path / "runs" / "seed-0.json").read_bytes()
    assert go().endswith(said[said.index("SFT\n") :])
    assert (tmp_path / "runs" / "seed-0.json").read_bytes() == kept


def test_pairs_are_of_one_opening_and_r_phi_reads_the_whole_dialogue() -> None:
    task = customer_task()
    r_phi = RewardModel.from_pretrained(task.reward_model)
    dialogues = customer.talk(customer.make_agent(Shared(r_phi), 0), 64, 3)
    told = customer.candidates_of(dialogues)
    assert all(a.prompt == b.prompt for a, b in zip(told[::2], told[1::2], strict=True))
    assert len({c.prompt for c in told}) == 32
    closed = [int(e.input_ids[-1]) == task.tokenizer.eos_token_id for e in dialogues.episodes]  # the others were cut
    assert np.mean(closed) > 0.9
    read = r_phi.scores_of_texts([c.prompt for c in told], [c.response for c in told], closed=closed).scores.numpy()
    earned = customer.make_env(Shared(r_phi)).score_episodes(dialogues.episodes).scores
    np.testing.assert_allclose(earned, read, atol=1e-5)
    long = [i for i, c in enumerate(told) if not isinstance(c.response, str) and closed[i]]
    last = r_phi.score_texts([told[i].prompt for i in long], [told[i].response[-1].content for i in long])
    assert np.abs(last - read[long]).min() > 1e-4  # the last answer alone is another text


def test_the_policy_begins_with_what_the_reviews_model_knows() -> None:
    task = customer_task()
    known = load_causal_lm(reviews_task().pretrained).get_input_embeddings().weight
    policy = build_customer.untrained_policy()
    assert policy.get_input_embeddings().weight.shape == (len(task.tokenizer), known.shape[1])
    for word in ("soup", "tasty", "."):
        mine = task.tokenizer.convert_tokens_to_ids(word)
        theirs = reviews_task().tokenizer.convert_tokens_to_ids(word)
        assert (policy.get_input_embeddings().weight[mine] == known[theirs]).all()
