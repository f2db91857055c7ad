"""Saving, loading and going on: an interrupted run ends with the parameters of one that never stopped, bit for bit."""

import json
import signal
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhf_gym.agents import AdaptiveKL, ConstraintKL, FixedKL, LMActorCriticPolicy, TokenPPO, TokenReinforce
from rlhf_gym.agents.base import finish_before_interrupt
from rlhf_gym.envs import TokenVectorEnv, tabular_task
from rlhf_gym.lm.loading import Shared
from rlhf_gym.rewards import RewardModel
from tests import tiny
from tests.toy import word_settings

TOTAL = 420
"""Tokens: five rollouts or so."""


def word_env(n=6, **overrides):
    return TokenVectorEnv(n, **(word_settings(reward_timing="deferred") | overrides))


def make_agent(env_overrides=None, **overrides):
    settings = {"n_episodes": 16, "batch_size": 6, "n_epochs": 2, "learning_rate": 2e-3, "seed": 3, "device": "cpu"}
    return TokenPPO(env=word_env(**(env_overrides or {})), **(settings | overrides))


class StopAt(BaseCallback):
    """Ends or interrupts the run at some step, or at the end of some rollout."""

    def __init__(self, *, step=None, rollout=None, how="stop"):
        super().__init__()
        self.step, self.rollout, self.how, self.rollouts = step, rollout, how, 0

    def _on_step(self):
        if self.n_calls == self.step:
            if self.how == "interrupt":
                raise KeyboardInterrupt
            return False
        return True

    def _on_rollout_end(self):
        self.rollouts += 1
        if self.rollouts == self.rollout:
            raise KeyboardInterrupt


def interrupt_an_update(agent, step):
    """Ctrl-C in the middle of an update: the signal arrives at the optimizer's `step`-th step."""
    taken = []

    def hook(*_):
        taken.append(1)
        if len(taken) == step:
            signal.raise_signal(signal.SIGINT)

    agent.policy.optimizer.register_step_post_hook(hook)


def state(agent):
    weights = {name: parameter.detach().clone() for name, parameter in agent.policy.named_parameters()}
    counters = agent.num_timesteps, agent._n_updates, agent.kl_controller.state_dict(), agent.engine.state_dict()
    means = [(info["r"], info["l"]) for info in agent.ep_info_buffer]
    return weights, (*counters, means)


def assert_same_state(agent, expected):
    weights, counters = state(agent)
    assert counters == expected[1]
    for name, value in expected[0].items():
        assert torch.equal(weights[name], value), name


def go_on(agent):
    return agent.learn(TOTAL - agent.num_timesteps, reset_num_timesteps=False)


CASES = {
    "plain": {},
    "separate critic, linear schedules": {
        "policy_kwargs": {"critic": "separate"},
        "learning_rate": LinearSchedule(4e-3, 0.0, 1.0),
        "clip_range": LinearSchedule(0.3, 0.1, 1.0),
    },
    "adaptive kl, llama (untied)": {
        "kl_controller": (AdaptiveKL, (0.1, 0.5, 200)),
        "policy_kwargs": {"model": Shared(tiny.tiny_llama(seed=2)), "temperature": 0.9, "top_k": 20},
    },
    "rewards at each step": {"env_overrides": {"reward_timing": "step"}, "kl_controller": (ConstraintKL, (0.1, 0.5))},
    "reward model as critic, adamw": {
        "policy_kwargs": {
            "critic": "reward_model",
            "critic_model": Shared(tiny.tiny_reward_model(seed=6)),
            "optimizer_class": torch.optim.AdamW,
            "optimizer_kwargs": {"weight_decay": 0.1, "betas": (0.9, 0.95)},
        },
        "clip_range_vf": None,
    },
}


def case(name):
    """A fresh agent of that case; controllers keep state, so each gets its own."""
    overrides = dict(CASES[name])
    if "kl_controller" in overrides:
        kind, arguments = overrides["kl_controller"]
        overrides["kl_controller"] = kind(*arguments)
    return make_agent(**overrides)


INTERRUPTIONS = {
    "a callback in mid-rollout": lambda agent: agent.learn(TOTAL, callback=StopAt(step=38)),
    "ctrl-c in mid-rollout": lambda agent: agent.learn(TOTAL, callback=StopAt(step=38, how="interrupt")),
    "ctrl-c at the end of a rollout": lambda agent: agent.learn(TOTAL, callback=StopAt(rollout=2)),
    "ctrl-c in an update": lambda agent: (interrupt_an_update(agent, 8), agent.learn(TOTAL)),
}


@pytest.fixture(scope="module")
def never_stopped():
    """The state each case ends in, computed once."""
    cache = {}

    def get(name):
        if name not in cache:
            cache[name] = state(case(name).learn(TOTAL))
        return cache[name]

    return get


def interrupt(agent, how):
    if how.startswith("ctrl-c"):
        with pytest.raises(KeyboardInterrupt):
            INTERRUPTIONS[how](agent)
    else:
        INTERRUPTIONS[how](agent)
    assert 0 < agent.num_timesteps < TOTAL
    assert agent._n_updates > 0


@pytest.mark.parametrize(
    ("name", "how"),
    [("plain", how) for how in INTERRUPTIONS]
    + [(name, list(INTERRUPTIONS)[i % 4]) for i, name in enumerate(CASES) if name != "plain"],
)
def test_interrupted_saved_loaded_and_continued_is_never_stopped(name, how, never_stopped, tmp_path):
    agent = case(name)
    interrupt(agent, how)
    agent.save(tmp_path / "agent")
    torch.manual_seed(99)  # whatever is drawn until learning goes on must not matter
    loaded = TokenPPO.load(tmp_path / "agent", word_env(**CASES[name].get("env_overrides", {})), device="cpu")
    assert loaded.num_timesteps == agent.num_timesteps
    torch.rand(5)
    go_on(loaded)
    assert_same_state(loaded, never_stopped(name))


@pytest.mark.parametrize("how", INTERRUPTIONS)
def test_interrupted_and_continued_in_memory_is_never_stopped(how, never_stopped):
    agent = case("plain")
    interrupt(agent, how)
    if how != "ctrl-c in an update":  # that one was finished first, so that nothing is taken back
        torch.manual_seed(99)
    go_on(agent)
    assert_same_state(agent, never_stopped("plain"))


def test_a_run_in_two_parts_is_not_the_same_without_the_saved_random_state(never_stopped, tmp_path):
    """The score of a broken resumption: the same weights and optimizer, another stream of random numbers."""
    agent = case("plain")
    interrupt(agent, "a callback in mid-rollout")
    agent.save(tmp_path / "agent")
    loaded = TokenPPO.load(tmp_path / "agent", word_env(), device="cpu", seed=4)
    go_on(loaded)
    with pytest.raises(AssertionError):
        assert_same_state(loaded, never_stopped("plain"))


def test_the_environment_can_be_set_after_loading(never_stopped, tmp_path):
    agent = case("plain")
    interrupt(agent, "ctrl-c in mid-rollout")
    agent.save(tmp_path / "agent")
    loaded = TokenPPO.load(tmp_path / "agent", device="cpu")
    loaded.set_env(word_env())
    go_on(loaded)
    assert_same_state(loaded, never_stopped("plain"))


def test_a_new_run_after_an_interrupted_one_counts_from_zero():
    agent = case("plain")
    interrupt(agent, "a callback in mid-rollout")
    updates = agent._n_updates
    agent.learn(1)
    assert agent.num_timesteps == agent.buffer.num_tokens
    assert agent._n_updates > updates


def test_an_update_is_finished_before_ctrl_c_takes_effect():
    agent = case("plain")
    interrupt(agent, "ctrl-c in an update")
    assert agent._n_updates % 6 == 0
    assert agent.num_timesteps > 0


def test_figures_are_those_of_whole_iterations():
    agent = case("plain")
    interrupt(agent, "ctrl-c at the end of a rollout")
    assert not agent.logger.name_to_value
    agent = case("plain")
    interrupt(agent, "ctrl-c in an update")
    assert {"rlhf/score", "train/loss"} <= set(agent.logger.name_to_value)


def test_interrupts_outside_the_block_are_as_ever():
    handler = signal.getsignal(signal.SIGINT)
    reached = []

    def block():
        with finish_before_interrupt():
            signal.raise_signal(signal.SIGINT)
            reached.append(1)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached == [1]
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        block()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


def test_other_signals_that_python_handles_wait_for_the_end_of_an_update():
    reached = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: reached.append("handled"))
    try:
        with finish_before_interrupt():
            signal.raise_signal(signal.SIGTERM)
            reached.append("finished")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert reached == ["finished", "handled"]


# -- the file ------------------------------------------------------------------------------------------------------


def test_the_zip_holds_safetensors_and_json_and_nothing_pickled(tmp_path):
    agent = case("reward model as critic, adamw")
    agent.learn(1)
    agent.save(tmp_path / "agent")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert sorted(archive.namelist()) == ["data.json", "optimizer.safetensors", "policy.safetensors"]
        json.loads(archive.read("data.json"))
        for name in ("optimizer.safetensors", "policy.safetensors"):
            content = archive.read(name)
            header = int.from_bytes(content[:8], "little")
            json.loads(content[8 : 8 + header])
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("name", CASES)
def test_what_is_loaded_predicts_the_same_without_an_environment(name, tmp_path):
    agent = case(name)
    agent.learn(1)
    agent.save(tmp_path / "some" / "agent.zip")
    loaded = TokenPPO.load(tmp_path / "some" / "agent", device="cpu")
    observation, _ = word_env().reset(seed=0)
    answers = [a.policy.act(observation, deterministic=True) for a in (agent, loaded)]
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    np.testing.assert_array_equal(*(a.predict(observation, deterministic=True)[0] for a in (agent, loaded)))
    assert loaded.policy.sampling == agent.policy.sampling
    assert type(loaded.policy.optimizer) is type(agent.policy.optimizer)
    for key in ("weight_decay", "lr", "eps"):
        assert loaded.policy.optimizer.param_groups[0][key] == agent.policy.optimizer.param_groups[0][key]
    for key in ("n_episodes", "batch_size", "n_epochs", "gamma", "gae_lambda", "target_kl", "seed"):
        assert getattr(loaded, key) == getattr(agent, key)
    tied = loaded.policy.model.get_output_embeddings().weight is loaded.policy.model.get_input_embeddings().weight
    assert tied == ("llama" not in name)


def test_a_policy_of_a_bfloat16_checkpoint_is_saved_whole(tmp_path):
    """The configuration says bfloat16, the weights that were learned are fp32 and stay so."""
    model = tiny.tiny_gpt2(seed=2).to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    agent = make_agent(policy_kwargs={"model": Shared(model)})
    agent.learn(1)
    agent.save(tmp_path / "agent")
    loaded = TokenPPO.load(tmp_path / "agent", device="cpu")
    for one, other in zip(agent.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_arguments_can_be_replaced_at_loading(tmp_path):
    agent = make_agent(kl_controller=AdaptiveKL(0.1, 6.0))
    agent.learn(1)
    agent.save(tmp_path / "agent")
    overrides = {"kl_controller": FixedKL(0.3), "learning_rate": 5e-4, "batch_size": 3}
    loaded = TokenPPO.load(tmp_path / "agent", word_env(), device="cpu", **overrides)
    assert loaded.kl_controller.state_dict() == FixedKL(0.3).state_dict()
    assert loaded.batch_size == 3
    go_on(loaded)
    assert loaded.engine.kl_coef == 0.3
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 5e-4


def test_functions_and_unknown_classes_must_be_given_again(tmp_path):
    agent = make_agent(learning_rate=lambda progress: 1e-3 * progress)
    agent.save(tmp_path / "schedule")
    with pytest.raises(ValueError, match=r"learning_rate was a function .* pass learning_rate=… when loading"):
        TokenPPO.load(tmp_path / "schedule", device="cpu")
    TokenPPO.load(tmp_path / "schedule", device="cpu", learning_rate=1e-3)

    class Mine(torch.optim.Adam):
        pass

    agent = make_agent(policy_kwargs={"optimizer_class": Mine})
    agent.save(tmp_path / "optimizer")
    with pytest.raises(ValueError, match=r"pass policy_kwargs=\{'optimizer_class': Mine\} when loading"):
        TokenPPO.load(tmp_path / "optimizer", device="cpu")
    TokenPPO.load(tmp_path / "optimizer", device="cpu", policy_kwargs={"optimizer_class": Mine})

    class MyPolicy(LMActorCriticPolicy):
        pass

    make_agent(policy=MyPolicy).save(tmp_path / "policy")
    with pytest.raises(ValueError, match="pass policy=MyPolicy when loading"):
        TokenPPO.load(tmp_path / "policy", device="cpu")
    assert type(TokenPPO.load(tmp_path / "policy", device="cpu", policy=MyPolicy).policy) is MyPolicy


def test_an_environment_with_other_prompts_begins_anew_and_says_so(tmp_path):
    agent = make_agent()
    agent.learn(1)
    agent.save(tmp_path / "agent")
    with pytest.warns(UserWarning, match="expected an environment with 4 prompts, got 2: their order begins anew"):
        loaded = TokenPPO.load(tmp_path / "agent", word_env(prompts=[[3], [4, 5]]), device="cpu")
    go_on(loaded)
    assert {len(e.prompt_ids) for e in loaded.buffer.episodes} == {1, 2}


class OtherPPO(TokenPPO):
    """Another agent, to its file."""


def test_wrong_files_say_what_was_expected(tmp_path):
    agent = make_agent()
    with pytest.raises(FileNotFoundError, match=r"expected a saved agent at .*missing\.zip"):
        TokenPPO.load(tmp_path / "missing")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(ValueError, match=r"expected a zip with data.json, .*text.zip is no zip"):
        TokenPPO.load(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "sb3.zip", "w") as archive:
        archive.writestr("policy.pth", b"")
    with pytest.raises(ValueError, match=r"expected a zip with data.json, .*holds policy.pth"):
        TokenPPO.load(tmp_path / "sb3")
    agent.save(tmp_path / "agent")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive, zipfile.ZipFile(tmp_path / "old.zip", "w") as old:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "data.json":
                content = json.dumps({k: v for k, v in json.loads(content).items() if k != "format"}).encode()
            old.writestr(name, content)
    with pytest.raises(ValueError, match=r"agent's file of format 3, .*old.zip has format 1 \(written by rlhf-gym"):
        TokenPPO.load(tmp_path / "old")
    with pytest.raises(ValueError, match=r"expected a saved OtherPPO, .* holds a TokenPPO"):
        OtherPPO.load(tmp_path / "agent")
    with pytest.raises(ValueError, match="environment's vocabulary of 40 tokens, got 29"):
        TokenPPO.load(tmp_path / "agent", word_env(reference=Shared(tiny.tiny_gpt2(40))), device="cpu")


def test_the_actor_is_saved_as_a_transformers_folder(tmp_path):
    from rlhf_gym.lm.loading import load_causal_lm, load_tokenizer

    agent = make_agent()
    agent.learn(1)
    agent.save_pretrained(tmp_path / "model")
    model = load_causal_lm(tmp_path / "model")
    for one, other in zip(model.parameters(), agent.policy.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert load_tokenizer(tmp_path / "model").get_vocab() == agent.engine.tokenizer.get_vocab()


# -- files that were changed by other hands ----------------------------------------------------------------------------


def rewritten(source, target, change):
    """A copy of an agent's file, after `change(name, content)` of its data and of each of its tables of tensors."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            is_data = name == "data.json"
            content = json.loads(archive.read(name)) if is_data else safetensors.torch.load(archive.read(name))
            change(name, content)
            copy.writestr(name, json.dumps(content) if is_data else safetensors.torch.save(content))
    return target


def replaced(file, key, make):
    def change(name, table):
        if name == file + ".safetensors":
            table[key] = make(table[key])

    return change


def without_optimizer(name, table):
    if name == "optimizer.safetensors":
        table.clear()


def with_data(**changes):
    def change(name, data):
        if name == "data.json":
            for path, value in changes.items():
                *outer, last = path.split("__")
                place = data
                for key in outer:
                    place = place[int(key) if key.isdigit() else key]
                place[last] = value

    return change


WEIGHT = "model.transformer.h.0.ln_1.weight"
DAMAGE = {
    "a moment of another shape": (
        replaced("optimizer", "0.exp_avg", lambda t: t[:1, :1].clone()),
        r"expected exp_avg of parameter 0 in the optimizer as \(29, 32\) of torch.float32, got \(1, 1\)",
    ),
    "a moment that is no number": (
        replaced("optimizer", "0.exp_avg_sq", lambda t: t * float("nan")),
        "expected finite numbers in exp_avg_sq of parameter 0 in the optimizer, got NaN",
    ),
    "a moment less": (
        lambda name, table: table.pop("1.exp_avg", None),
        r"expected the optimizer's state of parameter 1; missing \['exp_avg'\]",
    ),
    "an optimizer that forgot": (without_optimizer, r"has taken \d+ steps, got one without a state"),
    "a parameter too many": (
        lambda name, table: table.update({"999.step": torch.zeros(())}) if name == "optimizer.safetensors" else None,
        "got one of number 999",
    ),
    "a weight that would be broadcast": (
        replaced("policy", WEIGHT, lambda t: t[:1].clone()),
        r"expected the weight model.transformer.h.0.ln_1.weight as \(\d+,\) of torch.float32, got \(1,\)",
    ),
    "weights of whole numbers": (
        replaced("policy", WEIGHT, lambda t: t.to(torch.int8)),
        r"of torch.float32, got \(\d+,\) of torch.int8",
    ),
    "a weight that is no number": (
        replaced("policy", WEIGHT, lambda t: t * float("inf")),
        "expected finite numbers in the weight model.transformer.h.0.ln_1.weight, got NaN or infinite",
    ),
    "a place for logs": (
        with_data(arguments__tensorboard_log="elsewhere"),
        r"the arguments of a TokenPPO in .*unexpected \['tensorboard_log'\]",
    ),
    "an argument of the policy": (
        with_data(policy__use_sde=True),
        r"expected the arguments of a policy; missing \[\], unexpected \['use_sde'\]",
    ),
    "a schedule of something": (with_data(schedules__device="cpu"), r"the schedules of a TokenPPO .*'device'"),
    "a setting of the optimizer": (
        with_data(optimizer_groups__0__lr=float("inf")),
        "expected a finite lr of the optimizer, got inf",
    ),
    "other groups": (
        with_data(optimizer_groups__0__params=[0]),
        "groups of the policy's parameters, got other groups",
    ),
    "a model a million wide": (with_data(policy__model__n_embd=10**6), "weights have n_embd=1,000,000, got at most"),
    "layers a billion wide": (
        with_data(policy__model__n_inner=10**9),
        r"expected a policy's model of the sizes of its weights, got transformer.h.0.mlp.c_fc.weight of \(32, 10{9}\)",
    ),
    "random numbers of another generator": (with_data(state__torch_rng=[1, 2, 3]), "RNG state size to be 3"),
    "a negative number of tokens": (with_data(state__num_timesteps=-5), "num_timesteps of an agent >= 0, got -5"),
    "an episode that is none": (with_data(state__ep_infos=[{"r": 1.0}]), r"missing \['l', 't'\]"),
    "prompts that there are not": (
        with_data(state__env__prompts__order=[10**6]),
        r"expected an order of \d+ prompts and how many of them are drawn, got 1 numbers",
    ),
    "an infinite penalty": (
        with_data(kl_controller__kl_coef=float("inf")),
        "expected a finite number as kl_coef, got inf",
    ),
}


@pytest.fixture(scope="module")
def a_saved_agent(tmp_path_factory):
    path = tmp_path_factory.mktemp("agent") / "agent.zip"
    make_agent().learn(60).save(path)
    return path


@pytest.mark.parametrize("damage", DAMAGE)
def test_tensors_and_arguments_that_do_not_fit_are_refused_before_anything_is_taken_over(
    damage, a_saved_agent, tmp_path
):
    change, message = DAMAGE[damage]
    path = rewritten(a_saved_agent, tmp_path / "changed.zip", change)
    with pytest.raises(ValueError, match=message):
        TokenPPO.load(path, word_env(), device="cpu")


def test_a_file_that_was_only_written_again_is_loaded(a_saved_agent, tmp_path):
    path = rewritten(a_saved_agent, tmp_path / "same.zip", lambda name, content: None)
    loaded, known = (TokenPPO.load(p, word_env(), device="cpu") for p in (path, a_saved_agent))
    assert all(torch.equal(a, b) for a, b in zip(loaded.policy.parameters(), known.policy.parameters(), strict=True))


def test_a_file_that_unpacks_to_more_than_it_holds_is_refused(tmp_path):
    agent = TokenReinforce(env=tabular_task(0).env(4), n_episodes=4, policy_kwargs={"use_cache": False})
    agent.save(tmp_path / "agent.zip")
    with (
        zipfile.ZipFile(tmp_path / "agent.zip") as archive,
        zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name) if name != "policy.safetensors" else b"\0" * 10**7)
    with pytest.raises(ValueError, match=r"expected members stored as they are, .* compressed"):
        TokenReinforce.load(tmp_path / "packed.zip", env=agent.env)


def test_a_critic_of_a_family_whose_head_has_weights_that_no_policy_has_is_loaded(tmp_path):
    """Phi's head has a bias, and a critic has no such head: its trunk alone is compared with the weights."""
    env = TokenVectorEnv(2, **word_settings(reward_timing="deferred"))
    sizes = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "phi",
        vocab_size=int(env.single_action_space.n),
        num_labels=1,
        pad_token_id=0,
        partial_rotary_factor=0.5,
        **sizes,
    )
    reward = RewardModel(AutoModelForSequenceClassification.from_config(config), env.tokenizer)
    kwargs = {"critic": "reward_model", "critic_model": Shared(reward)}
    agent = TokenPPO("LMPolicy", env, n_episodes=4, batch_size=4, seed=0, device="cpu", policy_kwargs=kwargs)
    agent.save(tmp_path / "agent")
    loaded = TokenPPO.load(tmp_path / "agent", env, device="cpu")
    saved = dict(agent.policy.named_parameters())
    assert all(torch.equal(value, saved[name]) for name, value in loaded.policy.named_parameters())
