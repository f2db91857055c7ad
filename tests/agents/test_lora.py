"""LoRA: a policy with an adapter begins at its π_ref, learns, and the base stays as it is to the last bit."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from transformers import AutoModelForCausalLM

from rlhf_gym.agents import DPO, LMActorCriticPolicy, TokenPPO
from rlhf_gym.agents.saving import load_named_weights, named_weights
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.lm import Decoder, LMParts, LoRA, Shared, load_causal_lm, load_tokenizer, merged
from rlhf_gym.lm import decoder as decoder_module
from rlhf_gym.lm.lora import add_adapter, base_model, has_adapter
from rlhf_gym.pipeline import prepare, run
from rlhf_gym.pipeline.agents import make_agent, make_env
from rlhf_gym.rewards import RewardModel
from rlhf_gym.training import train_sft
from tests.tiny import tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.tiny_runs import quiet, tiny_config, tiny_task
from tests.tiny_runs import save_model as save_tiny_model
from tests.toy import word_policy, word_settings

peft = pytest.importorskip("peft", reason="needs peft: pip install -e '.[lora]'")

# peft's own, on Transformers from 5.20 or so
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ARCHITECTURES = {"gpt2": tiny_gpt2, "llama": tiny_llama}
PRETRAINED = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "target_modules": "all-linear"}
"""An adapter whose B is drawn as well: it does something, as one that was trained would."""


def pretrained_model(make=tiny_gpt2):
    """A base with an adapter that changes what it says."""
    model = make(seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        add_adapter(model, PRETRAINED)
    return model.eval()


@pytest.fixture(params=ARCHITECTURES)
def make(request):
    return ARCHITECTURES[request.param]


@pytest.fixture
def base_folder(make, tmp_path):
    make(seed=1).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter_folder(base_folder, tmp_path):
    """What peft itself writes."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    settings = {**PRETRAINED, "fan_in_fan_out": model.config.model_type == "gpt2"}
    peft.get_peft_model(model, peft.LoraConfig(**settings)).save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def environment(reference, **overrides):
    return TokenVectorEnv(4, **word_settings(reward_timing="deferred", reference=reference, **overrides))


def learner(env, **policy_kwargs):
    return TokenPPO(
        "LMPolicy",
        env,
        n_episodes=8,
        batch_size=4,
        n_epochs=2,
        learning_rate=1e-2,
        seed=0,
        device="cpu",
        policy_kwargs=policy_kwargs,
    )


def weights(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def is_adapters(name):
    return ".lora_" in name


def log_ratio_at_start(agent):
    """The largest |log π − log π_ref| of a rollout, as acted and as evaluated."""
    _, callback = agent._setup_learn(1, None)
    agent.collect_rollouts(agent.env, callback)
    buffer = agent.buffer
    batch = buffer.batch(np.arange(len(buffer)), agent.device)
    with torch.no_grad():
        again = agent.policy.evaluate_episodes(batch.input_ids, batch.action_mask)
    ratios = [x - buffer.ref_log_probs for x in (buffer.log_probs, again.log_probs)]
    return max(float(ratio[batch.mask].abs().max()) for ratio in ratios)


def logits(model):
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize(
    ("architecture", "lora"),
    [
        ("gpt2", LoRA()),
        ("gpt2", LoRA(r=2, alpha=4, target_modules="all-linear")),
        ("gpt2", {"r": 2, "use_dora": True}),
        ("llama", LoRA()),
    ],
)
def test_a_fresh_adapter_begins_at_the_reference_and_alone_learns(architecture, lora):
    env = environment(Shared(ARCHITECTURES[architecture](seed=1)))
    agent = learner(env, lora=lora)
    assert log_ratio_at_start(agent) < 1e-5
    before, reference = weights(agent.policy), weights(env.token_reward.reference.model)
    agent.learn(40)
    moved = {name for name, value in agent.policy.named_parameters() if not torch.equal(value, before[name])}
    trained = {name for name, value in agent.policy.named_parameters() if value.requires_grad}
    assert moved == trained == {n for n in before if is_adapters(n) or n.startswith("value_head.")}
    held = {id(p) for group in agent.policy.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in agent.policy.parameters() if p.requires_grad}
    for name, value in env.token_reward.reference.model.named_parameters():
        assert torch.equal(value, reference[name]), name
    assert log_ratio_at_start(agent) > 1e-3


@pytest.mark.parametrize("given", ["the reference's own", "a folder"])
def test_a_pretrained_adapter_is_the_reference_and_goes_on_learning(adapter_folder, base_folder, given, tmp_path):
    env = environment(str(adapter_folder), tokenizer=None)
    reference = env.token_reward.reference
    loaded = load_causal_lm(adapter_folder)
    assert not torch.allclose(logits(loaded), logits(load_causal_lm(base_folder)), atol=1e-2), "it does nothing"
    agent = learner(env, **({"model": adapter_folder} if given == "a folder" else {}))
    assert log_ratio_at_start(agent) < 1e-5
    assert not any(p.requires_grad for p in reference.model.parameters())
    before, frozen = weights(agent.policy), weights(reference.model)
    agent.learn(40)
    for name, value in agent.policy.named_parameters():
        assert torch.equal(value, before[name]) != (is_adapters(name) or name.startswith("value_head.")), name
    for name, value in reference.model.named_parameters():
        assert torch.equal(value, frozen[name]), name
    base = load_causal_lm(base_folder)
    for name, value in base_model(agent.policy.model).named_parameters():
        assert torch.equal(value, base.get_parameter(name)), name
    agent.save(tmp_path / "agent.zip")
    again = TokenPPO.load(tmp_path / "agent.zip", device="cpu").policy
    for name, value in agent.policy.named_parameters():
        assert torch.equal(value, again.get_parameter(name)), name


@pytest.mark.parametrize(
    "kwargs",
    [
        {"lora": LoRA(r=2, target_modules=["c_attn", "c_fc"])},
        {"lora": LoRA(), "critic": "separate"},
        {"lora": LoRA(), "bf16": True},
        {"model": Shared(pretrained_model()), "critic": "separate", "freeze_layers": 1},
    ],
)
def test_what_is_loaded_goes_on_bit_for_bit(kwargs, tmp_path):
    def fresh():
        return learner(environment(Shared(tiny_gpt2(seed=1))), **kwargs)

    never = fresh().learn(40)
    never.learn(40, reset_num_timesteps=False)
    saved = fresh().learn(40)
    saved.save(tmp_path / "agent.zip")
    again = TokenPPO.load(tmp_path / "agent.zip", env=environment(Shared(tiny_gpt2(seed=1))), device="cpu")
    shape = [(name, p.requires_grad) for name, p in saved.policy.named_parameters()]
    assert [(name, p.requires_grad) for name, p in again.policy.named_parameters()] == shape
    again.learn(40, reset_num_timesteps=False)
    for name, value in never.policy.state_dict().items():
        assert torch.equal(value, again.policy.state_dict()[name]), name


def test_a_critic_of_its_own_is_trained_whole():
    model = pretrained_model()
    agent = learner(environment(Shared(model)), critic="separate")
    trunk = agent.policy.value_trunk
    assert not any(is_adapters(name) for name, _ in trunk.named_parameters())
    ids = torch.arange(3, 9)[None]
    theirs = LMParts(merged(model)).hidden_states(ids)
    torch.testing.assert_close(agent.policy._value_parts.hidden_states(ids), theirs, atol=1e-5, rtol=1e-5)
    before = weights(trunk)
    agent.learn(40)
    assert all(p.requires_grad for p in trunk.parameters())
    assert sum(not torch.equal(p, before[name]) for name, p in trunk.named_parameters()) > len(before) // 2


def test_frozen_layers_keep_their_part_of_the_adapter():
    agent = learner(environment(Shared(pretrained_model())), freeze_layers=1)
    assert log_ratio_at_start(agent) < 1e-5
    before = weights(agent.policy)
    agent.learn(40)
    moved = {name for name, value in agent.policy.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {n for n in before if (is_adapters(n) and ".h.1." in n) or n.startswith("value_head.")}


@pytest.mark.parametrize("kwargs", [{"lora": LoRA()}, {"freeze_layers": 1}, {}], ids=["adapter", "layers", "nothing"])
def test_what_is_frozen_is_held_once_beside_the_reference(kwargs):
    agent = learner(environment(Shared(ARCHITECTURES["llama"](seed=1).requires_grad_(False))), **kwargs)
    agent.learn(40)
    theirs = {parameter.data_ptr() for parameter in agent.engine.token_reward.reference.model.parameters()}
    once = {name for name, p in agent.policy.model.named_parameters() if p.data_ptr() in theirs}
    assert once == {name for name, p in agent.policy.model.named_parameters() if not p.requires_grad}
    assert bool(once) == bool(kwargs)


@pytest.mark.parametrize("load", ["load_state_dict", "load_named_weights"])
def test_other_weights_loaded_into_the_policy_do_not_reach_the_reference(load):
    agent = learner(environment(Shared(ARCHITECTURES["llama"](seed=1).requires_grad_(False))), lora=LoRA())
    agent.learn(40)
    reference = agent.engine.token_reward.reference.model
    before = weights(reference)
    state = {name: value + 1 for name, value in agent.policy.state_dict().items()}
    if load == "load_state_dict":
        agent.policy.load_state_dict(state)
    else:
        load_named_weights(agent.policy, {name: state[name] for name in named_weights(agent.policy)})
    assert all(torch.equal(value, before[name]) for name, value in reference.named_parameters())
    assert all(torch.equal(value, state[name]) for name, value in agent.policy.named_parameters())
    agent.learn(40)  # π_ref is another model now, and nothing of it is shared
    assert all(torch.equal(value, before[name]) for name, value in reference.named_parameters())


def test_stepping_is_recomputation(make, monkeypatch):
    monkeypatch.setattr(decoder_module, "USES_BEFORE_REPLAY", 2)
    model = pretrained_model(make)
    stepped, whole = Decoder(model, use_cache=True), Decoder(model, use_cache=False)
    rows = np.random.default_rng(0).integers(3, 29, size=(5, 14))
    for length in range(4, 14):
        if length == 10:  # an update: the replay must follow the adapter's weights
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.mul_(-1)
            stepped.invalidate()
        ours, expected = (d.logits(rows, np.full(5, length)) for d in (stepped, whole))
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert stepped._steps and not stepped.why_no_replay


def test_dropout_of_the_adapter_stays_off():
    policy = word_policy(environment(Shared(tiny_gpt2(seed=1))), lora={**PRETRAINED, "lora_dropout": 0.5})
    policy.set_training_mode(True)
    ids = torch.arange(3, 13)[None]
    action_mask = torch.arange(10)[None] >= 4
    one, other = (policy.evaluate_episodes(ids, action_mask).log_probs for _ in range(2))
    assert torch.equal(one, other)


def test_the_saved_adapter_is_pefts_and_loads_with_its_base(base_folder, tmp_path):
    env = environment(str(base_folder))
    agent = learner(env, lora=LoRA(r=2))
    agent.learn(40)
    agent.save_pretrained(tmp_path / "own")
    names = {path.name for path in (tmp_path / "own").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert not {"config.json", "model.safetensors"} & names
    settings = json.loads((tmp_path / "own" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base_folder) and settings["r"] == 2
    expected = logits(agent.policy.model)
    torch.testing.assert_close(logits(load_causal_lm(tmp_path / "own")), expected)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "own")
    torch.testing.assert_close(logits(theirs), expected)
    assert load_tokenizer(tmp_path / "own").eos_token == "<eos>"
    # as a policy and as a reference again
    assert log_ratio_at_start(learner(environment(str(tmp_path / "own"), tokenizer=None))) < 1e-5
    # and out of the agent's own file, which knows a configuration where there was a folder
    agent.save(tmp_path / "agent.zip")
    TokenPPO.load(tmp_path / "agent.zip", device="cpu").save_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(load_causal_lm(tmp_path / "again")), expected)


def test_a_base_without_a_name_is_saved_beside_its_adapter(make, tmp_path):
    model = pretrained_model(make)
    agent = learner(environment(Shared(model)))
    agent.save_pretrained(tmp_path / "both")
    loaded = load_causal_lm(tmp_path / "both")
    assert has_adapter(loaded)
    torch.testing.assert_close(logits(loaded), logits(model))


def test_merged_weights_say_the_same_without_an_adapter(make, tmp_path, monkeypatch):
    model = pretrained_model(make)
    agent = learner(environment(Shared(model)))
    agent.save_pretrained(tmp_path / "whole", merge=True)
    assert has_adapter(agent.policy.model), "the policy itself was merged"
    monkeypatch.setattr("rlhf_gym.lm.lora.is_peft_available", lambda: False)  # it needs none
    loaded = load_causal_lm(tmp_path / "whole")
    assert not has_adapter(loaded) and weights(loaded).keys() == weights(make()).keys()
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)
    plain = make()
    assert merged(plain) is plain


def test_what_would_not_be_the_same_merged_is_refused():
    model = tiny_gpt2(seed=1)  # the head is the embedding's own weight
    add_adapter(model, {"target_modules": ["wte"], "init_lora_weights": False})
    with pytest.raises(ValueError, match="this adapter of GPT2LMHeadModel cannot be merged"):
        merged(model.eval())


def test_where_an_adapter_has_no_place_it_is_refused():
    model, tokenizer = pretrained_model(), tiny_tokenizer()
    with pytest.raises(ValueError, match="expected a model without an adapter to put a fresh one into"):
        learner(environment(Shared(model)), lora=LoRA())
    with pytest.raises(ValueError, match="expected an adapter with bias='none', got 'all'"):
        learner(environment(Shared(tiny_gpt2(seed=1))), lora={"bias": "all"})
    other = tiny_gpt2(seed=1)
    other.add_adapter(peft.IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True))
    with pytest.raises(ValueError, match="expected a LoRA adapter, got one of IA3Config"):
        learner(environment(Shared(tiny_gpt2(seed=1))), model=Shared(other))
    wrapped = peft.get_peft_model(tiny_gpt2(seed=1), peft.LoraConfig(fan_in_fan_out=True))
    with pytest.raises(TypeError, match="of a PreTrainedModel, got PeftModel"):
        learner(environment(Shared(tiny_gpt2(seed=1))), model=Shared(wrapped))
    with pytest.raises(ValueError, match="expected a model without an adapter, got one"):
        train_sft(model, tokenizer, [], heldout=[], output_dir="unused")
    with pytest.raises(ValueError, match="expected r >= 1"):
        LoRA(r=0)


def test_a_reward_model_begins_from_the_merged_weights():
    model = pretrained_model()
    reward = RewardModel.from_language_model(model, tiny_tokenizer())
    for name, value in reward.model.base_model.named_parameters():
        assert torch.equal(value, merged(model).base_model.get_parameter(name)), name


def test_other_agents_take_an_adapter():
    env = TokenVectorEnv(4, **word_settings(kl_coef=0.1))
    agent = PPO(
        LMActorCriticPolicy,
        SB3VecEnv(env),
        n_steps=8,
        batch_size=16,
        n_epochs=1,
        device="cpu",
        seed=0,
        learning_rate=1e-2,
        policy_kwargs={"model": Shared(tiny_gpt2(seed=1)), "lora": LoRA()},
    )
    env.attach(agent.policy)
    before = weights(agent.policy)
    agent.learn(32)
    moved = {name for name, value in agent.policy.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {n for n in before if is_adapters(n) or n.startswith("value_head.")}

    dpo = DPO(
        "LMPolicy",
        environment(Shared(tiny_gpt2(seed=1))),
        n_episodes=8,
        seed=0,
        device="cpu",
        learning_rate=1e-2,
        policy_kwargs={"lora": LoRA()},
    )
    before = weights(dpo.policy)
    dpo.learn(40)
    moved = {name for name, value in dpo.policy.named_parameters() if not torch.equal(value, before[name])}
    assert moved and all(is_adapters(name) for name in moved)


def test_without_peft_the_extra_is_named(tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "pretrained")
    agent = learner(environment(str(tmp_path / "pretrained")), lora=LoRA())
    agent.save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr("rlhf_gym.lm.lora.is_peft_available", lambda: False)
    message = r"needs peft: in your clone of rlhf-gym, pip install -e '\.\[lora\]'"
    with pytest.raises(ImportError, match=message):
        learner(environment(Shared(tiny_gpt2(seed=1))), lora=LoRA())
    with pytest.raises(ImportError, match=message):
        load_causal_lm(tmp_path / "adapter")
    config = tiny_config(tmp_path / "run")
    with pytest.raises(ImportError, match=message):
        prepare(replace(config, agent=replace(config.agent, lora_r=2)), task=tiny_task(tmp_path / "pretrained"))


def test_a_folder_that_is_half_an_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected an adapter in .* as adapter_model\.safetensors"):
        load_causal_lm(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ValueError, match="expected base_model_name_or_path in"):
        load_causal_lm(tmp_path)


def test_the_snippet_of_the_agents_page_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "LoRA" in b]
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(block, namespace)
    expected = logits(namespace["agent"].policy.model)
    torch.testing.assert_close(logits(namespace["policy"]), expected)
    torch.testing.assert_close(logits(load_causal_lm("whole")), expected, atol=1e-4, rtol=1e-4)


def test_a_run_with_an_adapter_leaves_whole_models(tmp_path):
    save_tiny_model(tmp_path / "pretrained")
    config = tiny_config(tmp_path / "run")
    config = replace(config, agent=replace(config.agent, lora_r=2, total_tokens=100))
    task = tiny_task(tmp_path / "pretrained")
    run(config, task=task, console=quiet())
    prepared = prepare(config, task=task, console=quiet())
    agent = make_agent(prepared, "train", 1, 0, make_env(prepared, "train", 1, 0, Shared(prepared.load_reward(1))))
    assert has_adapter(agent.policy.model) and log_ratio_at_start(agent) < 1e-5
    sft, left = (load_causal_lm(folder) for folder in (prepared.sft, prepared.policy(1, 0)))
    moved = {name for name, value in left.named_parameters() if not torch.equal(value, sft.get_parameter(name))}
    assert moved == {"transformer.h.0.attn.c_attn.weight"}


@pytest.mark.parametrize("bias", [False, True])
def test_the_fused_layer_is_pefts(bias):
    from rlhf_gym.lm.fused_lora import FusedLinear, fuse_adapter

    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(20, 30, bias=bias)).double()
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["0"], init_lora_weights=False)
    model = peft.get_peft_model(layers, config).double()
    rows = torch.randn(2, 5, 20, dtype=torch.float64, requires_grad=True)

    def results():
        """The output, its gradients, and the gradients of these; and the output where none are taken."""
        of = [rows, *(p for p in model.parameters() if p.requires_grad)]
        output = model(rows)
        first = torch.autograd.grad((output**3).sum(), of, create_graph=True)
        second = torch.autograd.grad(sum((grad**2).sum() for grad in first), of)
        with torch.no_grad():
            return [output, *first, *second, model(rows)]

    names = list(model.state_dict())
    expected = results()
    fuse_adapter(model)
    assert any(type(layer) is FusedLinear for layer in model.modules())
    for ours, theirs in zip(results(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("setting", ["dropout", "dora", "rslora", "disabled", "merged", "autocast", "trained base"])
def test_what_is_not_plain_is_left_to_peft(setting, monkeypatch):
    from rlhf_gym.lm import fused_lora

    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, target_modules=["0"], init_lora_weights=False, lora_dropout=0.5 * (setting == "dropout"),
        use_dora=setting == "dora", use_rslora=setting == "rslora",
    )  # fmt: skip
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(20, 30)), config).train()
    model.requires_grad_(setting == "trained base")
    rows = torch.randn(5, 20)

    def output():
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            if setting != "disabled":
                return model(rows)
            with model.disable_adapter():
                return model(rows)

    if setting == "merged":
        model.merge_adapter()
    expected = output()
    fused_lora.fuse_adapter(model)
    ours = []
    monkeypatch.setattr(fused_lora, "_product", lambda *args, own=fused_lora._product: ours.append(1) or own(*args))
    torch.testing.assert_close(output(), expected, rtol=1e-5, atol=1e-5)
    assert bool(ours) == (setting == "rslora")  # another scaling alone is plain


def test_training_an_adapter_is_fused():
    from rlhf_gym.lm.fused_lora import FusedLinear

    policy = word_policy(environment(Shared(tiny_llama(seed=1))), lora=PRETRAINED)
    layers = [layer for layer in policy.model.modules() if hasattr(layer, "lora_A")]
    assert layers and all(type(layer) is FusedLinear for layer in layers)
