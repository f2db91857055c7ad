"""A whole run about conversations: messages in, messages in all that it leaves, turns in its report."""

from __future__ import annotations

from pathlib import Path

from rlhf_gym.files import read_jsonl
from rlhf_gym.lm import Message, load_tokenizer
from rlhf_gym.lm.chat import to_json
from rlhf_gym.pipeline import run
from rlhf_gym.pipeline.human_evaluation import comparison_items
from rlhf_gym.preferences import Demonstration, read_preferences
from rlhf_gym.preferences.files import read_candidates
from rlhf_gym.runs import RunFolder
from tests.tiny import WORDS, tiny_gpt2, tiny_tokenizer
from tests.tiny_runs import PROMPTS, quiet, said, tiny_config, tiny_task

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} [end] {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ASKED = [(Message("system", "fine film"), Message("user", text)) for text in PROMPTS]


def test_a_run_about_conversations(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer([*WORDS, "[system]", "[user]", "[assistant]", "[end]"])
    tokenizer.chat_template = TEMPLATE
    tiny_gpt2(len(tokenizer), n_layer=1, n_embd=16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    task = tiny_task(
        tmp_path / "model",
        prompts=ASKED[6:],
        heldout_prompts=ASKED[:6],
        demonstrations=[Demonstration(prompt, "good film") for prompt in ASKED[6:]],
        heldout_demonstrations=[Demonstration(prompt, "good film") for prompt in ASKED[:6]],
        tokenizer=tokenizer,
        max_prompt_length=10,
        pretraining_texts=(),
        model_config=None,
    )
    console = quiet()
    run(tiny_config(tmp_path / "run"), task=task, console=console)
    assert "conversations (24) are rendered by the tokenizer's own chat template" in said(console)
    folder = RunFolder(tmp_path / "run")
    candidates = read_candidates(folder.stage("collect") / "candidates.jsonl")
    assert {c.prompt for c in candidates} <= set(ASKED[6:]) and len({c.prompt for c in candidates}) == 14
    compared = read_preferences(folder.stage("collect") / "preferences.jsonl")
    assert {p.prompt for p in compared} <= {c.prompt for c in candidates}
    names = sorted(path.stem for path in (folder.stage("evaluate") / "samples").glob("*.jsonl"))
    for name in names:
        rows = list(read_jsonl(folder.stage("evaluate") / "samples" / f"{name}.jsonl"))
        assert all(row["prompt"] in [to_json(prompt) for prompt in ASKED[:6]] for row in rows)
    items, same = comparison_items(folder, "train", "sft")
    assert len(items) + same == 6 and {item.prompt for item in items} <= set(ASKED[:6])
    page = folder.report.read_text()
    assert page.count('<span class="speaker">system</span> <b>fine film</b>') == 2  # the two prompts that are shown
    for saved in (folder.stage("sft") / "model", folder.seed("train", 1, 0) / "model"):
        assert load_tokenizer(saved).chat_template == TEMPLATE
