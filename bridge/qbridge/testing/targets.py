"""The laws of a target, shipped so that an engine of another package tests itself.

    from qbridge.testing import check_target
    def test_laws(): [check_target(target) for target in my_engine.TARGETS]

Needs hypothesis (`pip install qbridge-llm[test]`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from string import Formatter
from typing import Any

import numpy as np

from qbridge.findings.catalogue import CATALOGUE
from qbridge.formats.registry import find
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule, ValueRule
from qbridge.ir.dtypes import Array, DType
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.model import Model, TensorInfo
from qbridge.passes import Pass
from qbridge.targets.messages import KINDS, Message
from qbridge.targets.plugins import faults
from qbridge.targets.serving import Served
from qbridge.targets.target import Target
from qbridge.testing.laws import CONFIG
from qbridge.testing.strategies import every_common_spec, random_layer

_DIMS = {
    **CONFIG,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
    "vocab_size": 256,
}
_LINEARS = (
    *(f"model.layers.0.self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "o_proj")),
    *(f"model.layers.0.mlp.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj")),
)
_CITED = re.compile(r"\d+\.\d+")  # of a version; what holds for every reader cites a module of qbridge
_SAMPLES = {"layer": "layers.64.mlp"}  # by the kind of a field; 64 for others
_PATH = "'/models/a b'"


@dataclass(frozen=True, slots=True)
class _Random:
    """Values of a model whose layers are random and whose other tensors are zeros."""

    model: Model

    def part(self, layer: str, part: str) -> Array:
        return _layer(self.model.specs[layer]).arrays[part]

    def once(self, key: Hashable, find: Callable[[], Any]) -> Any:
        return find()

    def blocks(self, tensor: str) -> Iterator[Array]:
        info = self.model.tensors[tensor]
        yield np.zeros(int(np.prod(info.shape)), info.dtype.numpy)


@lru_cache(maxsize=512)
def _layer(spec: Spec) -> Layer:
    return random_layer(spec, 0)


def check_target(target: Target) -> None:
    """The laws of a target; AssertionError names the one that is broken.

    It is called engine@version; its formats exist; each rule has a source that names a version, and a code of the
    catalogue or of the target's own; no rule raises on a small Llama of any common scheme, split over ranks or not,
    and what each gives is a problem, a pass or nothing; the command that serves a checkpoint holds its folder; what
    it prints is recognised in a line, with the values that its cause and cures name; its prover is a file.
    """
    wrong = faults((target,))
    _require(not wrong, f"{target.name}: {'; '.join(wrong)}")
    _require(bool(target.summary) and "\n" not in target.summary, f"{target.name}: its summary is not one line")
    _require(bool(target.choices), f"{target.name}: it loads no format")
    for entry in target.codes:
        said = (entry.title, entry.what, entry.why, entry.example, entry.fix, entry.source)
        _require(all(said), f"{target.name}: the entry of {entry.code} leaves something out")
        _require(entry.code not in CATALOGUE, f"{target.name}: {entry.code} is a code of qbridge")
    for message in target.messages:
        _check_message(target, message)
    _require(target.prover is None or target.prover.is_file(), f"{target.name}: there is no {target.prover}")
    for choice in target.choices:
        name = choice.format.NAME
        _require(name == find(name).NAME, f"{target.name}: {name} is not the id of a format")
        models = [_llama(name, spec) for spec in every_common_spec(_LINEARS[0])]
        with_values = list({_kind(model): model for model in models}.values())  # casts take time
        for sizes in ((1,), (2,)):
            for rule in target.limits(choice, sizes):
                cited = bool(_CITED.search(rule.source)) or rule.source.startswith("qbridge.")
                _require(cited, f"{target.name}: {rule.code} cites no version: {rule.source}")
                for model in models if not isinstance(rule, ValueRule) else with_values:
                    _check_rule(target, rule, model)
        command = target.command(models[0], name, _PATH[1:-1], 2)
        told = isinstance(command, str) and (_PATH in command if choice.serve else not command)
        _require(told, f"{target.name}: the command that serves {name} does not hold the folder")
        for model in models:
            kinds = target.serving(model, 1, 80)
            _require(all(isinstance(kind, Served) for kind in kinds), f"{target.name}: a kernel is no Served")


def _llama(format_name: str, spec: Spec) -> Model:
    """A Llama of one block whose linears all have the scheme of a spec."""
    specs = {name: replace(spec, name=name) for name in _LINEARS}
    names = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    shapes = {name: (256,) if "norm" in name else (256, 256) for name in names}
    tensors = {name: TensorInfo(DType.F16, shape, name) for name, shape in shapes.items()}
    return Model(format_name, _DIMS, specs, {}, tensors)


def _check_message(target: Target, message: Message) -> None:
    """That a message is recognised by itself, cites a release, and fills its cause and cures from its own values."""
    name = f"{target.name}: the message {message.text!r}"
    values = {
        field: _SAMPLES.get(kind, "64") if kind in KINDS else kind.partition("|")[0]
        for field, kind in message.fields.items()
    }
    line = message.line(values)
    match = message.pattern.search(line)
    _require(match is not None and match.groupdict() == values, f"{name} is not recognised in {line!r}")
    _require(bool(_CITED.search(message.source)), f"{name} cites no version: {message.source}")
    _require(bool(message.versions and message.cause), f"{name} leaves something out")
    _require(bool(message.cure or message.advice), f"{name} has no way out")
    for cure in message.cure:
        used = {field for _, field, *_ in Formatter().parse(cure.options) if field}
        _require(used <= {*message.fields, *message.derive(values)}, f"{name} has no value for {sorted(used)}")


def _kind(model: Model) -> tuple[str, bool]:
    spec = next(iter(model.specs.values()))
    return spec.weight.type, spec.activation is None


def _check_rule(target: Target, rule: Rule, model: Model) -> None:
    """What a rule gives for a model, and that it raises nothing."""
    scheme = next(iter(model.specs.values())).scheme
    try:
        if isinstance(rule, LayerRule):
            problems = [problem for spec in model.specs.values() if (problem := rule.check(spec, model)) is not None]
            fixes = [fix for spec in model.specs.values() if (fix := rule.fix(spec, model)) is not None]
            whole = all(isinstance(fix, Pass) for fix in fixes)
            _require(whole, f"{target.name}: a fix of {rule.code} is no pass")
        elif isinstance(rule, ModelRule):
            problems = list(rule.check(model))
            if rule.drop:
                _require(isinstance(rule.drop(model), Model), f"{target.name}: {rule.code} drops to no model")
        else:
            problems = list(rule.check(model, _Random(model)))
    except AssertionError:
        raise
    except Exception as fault:
        raise AssertionError(f"{target.name}: {rule.code} raises on {scheme}: {fault!r}") from fault
    _require(all(isinstance(p, Problem) for p in problems), f"{target.name}: {rule.code} gives no Problem")


def _require(holds: bool, law: str) -> None:
    if not holds:
        raise AssertionError(law)
