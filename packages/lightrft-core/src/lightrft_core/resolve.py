"""From the merged tree to validated sections and chosen components; everything wrong is reported, nothing raised."""

from dataclasses import dataclass, field

from lightrft_core.chosen import Chosen, any_needs
from lightrft_core.descriptors import Component
from lightrft_core.errors import UserError
from lightrft_core.kinds import BY_NAME, BY_SECTION, KINDS, Kind
from lightrft_core.layers import waiting_for
from lightrft_core.model_choice import adapter_name
from lightrft_core.nodes import Node, Origin, describe
from lightrft_core.plugins import Plugins
from lightrft_core.sections import (
    CheckpointSection,
    CriticSection,
    EngineGapSection,
    EvaluationSection,
    KLSection,
    LearningSection,
    OptimSection,
    PlotsSection,
    RewardSection,
    RolloutsSection,
    RunSection,
    SamplerSection,
    Section,
    SelfTestSection,
)
from lightrft_core.suggest import did_you_mean
from lightrft_core.validation import KeyProblem, Report, location, validate

CORE_SECTIONS: dict[str, type[Section]] = {
    "run": RunSection,
    "optim": OptimSection,
    "critic": CriticSection,
    "evaluation": EvaluationSection,
    "checkpoint": CheckpointSection,
    "selftest": SelfTestSection,
    "engine_gap": EngineGapSection,
    "rollouts": RolloutsSection,
    "plots": PlotsSection,
}
OTHER_KEYS = ("plugins",)
NOT_SHARED = ("max_prompts", "split", "probabilities")  # what limits or mixes the prompts to train on
SECTIONS = (*CORE_SECTIONS, *BY_SECTION, *OTHER_KEYS)


def keys_elsewhere() -> dict[str, list[str]]:
    """Every key of the sections that core knows, with the sections that have it."""
    found: dict[str, list[str]] = {}
    known = {**CORE_SECTIONS, **{kind.section: kind.config_base for kind in KINDS if kind.count != "none"}}
    for section, model in known.items():
        for key in model.model_fields:
            found.setdefault(key, []).append(section)
    for section in SECTIONS:
        found.setdefault(section, ["(top level)"])
    return found


@dataclass(slots=True)
class Resolver:
    """Reads one merged tree."""

    tree: Node
    plugins: Plugins
    report: Report
    origin: Origin
    patches_off: tuple[str, ...] = ()
    one: dict[str, Chosen | None] = field(default_factory=dict)
    many: dict[str, tuple[Chosen, ...]] = field(default_factory=dict)
    core: dict[str, Section] = field(default_factory=dict)
    evaluation_task: Chosen | None = None

    def run(self) -> None:
        """Resolve every section."""
        self._refuse_unknown_sections()
        for name, model in CORE_SECTIONS.items():
            node = self._section(name)
            if name == "evaluation":
                node = _without(node, "task")
            section = validate(model, node, name, self.report)
            if section is not None:
                self.core[name] = section
        for kind in KINDS:
            if kind.count == "many":
                self.many[kind.section] = self._list(kind)
            elif kind.count != "none" and kind.name != "algorithm":
                self.one[kind.section] = self.single(kind)
        self.evaluation_task = self._evaluation_task()
        self._check_rewards()
        self._check_kl()
        self._check_group_size()
        self._check_abilities()
        self._check_weights_alone()
        self._check_optimizers()

    def _refuse_unknown_sections(self) -> None:
        for name, node in self.tree.fields().items():
            if name in SECTIONS:
                continue
            hint = did_you_mean(name, SECTIONS, keys_elsewhere())
            self.report.add(name, node.key_origin, f"no section {name!r}.", hint)

    def _section(self, name: str) -> Node:
        node = self.tree.fields().get(name)
        return Node({}, self.origin if node is None else node.origin) if node is None or node.value is None else node

    def _evaluation_task(self) -> Chosen | None:
        """The task of `evaluation.task`; one that names no `use` starts from the options of `task`."""
        node = self._section("evaluation").child("task")
        if node is None or node.value is None:
            return None
        kind, own = BY_NAME["task"], node.fields()
        if "use" in own or not isinstance(node.value, dict):
            return self._component(kind, node, "evaluation.task", None)
        shared = {name: child for name, child in self._section("task").fields().items() if name not in NOT_SHARED}
        before = len(self.report.problems)
        node.value = {**shared, **own}
        chosen = self._component(kind, node, "evaluation.task", kind.default)
        if self.one["task"] is None:  # what is wrong there was told already
            new = self.report.problems[before:]
            del self.report.problems[before:]
            self.report.problems += [p for p in new if isinstance(p, KeyProblem) and p.key.rpartition(".")[2] in own]
        return chosen

    def single(self, kind: Kind) -> Chosen | None:
        """The one component of a kind; None where the tree names none that can be had."""
        node = self.tree.fields().get(kind.section)
        if kind.count == "optional" and (node is None or node.value is None):
            return None
        node = self._section(kind.section)
        if isinstance(node.value, list):
            reason = " KL in the loss and KL in the reward are different algorithms." if kind.name == "kl" else ""
            self.report.add(kind.section, node.key_origin, f"names one component, not a list.{reason}", "Give one.")
            return None
        if kind.name == "model":
            return self._model(kind, node)
        return self._component(kind, node, kind.section, kind.default)

    def _list(self, kind: Kind) -> tuple[Chosen, ...]:
        found: list[Chosen] = []
        for index, node in enumerate(self._section(kind.section).items()):
            label = item_label(node) or str(index)
            chosen = self._component(kind, node, f"{kind.section}[{label}]", None)
            if chosen is not None:
                found.append(chosen)
        return tuple(found)

    def _model(self, kind: Kind, node: Node) -> Chosen | None:
        fields = dict(node.fields())
        off = fields.pop("patches_off", None)
        if off is not None:
            self.patches_off = self._patches(off)
        rest = Node(fields, node.origin, node.key)
        path = rest.child("path")
        default = None
        if rest.child("use") is None and path is not None and isinstance(path.value, str):
            try:
                default = adapter_name(self.plugins, path.value, where=location("model.path", path.origin))
            except UserError as problem:
                self.report.problems.append(problem)
                return None
        elif rest.child("use") is None:
            validate(kind.config_base, rest, "model", self.report)
            return None
        return self._component(kind, rest, "model", default)

    def _patches(self, node: Node) -> tuple[str, ...]:
        names = node.plain()
        known = [offer.descriptor.name for offer in self.plugins.offers("patch")]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self.report.add("model.patches_off", node.origin, f"{describe(names)} is not a list of names.")
            return ()
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known) or "No installed plugin offers any patch."
                self.report.add("model.patches_off", node.origin, f"no patch {name!r}.", hint)
        return tuple(names)

    def _component(self, kind: Kind, node: Node, key: str, default: str | None) -> Chosen | None:
        if not isinstance(node.value, dict):
            what = f"{describe(node.plain())} is not a component."
            self.report.add(key, node.origin, what, "Write its name, or `use: name` with options.")
            return None
        use = node.value.get("use", Node(default, node.key_origin))
        if not isinstance(use.value, str):
            self._refuse_nameless(kind, node, key)
            return None
        component = self._find(kind, use, key)
        if component is None:
            return None
        try:
            model = self.plugins.config_class(kind.name, component)
        except UserError as problem:
            self.report.problems.append(problem)
            return None
        options = Node({name: child for name, child in node.value.items() if name != "use"}, node.origin, node.key)
        config = validate(model, options, key, self.report)
        if config is None:
            return None
        own = config.name if isinstance(config, RewardSection) else None
        return Chosen(kind.name, own or component.name, component, config, use.value)

    def _refuse_nameless(self, kind: Kind, node: Node, key: str) -> None:
        names = sorted({offer.descriptor.name for offer in self.plugins.offers(kind.name)})
        inner = [name for name in node.fields() if name in names]
        if node.key_origin.is_flag:
            hint = f"Installed: {', '.join(names) or 'none'}."
            self.report.flag_without_key(key, node.key_origin, f"no {kind.name} is chosen.", hint)
            return
        hint = f"Write `use: {inner[0]}`." if inner else f"Installed: {', '.join(names) or 'none'}."
        self.report.add(key, node.key_origin, f"names no {kind.name}: the key `use` is missing.", hint)

    def _find(self, kind: Kind, use: Node, key: str) -> Component | None:
        try:
            found = self.plugins.find(kind.name, str(use.value), where=location(f"{key}.use", use.origin))
        except UserError as problem:
            waiting = waiting_for(use.origin, kind.name, f"{key}.use", str(use.value), self.plugins)
            self.report.problems.append(waiting or problem)
            return None
        if not isinstance(found, Component):
            raise TypeError(f"{kind.name} {use.value} is a {type(found).__name__}")
        return found

    def _check_rewards(self) -> None:
        rewards = self.many["rewards"]
        if not self._section("rewards").items():
            names = ", ".join(sorted({offer.descriptor.name for offer in self.plugins.offers("reward")}))
            self.report.add(
                "rewards",
                self._section("rewards").key_origin,
                "a run needs at least one reward.",
                f"Installed: {names or 'none'}.",
            )
        names_seen: set[str] = set()
        for chosen in rewards:
            if chosen.name in names_seen:
                what = f"two rewards are called {chosen.name!r}."
                self.report.add("rewards", self._section("rewards").key_origin, what, "Give one a `name` of its own.")
            names_seen.add(chosen.name)

    def _check_kl(self) -> None:
        chosen = self.one["kl"]
        if chosen is None or "reward_only" not in chosen.component.provides:
            return
        if isinstance(chosen.config, KLSection) and chosen.config.place == "loss":
            node = self._section("kl")
            at = (node.child("place") or node.child("use") or node).origin
            what = f"{chosen.name} in the loss has a gradient of zero expectation: it would hold nothing back."
            self.report.add("kl.place", at, what, "Set kl.place: reward, or kl.use: k3.")

    def needs_values(self) -> bool:
        """Whether a chosen part reads a critic's values."""
        return any_needs("values", [*self.one.values(), *(part for parts in self.many.values() for part in parts)])

    def _check_abilities(self) -> None:
        """What the run asks of its strategy and model adapter beyond the ordinary."""
        kl, optim, values = self.one["kl"], self.core.get("optim"), "Choose an advantage without a critic."
        has_refresh = kl is not None and isinstance(kl.config, KLSection) and kl.config.refresh_every is not None
        has_examples = isinstance(optim, OptimSection) and optim.ptx is not None
        saving = self.core.get("checkpoint")
        beside = isinstance(saving, CheckpointSection) and saving.background
        limits = self.core.get("engine_gap")
        stops = isinstance(limits, EngineGapSection) and limits.stop_above is not None
        for section, word, is_asked, what, hint in (
            ("strategy", "values", self.needs_values(), "has no critic, and this run needs its values.", values),
            ("model", "values", self.needs_values(), "has no critic, and this run needs its values.", values),
            ("strategy", "reference_refresh", has_refresh, "keeps its reference.", "Leave kl.refresh_every out."),
            ("strategy", "mix_in", has_examples, "learns no examples.", "Leave optim.ptx out."),
            ("strategy", "gap", stops, "measures no gap to the engine.", "Leave engine_gap.stop_above out."),
            ("strategy", "background_save", beside, "saves while training waits.", "Leave checkpoint.background out."),
        ):
            part, node = self.one[section], self._section(section)
            if is_asked and part is not None and word not in part.component.provides:
                self.report.add(section, (node.child("use") or node).origin, f"{part.name} {what}", hint)

    def _check_weights_alone(self) -> None:
        """What would be lost, or larger, in checkpoints that hold the policy's weights alone."""
        saving, node = self.core.get("checkpoint"), self._section("checkpoint").child("resumable")
        if node is None or not isinstance(saving, CheckpointSection) or saving.resumable:
            return
        for section, option, what in (
            ("strategy", "ema", "would lose the average of the weights that strategy.ema keeps."),
            ("model", "lora", "would not save room: of model.lora a resumable checkpoint holds the adapters alone."),
        ):
            part = self.one[section]
            if part is not None and option in part.config.model_fields_set and getattr(part.config, option):
                self.report.add("checkpoint.resumable", node.origin, what, "Leave one of the two out.")

    def _check_optimizers(self) -> None:
        """Every strategy updates by AdamW, and by what it says it does."""
        strategy = self.one["strategy"]
        for name in ("optim", "critic") if self.needs_values() else ("optim",):
            section, node = self.core.get(name), self._section(name)
            if strategy is None or not isinstance(section, LearningSection) or section.optimizer == "adamw":
                continue
            if section.optimizer not in strategy.component.provides:
                what = f"strategy {strategy.name} does not update by {section.optimizer}."
                at = (node.child("optimizer") or node).origin
                self.report.add(f"{name}.optimizer", at, what, "Leave it out, or choose another strategy.")

    def _check_group_size(self) -> None:
        """What compares siblings has nothing to compare in a group of one."""
        sampler = self.one["sampler"]
        if sampler is None or not isinstance(sampler.config, SamplerSection) or sampler.config.group_size > 1:
            return
        parts = [("advantage", self.one["advantage"]), *(("filters", part) for part in self.many["filters"])]
        node = self._section("sampler")
        at = (node.child("group_size") or node).origin
        for section, part in parts:
            if part is not None and "groups" in part.component.needs:
                what = f"1 leaves {section}.{part.name} no siblings to compare: nothing would train."
                self.report.add("sampler.group_size", at, what, "Set it to 2 or more; reinforce goes without siblings.")


def _without(node: Node, name: str) -> Node:
    if name not in node.fields():
        return node
    return Node({key: child for key, child in node.fields().items() if key != name}, node.origin, node.key)


def item_label(node: Node) -> str:
    """How messages name an item of a list: its `name`, else its `use`, else nothing."""
    for key in ("name", "use"):
        child = node.child(key)
        if child is not None and isinstance(child.value, str):
            return child.value
    return ""
