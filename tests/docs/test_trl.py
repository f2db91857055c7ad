"""The page on TRL's PPO: no argument of TRL 1.12 is missing, and its script runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "coming_from_trl.md").read_text()

PPO_TRAINER = """
args processing_class model ref_model reward_model train_dataset value_model data_collator eval_dataset optimizers
callbacks peft_config
"""
PPO_CONFIG = """
learning_rate dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size num_sample_generations
response_length stop_token stop_token_id temperature missing_eos_penalty sft_model_path world_size num_total_batches
micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size push_to_hub reward_model_path
model_adapter_name ref_adapter_name num_ppo_epochs whiten_rewards kl_coef kl_estimator cliprange vf_coef
cliprange_value gamma lam ds3_gather_for_generation
"""
BASE_CONFIG = "logging_steps gradient_checkpointing bf16 lr_scheduler_kwargs use_liger_kernel torch_empty_cache_steps"
"""What TRL's own base class of configurations declares."""
READ_BY_THE_TRAINER = """
per_device_train_batch_size gradient_accumulation_steps num_train_epochs seed output_dir save_steps eval_steps
per_device_eval_batch_size report_to disable_tqdm hub_model_id
"""
"""What `PPOTrainer` reads of Transformers' `TrainingArguments`."""


def named_in_tables() -> set[str]:
    """What stands in the first cell of a row."""
    rows = re.findall(r"^\| (`[^|]*`) \|", PAGE, flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize("names", [PPO_TRAINER, PPO_CONFIG, BASE_CONFIG, READ_BY_THE_TRAINER])
def test_no_argument_is_missing(names: str) -> None:
    assert set(names.split()) - named_in_tables() == set()


def test_every_row_says_something() -> None:
    rows = re.findall(r"^\| `[^|]*` \| (.*) \|$", PAGE, flags=re.MULTILINE)
    assert len(rows) > 40
    assert all(len(row) > 3 for row in rows)


def test_the_script_after_runs(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    script = tmp_path / "after.py"
    script.write_text(block)
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "nats from π_ref" in done.stdout
    assert (tmp_path / "ppo" / "model.safetensors").is_file()


def test_what_the_page_names_is_there() -> None:
    assert (ROOT / "tests" / "agents" / "test_trl_checkpoints.py").is_file()
    for page in re.findall(r"\]\((\w+\.md)\)", PAGE):
        assert (ROOT / "docs" / page).is_file(), page
