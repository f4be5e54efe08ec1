import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightrft_core.errors import Problems, UserError
from lightrft_core.overrides import Override
from lightrft_core.runfile import find_recipe, load_run_file, open_run_file

MINIMAL = "algorithm: grpo\nmodel: {path: ./model}\ntask: {path: ./train.jsonl}\nrewards: [exact]\n"
NO_BUNDLE = MINIMAL.removeprefix("algorithm: grpo\n")


# ---- resolving


def test_a_minimal_file_gets_the_defaults_of_every_kind(load_run):
    run = load_run(NO_BUNDLE)
    assert run.algorithm is None and run.kl is None and run.correction is None
    assert (run.sampler.name, run.engine.name, run.strategy.name) == ("plain", "embedded", "single")
    assert (run.advantage.name, run.loss.name, run.task.name) == ("group_norm", "clip", "jsonl")
    assert [tracker.name for tracker in run.trackers] == ["console", "jsonl"]
    assert run.filters == run.shapers == run.selectors == run.callbacks == ()


def test_a_component_is_named_by_a_string_or_a_mapping_and_lists_mix_both(load_run):
    run = load_run(
        NO_BUNDLE + "loss: clip\nfilters:\n  - spread\nshapers:\n  - use: overlong\n    factor: 2\n  - clip\n"
    )
    assert run.loss.name == "clip"
    assert [item.name for item in run.shapers] == ["overlong", "clip"]
    assert run.shapers[0].config.factor == 2


def test_a_single_item_may_stand_for_a_list_of_one(load_run):
    assert [item.name for item in load_run(NO_BUNDLE + "filters: spread\n").filters] == ["spread"]
    assert load_run(NO_BUNDLE + "filters: {use: spread, metric: x}\n").filters[0].config.metric == "x"


def test_a_bundle_fills_sections_and_the_file_overrides_single_keys(load_run):
    run = load_run(MINIMAL.replace("grpo", "dapo") + "loss: {clip_low: 0.1}\n")
    assert (run.loss.config.clip_low, run.loss.config.clip_high) == (0.1, 0.28)
    assert [item.name for item in run.filters] == ["spread"]


def test_another_use_drops_the_bundles_options(load_run):
    run = load_run(MINIMAL.replace("grpo", "dr_grpo") + "advantage: rloo\n")
    assert run.advantage.name == "rloo"
    assert "advantage.std" not in run.origins


def test_lists_of_the_file_replace_the_bundles(load_run):
    assert load_run(MINIMAL.replace("grpo", "dapo") + "filters: []\n").filters == ()
    assert load_run(MINIMAL.replace("grpo", "dapo") + "filters: []\n").shapers != ()


@pytest.mark.parametrize("off", ["null", "none", "off", "false", "", "no"])
def test_an_optional_section_is_turned_off(load_run, off):
    assert load_run(MINIMAL).kl is not None
    assert load_run(MINIMAL + f"kl: {off}\n").kl is None
    assert load_run(MINIMAL, sets=(f"kl={off}",)).kl is None


def test_kl_options_without_a_name_choose_the_default_estimator(load_run):
    assert load_run(NO_BUNDLE + "kl: {coef: 0.1}\n").kl.name == "k3"


def test_precedence_is_defaults_bundle_file_command_line(load_run):
    text = MINIMAL.replace("grpo", "dapo")
    assert load_run(NO_BUNDLE).loss.config.clip_high == 0.2
    assert load_run(text).loss.config.clip_high == 0.28
    assert load_run(text + "loss: {clip_high: 0.4}\n").loss.config.clip_high == 0.4
    over = load_run(text + "loss: {clip_high: 0.4}\n", sets=("loss.clip_high=0.5",))
    assert over.loss.config.clip_high == 0.5
    flag = load_run(text + "loss: {clip_high: 0.4}\n", flags=("--clip_range_higher", "0.6"))
    assert flag.loss.config.clip_high == 0.6
    assert (
        load_run(text, flags=("--clip_range_higher", "0.6"), sets=("loss.clip_high=0.7",)).loss.config.clip_high == 0.7
    )


def test_origins_say_where_every_value_was_written(load_run):
    run = load_run(
        MINIMAL + "optim:\n  lr: 1e-5\n  betas: [0.8, 0.9]\nfilters: [spread]\n",
        sets=("filters[spread].metric=x",),
        flags=("--n_samples_per_prompt", "4"),
    )
    assert run.origins["algorithm"] == "run.yaml:1"
    assert run.origins["loss.aggregation"] == "algorithm grpo"
    assert run.origins["optim.lr"] == "run.yaml:6"
    assert run.origins["filters[spread].metric"] == "--set"
    assert run.origins["sampler.group_size"] == "--n_samples_per_prompt"
    assert "optim.eps" not in run.origins


def test_the_algorithm_may_come_from_the_command_line(load_run):
    assert load_run(NO_BUNDLE, sets=("algorithm=dapo",)).loss.config.clip_high == 0.28
    assert load_run(MINIMAL, sets=("algorithm=none",)).kl is None


def test_another_component_by_override_keeps_what_the_file_says_of_the_whole_kind(load_run, caplog):
    text = NO_BUNDLE + "kl:\n  use: k2\n  coef: 0.5\nadvantage:\n  use: group_norm\n  std: batch\n"
    run = load_run(text, sets=("kl.use=k3", "advantage.use=rloo"))
    assert (run.kl.name, run.kl.config.coef) == ("k3", 0.5)
    assert run.advantage.name == "rloo"
    assert "run.yaml:9:8: advantage.std goes with group_norm, which --set replaces by rloo" in caplog.text


def test_another_strategy_by_override_keeps_the_options_that_both_have(load_run, caplog):
    text = NO_BUNDLE + "strategy: {use: fsdp2, micro_batch_size: 3, shard_size: 2}\n"
    run = load_run(text, sets=("strategy.use=ddp",))
    assert (run.strategy.name, run.strategy.config.micro_batch_size) == ("ddp", 3)
    assert "strategy.shard_size goes with fsdp2, which --set replaces by ddp" in caplog.text


def test_options_given_with_a_new_component_stay_whatever_their_order(load_run):
    run = load_run(NO_BUNDLE, sets=("correction.cap=3", "correction.use=tis"))
    assert run.correction.config.cap == 3


def test_a_plugin_may_be_named_before_the_component(load_run, plugins):
    name = next(offer.plugin for offer in plugins.offers("loss") if offer.descriptor.name == "clip")
    run = load_run(NO_BUNDLE + f"loss: '{name}:clip'\n")
    assert (run.loss.name, run.loss.use) == ("clip", f"{name}:clip")
    assert f"use: {name}:clip" in run.to_yaml()


def test_rewards_are_called_by_their_own_name(load_run):
    text = NO_BUNDLE.replace("[exact]", "\n  - use: exact\n    name: right\n    weight: 0.9\n  - numeric")
    run = load_run(text)
    assert [(item.name, item.config.weight) for item in run.rewards] == [("right", 0.9), ("numeric", 1.0)]
    assert run.origins["rewards[right].weight"] == "run.yaml:6"


def test_evaluation_has_its_own_task_of_the_same_kind(load_run):
    run = load_run(NO_BUNDLE + "evaluation:\n  every: 5\n  task: {path: ./test.jsonl}\n")
    assert run.evaluation_task.name == "jsonl"
    assert run.evaluation.every == 5
    assert load_run(NO_BUNDLE).evaluation_task is None


def test_an_evaluation_task_starts_from_the_options_of_the_task(load_run):
    text = NO_BUNDLE.replace("{path: ./train.jsonl}", "{path: ./train.jsonl, input_key: q, max_prompts: 3}")
    run = load_run(text + "evaluation: {task: {path: ./test.jsonl, reference_key: gold}}\n")
    given = run.evaluation_task.config
    assert (given.input_key, given.reference_key, given.max_prompts) == ("q", "gold", None)
    assert run.origins["evaluation.task.input_key"] == "run.yaml:2"
    own = load_run(text + "evaluation: {task: {use: jsonl, path: ./test.jsonl}}\n")
    assert own.evaluation_task.config.input_key == "prompt"
    assert load_run(run.to_yaml()) == run


def test_a_mistake_in_the_task_is_not_told_again_for_the_evaluation(run_problems):
    text = NO_BUNDLE.replace("{path: ./train.jsonl}", "{path: ./train.jsonl, inputkey: q}")
    assert [
        item.partition(":")[2].partition(" ")[2]
        for item in run_problems(text + "evaluation: {task: {path: ./test.jsonl, references_key: gold}}\n")
    ] == [
        "task.inputkey: no such option. Did you mean 'input_key'?",
        "evaluation.task.references_key: no such option. Did you mean 'reference_key'?",
    ]


def test_plugin_files_are_loaded(run_folder):
    (run_folder / "mine.py").write_text(
        "from lightrft_core import hookimpl\nfrom lightrft_core.descriptors import Component\nLIGHTRFT_API = 1\n"
        "@hookimpl\ndef lightrft_losses():\n    yield Component(name='mine', target='mine:loss', summary='Mine.')\n"
    )
    (run_folder / "run.yaml").write_text(NO_BUNDLE + "plugins: [./mine.py]\nloss: mine\n")
    run, found = open_run_file(Path("run.yaml"), [])
    assert run.loss.name == "mine"
    assert run.plugin_files == (run_folder / "mine.py",)
    assert "mine" in [offer.descriptor.name for offer in found.offers("loss")]


def test_a_strategy_updates_by_the_optimizers_that_it_names(run_folder, load_run):
    (run_folder / "mine.py").write_text(
        "from lightrft_core import hookimpl\nfrom lightrft_core.descriptors import Component\nLIGHTRFT_API = 1\n"
        "@hookimpl\ndef lightrft_strategies():\n    yield Component(name='mine', target='mine:S', summary='Mine.')\n"
    )
    text = NO_BUNDLE + "plugins: [./mine.py]\nstrategy: mine\noptim: {optimizer: muon}\n"
    (run_folder / "run.yaml").write_text(text)
    with pytest.raises(Problems) as caught:
        open_run_file(Path("run.yaml"), [])
    assert "optim.optimizer: strategy mine does not update by muon." in str(caught.value.problems[0])
    assert load_run(NO_BUNDLE + "optim: {optimizer: muon}\n").to_plain()["optim"]["muon"]["momentum"] == 0.95


# ---- paths


def test_dot_paths_are_relative_to_the_file_they_stand_in(run_folder, plugins):
    (run_folder / "deep").mkdir()
    (run_folder / "deep/run.yaml").write_text(NO_BUNDLE.replace("./", "../"))
    (run_folder / "link.yaml").symlink_to(run_folder / "deep/run.yaml")
    run = load_run_file(Path("link.yaml"), [], plugins)
    assert run.model.config.path == str(run_folder / "model")


def test_dot_paths_on_the_command_line_are_relative_to_the_working_directory(run_folder, plugins):
    (run_folder / "deep").mkdir()
    (run_folder / "deep/run.yaml").write_text(NO_BUNDLE.replace("./", "../"))
    over = [Override("task.path", ["./more.jsonl"], "--set")]
    run = load_run_file(Path("deep/run.yaml"), over, plugins)
    assert list(run.task.config.path) == [str(run_folder / "more.jsonl")]


def test_other_text_is_left_alone(load_run):
    assert load_run(NO_BUNDLE + "run: {dir: runs/here}\n").run.dir == "runs/here"
    assert load_run(NO_BUNDLE + "run: {dir: ~/runs}\n").run.dir == str(Path("~/runs").expanduser())


# ---- the model


def test_the_adapter_is_chosen_by_model_type(load_run, run_folder):
    assert load_run(NO_BUNDLE).model.name == "text"
    assert load_run(NO_BUNDLE).model.component.target.startswith("lightrft_engines")


def test_an_exact_model_type_beats_any(run_folder):
    (run_folder / "mine.py").write_text(
        "from lightrft_core import hookimpl\nfrom lightrft_core.descriptors import ModelComponent\nLIGHTRFT_API = 1\n"
        "@hookimpl\ndef lightrft_models():\n"
        "    yield ModelComponent(name='mine', target='m:M', summary='Mine.', model_types=('qwen2',))\n"
    )
    (run_folder / "run.yaml").write_text(NO_BUNDLE + "plugins: [./mine.py]\n")
    assert load_run_file(Path("run.yaml"), []).model.name == "mine"
    named = [Override("model.use", "text", "--set")]
    assert load_run_file(Path("run.yaml"), named).model.name == "text"


def test_a_hub_id_needs_no_files(load_run):
    run = load_run(NO_BUNDLE.replace("./model", "Qwen/Qwen2.5-0.5B-Instruct"))
    assert run.model.config.path == "Qwen/Qwen2.5-0.5B-Instruct"


def test_a_cached_hub_model_tells_its_type(run_folder, plugins, monkeypatch):
    from lightrft_core.model_choice import adapter_name

    folder = run_folder / "hub/models--org--name/snapshots/abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match="names no model_type"):
        adapter_name(plugins, "org/name", where="model.path", environ={"HF_HUB_CACHE": str(run_folder / "hub")})


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("./none", "none does not exist. Give the folder of a Hugging Face model, or a hub id such as"),
        ("/a/b/c", "/a/b/c does not exist."),
        ("gpt", "gpt does not exist."),
        ("./train.jsonl", "train.jsonl is a file, not a model's folder."),
    ],
)
def test_a_missing_model_says_so(run_problems, path, said):
    (text,) = run_problems(NO_BUNDLE.replace("./model", path))
    assert text.startswith("run.yaml:1:15 model.path: ") and said in text


def test_a_broken_model_folder_says_so(run_problems, run_folder):
    (run_folder / "model/config.json").write_text("{")
    assert "config.json cannot be read: " in run_problems(NO_BUNDLE)[0]
    (run_folder / "model/config.json").write_text(json.dumps({}))
    assert "names no model_type. Name an adapter with model.use." in run_problems(NO_BUNDLE)[0]
    (run_folder / "model/config.json").unlink()
    assert "has no config.json" in run_problems(NO_BUNDLE)[0]


def test_patches_can_be_named_off_and_a_wrong_name_is_refused(run_problems):
    (text,) = run_problems(NO_BUNDLE.replace("./model}", "./model, patches_off: [fast_rope]}"))
    assert text.startswith("run.yaml:1:37 model.patches_off: no patch 'fast_rope'.")


# ---- writing and reading again

ROUND_TRIPS = {
    "minimal": MINIMAL,
    "no bundle": NO_BUNDLE,
    "dapo": MINIMAL.replace("grpo", "dapo"),
    "dr_grpo": MINIMAL.replace("grpo", "dr_grpo"),
    "off": MINIMAL.replace("grpo", "dapo") + "filters: []\nshapers: []\ntrackers: []\n",
    "no kl": MINIMAL + "kl: null\n",
    "kl target": MINIMAL + "kl: {use: k1, place: reward, target: 0.1, horizon: 100}\n",
    "evaluation": MINIMAL
    + "evaluation: {task: ./test.jsonl, temperature: 0.5, num_samples: 4}\n".replace(
        "./test.jsonl", "{path: ./test.jsonl}"
    ),
    "everything": MINIMAL + "run: {name: a-1, steps: 3, seed: 7, max_time: 1h}\n"
    "optim: {lr: 1e-6, schedule: cosine_with_min_lr, betas: [0.5, 1]}\n"
    "sampler: {group_size: 4, stop: ['on', '1e-6', 'null', \"a\\nb\", '- x', '#']}\nfilters: [spread]\n"
    "selectors: [{use: high_entropy, ratio: 0.5}]\ncorrection: {use: tis, cap: 3}\nselftest: {enabled: false}\n"
    "loss: {use: clip, aggregation: seq_mean_token_sum_norm, token_budget: 64}\nplots: {every: 3}\n",
}


@pytest.mark.parametrize("text", ROUND_TRIPS.values(), ids=ROUND_TRIPS.keys())
def test_the_resolved_file_loads_again_to_an_equal_run(load_run, text):
    run = load_run(text)
    again = load_run(run.to_yaml())
    assert again == run
    assert again.to_yaml() == run.to_yaml()


def test_the_resolved_file_works_from_anywhere(load_run, run_folder, tmp_path_factory, plugins, monkeypatch):
    text = load_run(MINIMAL).to_yaml()
    other = tmp_path_factory.mktemp("other")
    (other / "run.yaml").write_text(text)
    monkeypatch.chdir(other)
    assert load_run_file(Path("run.yaml"), [], plugins).model.config.path == str(run_folder / "model")


def test_the_resolved_file_names_every_option(load_run, plugins):
    run = load_run(MINIMAL)
    plain = run.to_plain()
    assert set(plain["loss"]) - {"use"} == set(type(run.loss.config).model_fields) - {"token_budget"}
    assert plain["correction"] is None and plain["selectors"] == []


# ---- problems


def test_all_problems_are_told_at_once_in_the_order_of_the_file(run_problems):
    text = MINIMAL + "loss:\n  clip_hihg: 0.28\n  aggregation: token_meen\noptim: {lr: fast, epochs: 0}\nsmapler: {}\n"
    assert run_problems(text, sets=("optim.beta=1",)) == [
        "run.yaml:6:3 loss.clip_hihg: no such option. Did you mean 'clip_high'?",
        "run.yaml:7:16 loss.aggregation: 'token_meen' is not one of token_mean, seq_mean_token_mean, "
        "seq_mean_token_sum, seq_mean_token_sum_norm. Did you mean 'token_mean'?",
        "run.yaml:8:13 optim.lr: 'fast' is not a number.",
        "run.yaml:8:27 optim.epochs: 0 is too small: it must be at least 1. Passes over each rollout.",
        "run.yaml:9:1 smapler: no section 'smapler'. Did you mean 'sampler'?",
        "--set optim.beta: no such option. Did you mean 'betas'?",
    ]


def test_the_error_counts_and_says_that_nothing_was_started(load_run):
    with pytest.raises(Problems) as caught:
        load_run(MINIMAL + "optim: {lr: -1}\n")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("run.yaml:5:13 optim.lr: -1 is too small: it must be greater than 0.")
    assert lines[-1] == "1 problem, nothing started."
    assert caught.value.exit_code == 2


CASES = {
    "another section's key": ("optim: {temperature: 1}", "optim.temperature: no such option. 'temperature' belongs"),
    "a flag as key": ("optim: {l2: 1}", "LightRFT's flag --l2 is the key 'optim.weight_decay'."),
    "true as number": ("optim: {epochs: true}", "run.yaml:5:17 optim.epochs: true is not a number."),
    "fraction as count": ("optim: {epochs: 1.5}", "optim.epochs: 1.5 is not a whole number. Nearest: 1 or 2."),
    "infinite": ("optim: {lr: .inf}", "optim.lr: inf is not a finite number."),
    "infinite as text": ("optim: {lr: inf}", "optim.lr: inf is not a finite number."),
    "not a number": ("optim: {max_grad_norm: .nan}", "optim.max_grad_norm: "),
    "number as text": ("run: {name: 7}", "run.name: 7 is not text. Put it in quotes: '7'."),
    "unfit text": ("run: {name: a/b}", "run.name: 'a/b' does not fit. Name of the run's folder"),
    "not a boolean": ("selftest: {enabled: maybe}", "selftest.enabled: 'maybe' is not true or false."),
    "text as list": ("sampler: {stop: end}", "sampler.stop: 'end' is not a list."),
    "one of two": ("optim: {betas: [0.9]}", "optim.betas"),
    "out of range in a list": ("optim: {betas: [0.9, 1.5]}", "optim.betas[1]: 1.5 is too large: it must be"),
    "no value": ("optim: {lr: }", "run.yaml:5:12 optim.lr: has no value. Peak learning rate."),
    "union": ("strategy: {packing: maybe}", "strategy.packing: 'maybe' is not one of auto, or true or false."),
    "section as text": ("optim: fast", "run.yaml:5:8 optim: the text 'fast' is not a section with options."),
    "section as list": ("loss: [clip]", "loss: names one component, not a list. Give one."),
    "both places": ("kl: [{use: k3}, {use: k1, place: reward}]", "KL in the reward are different algorithms."),
    "k1 in the loss": ("kl: {use: k1, place: loss}", "kl.place: k1 in the loss has a gradient of zero expectation"),
    "unknown component": ("loss: clipp", "run.yaml:5:7 loss.use: no loss 'clipp'. Did you mean 'clip'?"),
    "nameless item": ("filters: [{metric: a}]", "filters[0]: names no filter: the key `use` is missing. Installed: "),
    "name as key": ("filters: [{spread: {metric: a}}]", "the key `use` is missing. Write `use: spread`."),
    "item as number": ("filters: [3]", "filters[0]: the number 3 is not a component."),
    "two of a name": ("rewards: [exact, exact]", "two rewards are called 'exact'. Give one a `name` of its own."),
    "no reward": ("rewards: []", "rewards: a run needs at least one reward. Installed: "),
    "algorithm": ("algorithm: grop", "algorithm: no algorithm 'grop'. Did you mean 'grpo'?"),
    "algorithm with options": ("algorithm: {use: grpo, x: 1}", "algorithm: takes the name of an algorithm."),
    "plugin file": ("plugins: [./none.py]", "none.py does not exist. In a run file, ./ is the folder of that file."),
    "plugins as number": ("plugins: 3", "plugins: takes a list of files. For example plugins: [./my_reward.py]."),
}  # fmt: skip


@pytest.mark.parametrize(("line", "said"), CASES.values(), ids=CASES.keys())
def test_a_mistake_is_one_sentence_with_its_place(run_problems, line, said):
    key = line.partition(":")[0]
    kept = [item for item in MINIMAL.splitlines() if not item.startswith(key + ":")]
    text = "\n".join([*kept, *[""] * (4 - len(kept)), line]) + "\n"
    texts = run_problems(text)
    assert len(texts) == 1, texts
    assert said in texts[0]
    assert texts[0].startswith("run.yaml:5:")
    assert "\n" not in texts[0] and "pydantic" not in texts[0]


def test_what_must_be_given_is_asked_for_with_its_flag(run_problems):
    texts = run_problems("run: {seed: 1}\n")
    assert any(text.startswith("run.yaml model.path: is missing. Folder of a Hugging Face model") for text in texts)
    assert any("task.path: is missing." in text and "Flag: --prompt_data." in text for text in texts)
    assert len(texts) == 3


IDLE = {
    "loss: {token_budget: 5}": "loss.token_budget: has no effect: only loss.aggregation seq_mean_token_sum_norm",
    "kl: {horizon: 10}": "kl.horizon: has no effect: the weight is steered only where kl.target is set.",
    "optim: {min_lr_ratio: 0.2}": "optim.min_lr_ratio: has no effect: schedule is constant. Did you mean",
    "optim: {schedule: cosine, power: 2}": "optim.power: has no effect: schedule is cosine. Did you mean",
    "optim: {muon: {momentum: 0.9}}": "optim.muon: has no effect: optimizer is adamw. Did you mean optimizer 'muon'?",
    "optim: {warmup_ratio: 0.2, warmup_steps: 3}": "optim.warmup_ratio: has no effect: optim.warmup_steps is set.",
    "checkpoint: {background: true}": "checkpoint.background: has no effect: neither checkpoint.every nor ",
    "run: {steps: 2, episodes: 2}": "run.episodes: has no effect: run.steps is set. Give one of the two.",
    "evaluation: {every: 5}": "evaluation.every: has no effect: there is no evaluation.task.",
    "evaluation: {task: {path: ./test.jsonl}, top_p: 0.9}": "evaluation.top_p: has no effect: evaluation.temperature",
    "evaluation: {task: {path: ./test.jsonl}, num_samples: 2}": "evaluation.num_samples: has no effect: ",
    "sampler: {max_refill_rounds: 2}": "sampler.max_refill_rounds: has no effect: there are no filters",
    "selftest: {enabled: false, rollouts: 4}": "selftest.rollouts: has no effect: selftest.enabled is false.",
}


@pytest.mark.parametrize(("line", "said"), IDLE.items())
def test_a_key_without_effect_is_refused(run_problems, line, said):
    (text,) = run_problems(MINIMAL + line + "\n")
    assert text.startswith("run.yaml:5:") and said in text


def test_a_bundles_key_without_effect_is_no_mistake_of_the_user(load_run):
    assert load_run(MINIMAL + "kl: {use: k2}\n").kl.name == "k2"


def test_a_broken_section_does_not_hide_the_others(run_problems):
    texts = run_problems(MINIMAL + "task: 5\n".replace("task", "sampler") + "optim: {lr: 0}\n")
    assert len(texts) == 2


# ---- finding files


def test_the_recipe_for_lora_trains_adapters(plugins):
    run = load_run_file(find_recipe("gsm8k_lora"), [], plugins)
    assert (run.model.config.lora.rank, run.model.config.lora.target_modules) == (32, ("all-linear",))


def test_a_recipe_is_found_by_name_and_a_file_by_path(run_folder):
    assert find_recipe("quickstart").name == "quickstart.yaml"
    assert find_recipe("run.yaml") == Path("run.yaml")


@pytest.mark.parametrize(
    ("name", "near"), [("quikstart", "quickstart"), ("rn.yaml", "run.yaml"), ("gsm8k_grop", "gsm8k_grpo")]
)
def test_a_missing_recipe_says_what_was_meant(run_folder, name, near):
    with pytest.raises(UserError) as caught:
        find_recipe(name)
    assert str(caught.value).startswith(f"{name}: no such run file or recipe. Did you mean {near!r}? Recipes that come")


def test_a_folder_is_no_run_file(run_folder):
    with pytest.raises(UserError, match=r"model: is a folder, not a run file\. Resume a run with"):
        find_recipe("model")


# ---- weight


def test_loading_imports_no_torch_and_takes_little_time(run_folder):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from lightrft_core.runfile import load_run_file\n"
        "load_run_file(Path('run.yaml'), [])\n"
        "heavy = [name for name in ('torch', 'transformers', 'numpy', 'vllm') if name in sys.modules]\n"
        "print(time.process_time(), heavy)\n"
    )
    best = 9.0
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds, _, heavy = done.stdout.strip().partition(" ")
        assert heavy == "[]"
        best = min(best, float(seconds))
    assert best < 0.5


def test_resolving_itself_takes_a_fraction_of_a_second(run_folder, plugins):
    started = time.process_time()
    load_run_file(Path("run.yaml"), [], plugins)
    assert time.process_time() - started < 0.5


def test_a_files_key_that_the_command_line_overrules_is_no_mistake(load_run):
    run_file = load_run(MINIMAL + "run: {episodes: 2}\n", sets=["run.steps=3"])
    assert run_file.run.steps == 3
