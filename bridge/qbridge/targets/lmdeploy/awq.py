"""What LMDeploy's engines take of AWQ, which both of them have.

Sources: lmdeploy 0.18.0, pytorch/nn/linear/awq.py, pytorch/nn/moe/__init__.py and turbomind/converter.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

from qbridge.architecture.architecture import Architecture
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.passes import Pass
from qbridge.passes.regroup import Regroup
from qbridge.targets.common import START
from qbridge.targets.lmdeploy.fusion import LMDEPLOY as FUSION
from qbridge.targets.lmdeploy.towers import odd_heads, turbomind_builds

_STORED_QKV = frozenset({"qkv_proj", "query_key_value", "W_pack", "wqkv", "c_attn"})  # q, k and v, one after another
_SMALLEST_GROUP = 16  # pytorch/kernels/cuda/awq_kernels.py: a block of the dot product is a group
# 0.6.2 computes fewer than 64 tokens with AutoAWQ's gemm_forward_cuda, which raises on other groups and outputs.
_OLD_GROUP = 32
_OLD_OUTPUTS = 64


def _group(spec: Spec, model: Model) -> Problem | None:
    best = best_group(model)
    if best < _SMALLEST_GROUP:
        return Problem((f"weights {spec.weight}: its kernels take {_SMALLEST_GROUP} inputs at a time, at least",))
    if spec.weight.group_size == best:
        return None
    fact = f"weights {spec.weight}: groups of 128 are what both engines load"
    if best < 128 and (cut := _cut(model, 128)):
        fact = (
            f"weights {spec.weight}: the PyTorch engine cuts linears that it builds as one into whole groups; {cut}"
        )
    return Problem((fact,))


def _regrouped(spec: Spec, model: Model) -> Pass | None:
    return _regroup(spec, best_group(model), _SMALLEST_GROUP)


def _regroup(spec: Spec, best: int, least: int) -> Pass | None:
    """Groups of the best size, if the kernel takes so few and a layer has others."""
    return Regroup(best) if best >= least and spec.weight.group_size != best else None


def _old_group_problem(spec: Spec, model: Model) -> Problem | None:
    best = _old_group(model)
    outputs = _built_outputs(model)[spec.name]
    if best < _OLD_GROUP:
        return Problem((f"weights {spec.weight}: AutoAWQ's kernel takes {_OLD_GROUP} inputs at a time, at least",))
    if outputs % _OLD_OUTPUTS:
        return Problem((f"{outputs} outputs: AutoAWQ's kernel takes {_OLD_OUTPUTS} at a time",))
    if spec.weight.group_size == best:
        return None
    cut = _cut(model, spec.weight.group_size or spec.in_features) or "it has one size for the whole model"
    return Problem((f"weights {spec.weight}: groups of {best} are what the PyTorch engine loads; {cut}",))


def _old_regrouped(spec: Spec, model: Model) -> Pass | None:
    return _regroup(spec, _old_group(model), _OLD_GROUP)


def _old_group(model: Model) -> int:
    """The group size of 0.6.2, which divides the outputs of every linear that it builds, too."""

    def find() -> int:
        return gcd(pytorch_group(model), *_built_outputs(model).values())

    return model.once("lmdeploy 0.6.2 group size", find)


def _built_outputs(model: Model) -> dict[str, int]:
    """By layer, the outputs of the linear that is built of it: the sums of q, k, v and of gate, up."""

    def find() -> dict[str, int]:
        outputs = {name: spec.out_features for name, spec in model.specs.items()}
        for names in FUSION.siblings(model, model.specs):
            outputs |= dict.fromkeys(names, sum(model.specs[name].out_features for name in names))
        return outputs

    return model.once("lmdeploy built outputs", find)


def pytorch_group(model: Model) -> int:
    """The largest group size up to 128 that divides every layer's groups, and the outputs of what is cut."""

    def find() -> int:
        common = (gcd(spec.weight.group_size or 128, spec.in_features, 128) for spec in model.specs.values())
        return gcd(*common, *(outputs for _, outputs in _merged(model)))

    return model.once("lmdeploy pytorch group size", find)


def best_group(model: Model) -> int:
    """128 where both engines load groups of 128, or TurboMind builds the model; else the largest size that will do.

    It divides every layer's groups, and the outputs of what the PyTorch engine cuts.
    """

    def find() -> int:
        common = gcd(*(gcd(spec.weight.group_size or 128, spec.in_features, 128) for spec in model.specs.values()))
        both = common == 128 and turbomind_builds(model)
        return common if both else pytorch_group(model)

    return model.once("lmdeploy group size", find)


def _merged(model: Model) -> list[tuple[str, int]]:
    """(name, outputs) of the parts of q, k, v and of gate, up, which the PyTorch engine cuts into whole groups.

    It does so on one GPU, too: AssertionError (pytorch/nn/utils.py, chunk_aligned and get_distribute_size).
    """

    def find() -> list[tuple[str, int]]:
        siblings = FUSION.siblings(model, model.specs)
        found = [(name, model.specs[name].out_features) for names in siblings for name in names]
        architecture = Architecture.of_model(model)
        query, kv = architecture.heads
        for name, spec in model.specs.items():
            leaf = name.rpartition(".")[2]
            if leaf in _STORED_QKV and query and kv:
                head = spec.out_features // (query + 2 * kv)
                found += [(name, query * head), (name, kv * head)]
            elif leaf in architecture.split.merged:
                found.append((name, spec.out_features // 2))
        return found

    return model.once("lmdeploy merged outputs", find)


def _cut(model: Model, size: int) -> str:
    """Which outputs are no whole groups of the PyTorch engine, in words; empty where all are."""
    return next((f"{name} has {outputs} outputs of a part" for name, outputs in _merged(model) if outputs % size), "")


def _one_engine(model: Model) -> Iterator[Problem]:
    sizes = {spec.weight.group_size for spec in model.specs.values()}
    if sizes == {128} and any(".experts." in name for name in model.specs):
        fact = "TurboMind loads it, the PyTorch engine has no experts in AWQ"
        yield Problem((fact,), (START.format("turbomind"),), ("config.json",))
    elif sizes == {128} and turbomind_builds(model) and (cut := _cut(model, 128)):
        fact = f"TurboMind loads it, the PyTorch engine wants outputs in whole groups of 128; {cut}"
        yield Problem((fact,), (START.format("turbomind"),), ("config.json",))
    elif sizes == {128} and (odd := odd_heads(model)):  # LMDeploy picks TurboMind for the class
        fact = f"the PyTorch engine loads it, TurboMind stops: {odd}"
        yield Problem((fact,), (START.format("pytorch"),), ("config.json",))
    if sizes != {128} and None not in sizes and {spec.weight.bits for spec in model.specs.values()} == {4}:
        named = ", ".join(map(str, sorted(size or 0 for size in sizes)))
        fact = f"groups of {named}: the PyTorch engine loads it, TurboMind has AWQ in groups of 128 only"
        yield Problem((fact,), (START.format("pytorch"),), ("config.json",))


def _experts_in_small_groups(model: Model) -> Iterator[Problem]:
    """The PyTorch engine has no experts in AWQ; TurboMind has classes of its own, and AWQ in groups of 128 only."""
    turbomind = turbomind_builds(model)
    experts = ((name, spec) for name, spec in model.specs.items() if ".experts." in name)
    refused = tuple(name for name, spec in experts if not turbomind or spec.weight.group_size != 128)
    if refused:
        why = "" if turbomind else f", and TurboMind has no {odd_heads(model) or model.architecture}"
        yield Problem((f"{len(refused)} linears of experts{why}",), where=refused)


def _pytorch_group_problem(spec: Spec, model: Model) -> Problem | None:
    """Groups that the PyTorch engine does not load, whatever TurboMind does."""
    best = pytorch_group(model)
    if best >= _SMALLEST_GROUP and spec.weight.group_size == best:
        return None
    cut = _cut(model, spec.weight.group_size or spec.in_features)
    why = f"it cuts linears that it builds as one into whole groups; {cut}" if cut else f"it takes groups of {best}"
    if best < _SMALLEST_GROUP:
        why = f"its kernels take {_SMALLEST_GROUP} inputs at a time, at least"
    return Problem((f"weights {spec.weight}: {why}",))


def _experts(model: Model) -> Iterator[Problem]:
    if found := tuple(name for name in model.specs if ".experts." in name):
        yield Problem(
            (f"{len(found)} linears of experts, which the PyTorch engine does not have in AWQ",), where=found
        )


def _row_biases(model: Model) -> Iterator[Problem]:
    """o_proj and down_proj are split along their inputs, so their bias must be added once."""
    rows = ("o_proj", "down_proj", "w2")
    found = tuple(n for n, spec in model.specs.items() if spec.bias and n.rpartition(".")[2] in rows)
    if found:
        yield Problem((f"{len(found)} row-parallel linears have a bias",), where=found)


# Classes that TurboMind alone loads in 4 bits and whose kv_b_proj it folds into q_b_proj and o_proj, by their values.
_FOLDS = frozenset({"Glm4MoeLiteForCausalLM"})
_FOLDED = ("q_b_proj", "kv_b_proj", "o_proj")


def _folded(model: Model) -> Iterator[Problem]:
    found = tuple(name for name in model.specs if name.endswith(_FOLDED)) if model.architecture in _FOLDS else ()
    if found:
        yield Problem((f"{len(found)} of q_b_proj, kv_b_proj and o_proj are quantized",), where=found)


FOLDED = ModelRule("QB246", _folded, "lmdeploy 0.18.0, turbomind/builders/mla.py (fold_kv_b)")
RULES: tuple[Rule, ...] = (
    FOLDED,
    LayerRule("QB215", _group, "lmdeploy 0.18.0, turbomind/converter.py and pytorch/nn/linear/awq.py", _regrouped),
    ModelRule("QB218", _experts_in_small_groups, "lmdeploy 0.18.0, pytorch/nn/moe/__init__.py (build_fused_moe)"),
    ModelRule("QB216", _one_engine, "lmdeploy 0.18.0, turbomind/converter.py"),
    ModelRule("QB217", _row_biases, "lmdeploy 0.18.0, pytorch/nn/linear/awq.py"),
)
PYTORCH_RULES: tuple[Rule, ...] = (
    LayerRule(
        "QB215", _pytorch_group_problem, "lmdeploy 0.18.0, pytorch/nn/linear/awq.py and kernels/cuda/awq_kernels.py"
    ),
    ModelRule("QB218", _experts, "lmdeploy 0.18.0, pytorch/nn/moe/__init__.py (build_fused_moe)"),
    ModelRule("QB217", _row_biases, "lmdeploy 0.18.0, pytorch/nn/linear/awq.py"),
)
# 0.6.2, whose PyTorch engine cuts linears alike, and whose TurboMind has groups of 128 and, in Llama, heads of 128.
OLD_RULES: tuple[Rule, ...] = (
    LayerRule(
        "QB215",
        _old_group_problem,
        "lmdeploy 0.6.2, pytorch/nn/linear.py (_chunk_align); autoawq_kernels, awq_ext/quantization/gemm_cuda_gen.cu",
        _old_regrouped,
    ),
    ModelRule("QB217", _row_biases, "lmdeploy 0.6.2, pytorch/nn/linear.py (AwqLinear)"),
)
