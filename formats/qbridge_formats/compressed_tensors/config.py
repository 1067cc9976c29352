"""The quantization block of compressed-tensors: what its keys mean, which scheme a module has.

Sources: compressed-tensors 0.20.0, quantization/quant_config.py, quant_scheme.py, quant_args.py, utils/match.py and
config/base.py; older keys from the wheels 0.3.2 to 0.13.0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qbridge.architecture.names import is_embedding
from qbridge.architecture.quantization_block import Block
from qbridge.findings.finding import Findings
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge_formats._shared.scope import WHOLE_MODEL, Scope

TOP_KEYS = frozenset(
    {
        "quant_method",
        "version",
        "format",
        "quantization_status",
        "global_compression_ratio",
        "ignore",
        "kv_cache_scheme",
        "config_groups",
        "sparsity_config",
        "transform_config",
        "moe_sparsity_config",
        "run_compressed",
    }
)
SCHEME_KEYS = frozenset({"targets", "weights", "input_activations", "output_activations", "format"})
ARGS_KEYS = frozenset(
    {
        "num_bits",
        "type",
        "symmetric",
        "group_size",
        "strategy",
        "block_structure",
        "dynamic",
        "actorder",
        "scale_dtype",
        "zp_dtype",
        "observer",
        "observer_kwargs",
    }
)
_GRANULARITY = {
    "tensor": Granularity.TENSOR,
    "channel": Granularity.CHANNEL,
    "group": Granularity.GROUP,
    "block": Granularity.BLOCK,
    "token": Granularity.TOKEN,
}


_EXPONENTS = ("torch.uint8", "uint8")  # what scale_dtype calls them


class SchemaError(ValueError):
    """A key of the block is missing, unknown or has a value that means nothing."""


class NotReadError(ValueError):
    """A scheme of the library that has no place in the IR."""


@dataclass(frozen=True, slots=True)
class Group:
    """One entry of config_groups, its arguments checked.

    `exponents` and `input_exponents` say whether scales of weights and of activations are powers of two, `act_order`
    whether groups of inputs are those of a stored g_idx (actorder `group`; with `weight` they lie in order).
    """

    name: str
    targets: tuple[str, ...]
    weight: WeightScheme | None
    activation: ActivationScheme | None
    format: str | None
    outputs: bool
    exponents: bool = False
    input_exponents: bool = False
    act_order: bool = False


@dataclass(frozen=True, slots=True)
class Parsed:
    """A quantization block as checked data; `key` is where it stood in config.json."""

    key: str
    raw: Mapping[str, Any]
    groups: tuple[Group, ...]
    ignore: tuple[str, ...]


def is_ours(block: Block) -> bool:
    """Whether a block speaks compressed-tensors: by its method, or by config_groups where none is named."""
    if block.raw.get("quant_method") is None:
        return "config_groups" in block.raw and "quant_algo" not in block.raw  # which ModelOpt's blocks have
    return block.method.replace("_", "-") == "compressed-tensors"


def parse(block: Block, findings: Findings) -> Parsed | None:
    """The block as checked data; None with findings (QB013, QB014) where it makes no sense."""
    key, raw = block.key, block.raw
    unknown = sorted(raw.keys() - TOP_KEYS)
    if unknown:
        findings.add("QB103", [f"{key}.{name}" for name in unknown])
    ignore = [] if raw.get("ignore") is None else raw["ignore"]
    if not _strings(ignore):
        findings.add("QB013", f"{key}.ignore", ("it is not a list of strings",))
        return None
    groups = _groups(key, raw.get("config_groups"), findings)
    owners: dict[str, str] = {}
    for entry in groups:
        for target in entry.targets:
            if owners.setdefault(target, entry.name) != entry.name:
                findings.add("QB014", target, (f"groups {owners[target]} and {entry.name} both target it",))
    return Parsed(key, raw, tuple(groups), tuple(ignore)) if groups else None


def _groups(key: str, raw: Any, findings: Findings) -> list[Group]:
    """Every group, or none with findings if one of them is malformed."""
    if not isinstance(raw, dict) or not raw:
        findings.add("QB013", f"{key}.config_groups", ("it is not an object with at least one group",))
        return []
    groups = []
    for name, group in raw.items():
        try:
            groups.append(_group(name, group))
        except SchemaError as fault:
            findings.add("QB013", f"{key}.config_groups.{name}", (str(fault),))
        except NotReadError as fault:
            findings.add("QB101", f"{key}.config_groups.{name}", (str(fault),))
    return groups if len(groups) == len(raw) else []


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _group(name: str, raw: Any) -> Group:
    if _strings(raw):  # the short form {PRESET: [targets]}
        return _preset(name, raw)
    if not isinstance(raw, dict):
        raise SchemaError("it is not an object")
    unknown = sorted(raw.keys() - SCHEME_KEYS)
    if unknown:
        raise SchemaError(f"unknown key {unknown[0]!r}")
    if not _strings(raw.get("targets")):
        raise SchemaError("targets is not a list of strings")
    weights, inputs = raw.get("weights"), raw.get("input_activations")
    activation = None if inputs is None else _activation(_args("input_activations", inputs))
    return Group(
        name,
        tuple(raw["targets"]),
        None if weights is None else _weight(_args("weights", weights)),
        activation,
        raw.get("format"),
        raw.get("output_activations") is not None,
        weights is not None and weights.get("scale_dtype") in _EXPONENTS,
        inputs is not None and activation is not None and _are_exponents(inputs, activation),
        weights is not None and weights.get("actorder") in (True, "group", "dynamic"),
    )


def _are_exponents(raw: Mapping[str, Any], activation: ActivationScheme) -> bool:
    """Whether scales of activations are; releases before 0.15 had no scale_dtype to say it of MXFP4."""
    named = raw.get("scale_dtype")
    return named in _EXPONENTS or (named is None and (activation.type, activation.group_size) == ("e2m1", 32))


def _preset(name: str, targets: list[str]) -> Group:
    if name.upper() not in ("W8A8", "INT8"):
        raise SchemaError(f"preset scheme {name!r} is not known here")
    weight = WeightScheme(8, Granularity.CHANNEL)
    activation = ActivationScheme(8, Granularity.TOKEN, dynamic=True)
    return Group(name, tuple(targets), weight, activation, None, False)


def _args(where: str, raw: Any) -> dict[str, Any]:
    """Quantization arguments with their defaults and the strategy inferred as the library does."""
    if not isinstance(raw, dict):
        raise SchemaError(f"{where} is not an object")
    unknown = sorted(raw.keys() - ARGS_KEYS)
    if unknown:
        raise SchemaError(f"{where} has the unknown key {unknown[0]!r}")
    args = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "dynamic": False, **raw}
    kinds: dict[str, tuple[type, ...]] = {
        "num_bits": (int,),
        "type": (str,),
        "symmetric": (bool,),
        "group_size": (int, type(None)),
        "dynamic": (bool, str),
    }
    for key, kind in kinds.items():
        if not isinstance(args[key], kind) or (type(args[key]) is bool and bool not in kind):
            raise SchemaError(f"{where}.{key} is {args[key]!r}")
    if args.get("strategy") is None:
        size = args["group_size"]
        args["strategy"] = "tensor" if size is None else "channel" if size == -1 else "group"
    if args["strategy"] not in (*_GRANULARITY, "tensor_group", "attn_head"):
        raise SchemaError(f"{where}.strategy is {args['strategy']!r}")
    args["where"] = where
    return args


def _weight(args: Mapping[str, Any]) -> WeightScheme:
    outer = args["strategy"] == "tensor_group"
    granularity = Granularity.GROUP if outer else _GRANULARITY.get(args["strategy"])
    if granularity in (None, Granularity.TOKEN):
        raise SchemaError(f"{args['where']}.strategy {args['strategy']!r} is not one that qbridge reads")
    if args.get("actorder") not in (None, False, True, "weight", "static", "group", "dynamic"):
        raise SchemaError(f"{args['where']}.actorder is {args['actorder']!r}")
    kind = _code_type(args)
    try:
        return WeightScheme(
            args["num_bits"],
            granularity,
            args["symmetric"],
            kind,  # type: ignore[arg-type]
            args["group_size"] if granularity is Granularity.GROUP else None,
            _block(args) if granularity is Granularity.BLOCK else None,
            "divide" if outer else None,
        )
    except ValueError as fault:
        raise SchemaError(f"{args['where']}: {fault}") from fault


def _block(args: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns, from [r, c] or, as older releases wrote them, "rxc"."""
    given: Any = args.get("block_structure")
    sizes = given
    if isinstance(given, str):
        sizes = [int(size) if size.isdecimal() and len(size) < 20 else None for size in given.split("x")]
    if not isinstance(sizes, list) or len(sizes) != 2 or any(type(size) is not int for size in sizes):
        raise SchemaError(f"{args['where']}.block_structure is {given!r}, not [rows, columns]")
    return sizes[0], sizes[1]


def _activation(args: Mapping[str, Any]) -> ActivationScheme:
    local = args["dynamic"] == "local"
    granularity = Granularity.GROUP if local else _GRANULARITY.get(args["strategy"])
    if isinstance(args["dynamic"], str) and (not local or args["strategy"] != "tensor_group"):
        raise SchemaError(f"{args['where']}.dynamic is {args['dynamic']!r} with strategy {args['strategy']!r}")
    if granularity is None:
        raise SchemaError(f"{args['where']}.strategy {args['strategy']!r} is not one that qbridge reads")
    kind = _code_type(args)
    if local and (kind, args["group_size"]) != ("e2m1", 16):
        raise NotReadError(f"{args['where']}: {kind} in groups of {args['group_size']} with a global scale")
    try:
        return ActivationScheme(
            args["num_bits"],
            granularity,
            bool(args["dynamic"]),
            args["symmetric"],
            kind,  # type: ignore[arg-type]
            args["group_size"] if granularity is Granularity.GROUP else None,
            "divide" if local else None,
        )
    except ValueError as fault:
        raise SchemaError(f"{args['where']}: {fault}") from fault


def _code_type(args: Mapping[str, Any]) -> str:
    if args["type"] == "int":
        return "int"
    kinds = {8: "e4m3fn", 4: "e2m1"}
    if args["type"] != "float" or args["num_bits"] not in (4, 6, 8):
        raise SchemaError(f"{args['where']}: type {args['type']!r} with {args['num_bits']} bits")
    if args["num_bits"] not in kinds or not args["symmetric"]:
        how = "" if args["symmetric"] else " with zero-points"
        raise NotReadError(f"{args['where']}: floats of {args['num_bits']} bits{how}")
    return kinds[args["num_bits"]]


class Matcher:
    """Which group a module belongs to, with the library's precedence.

    A target is an exact name, `re:` and a regex matched from the start, or a class name. A module is quantized if
    a target matches and no ignore entry does; exact beats regex beats class, ties go by the target's text.
    """

    def __init__(self, block: Parsed, modules: Collection[str], scope: Scope = WHOLE_MODEL) -> None:
        """Match every regex against the modules at once, so that asking about one costs lookups."""
        self._scope = scope
        targets = {target: group for group in block.groups for target in group.targets}
        patterns = [t for t in sorted(targets) if t.startswith("re:")]
        found = scope.matches((t[3:] for t in (*patterns, *block.ignore) if t.startswith("re:")), modules)
        self.faults = {f"re:{pattern}": fault for pattern, fault in found.faults.items()}
        self._groups = {t: g for t, g in targets.items() if not t.startswith("re:")}
        self._patterns = [(found.of(t[3:]), targets[t]) for t in patterns]
        self._ignored = {entry for entry in block.ignore if not entry.startswith("re:")}
        self._ignored = self._ignored.union(*(found.of(e[3:]) for e in block.ignore if e.startswith("re:")))

    def named(self, module: str) -> Group | None:
        """The group that targets the module by name or regex."""
        exact = self._exact(module)
        return exact or next((group for names, group in self._patterns if module in names), None)

    def _exact(self, module: str) -> Group | None:
        """The group that targets the module by one of its names."""
        return next((self._groups[name] for name in self._scope.names(module) if name in self._groups), None)

    def names(self, module: str) -> bool:
        """Whether a target is the module's own name."""
        return self._exact(module) is not None

    def group(self, module: str) -> Group | None:
        """The group whose target wins, whatever the ignore list says."""
        return self.named(module) or self._groups.get(_class_of(module))

    def rivals(self, module: str) -> list[Group]:
        """Every group whose target is of the kind that wins; readers differ in which of several they take."""
        exact = self._exact(module)
        if exact:
            return [exact]
        return [group for names, group in self._patterns if module in names]

    def ignored(self, module: str) -> bool:
        """Whether an ignore entry matches."""
        return not self._ignored.isdisjoint((*self._scope.names(module), _class_of(module)))


def _class_of(module: str) -> str:
    """The torch class that a module with a weight matrix most likely has."""
    return "Embedding" if is_embedding(module) else "Linear"


def args_of(scheme: WeightScheme | ActivationScheme, scale_dtype: str | None = None) -> dict[str, Any]:
    """The arguments object of a scheme, in the keys that every release since 0.9 knows.

    `scale_dtype`, for schemes that mean nothing without it, came with 0.13.
    """
    dynamic: bool | str = isinstance(scheme, ActivationScheme) and scheme.dynamic
    args: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "int" if scheme.type == "int" else "float",
        "symmetric": scheme.symmetric,
        "strategy": "tensor_group" if scheme.global_scale else str(scheme.granularity),
        "group_size": scheme.group_size,
        "dynamic": "local" if dynamic and scheme.global_scale else dynamic,
    }
    if scale_dtype:
        args["scale_dtype"] = scale_dtype
    if isinstance(scheme, WeightScheme) and scheme.block:
        args["block_structure"] = list(scheme.block)
    return args
