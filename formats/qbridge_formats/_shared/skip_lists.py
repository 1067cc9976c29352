"""Lists of names that are left unquantized, where engines differ in how an entry matches.

reader          an entry matches a module whose name
vllm 0.33.0     is the entry (fp8, mxfp4), holds it (awq, modelopt), or is matched by it (modelopt: shell wildcards);
                linears that are built as one are looked up by their parts and by the fused name, experts that are
                built as one by the block's name. Entries are renamed as tensors are, where the class has a mapper
transformers    begins as the entry, a regex, says, or ends with it (5.24.0); holds it (4.57.6)
lmdeploy        is a part of the entry (0.18.0)

Full names suit all of them as long as the engine renames lists. Sources: vllm 0.33.0,
model_executor/layers/quantization/utils/quant_utils.py (is_layer_skipped), auto_awq.py, fp8.py, modelopt.py;
transformers 5.24.0 and 4.57.6, quantizers/quantizers_utils.py, integrations/finegrained_fp8.py and awq.py; lmdeploy
0.18.0, pytorch/config.py (get_quant_method).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from fnmatch import translate

from qbridge.formats.patterns import matches
from qbridge.ir.model import Model
from qbridge_formats._shared.unquantized import Subtree, Unquantized, with_fused

PLAIN = re.compile(r"[\w.-]*")  # a name, which is no pattern; long lists are of those


def source_entries(model: Model, origin: str, keys: Iterable[str]) -> list[str]:
    """The entries of the source's lists under some keys of its block, where it had one of the format `origin`."""
    if model.origin != origin:
        return []
    lists = [model.block.get(key) for key in keys]
    entries = [entry for entries in lists if isinstance(entries, list) for entry in entries]
    return list(dict.fromkeys(entry for entry in entries if isinstance(entry, str)))


def exact_entries(model: Model, source: Iterable[str]) -> list[str]:
    """Entries for readers that want full names; those of the source that name nothing quantized come first."""
    rest = Unquantized.of(model)
    found = dict.fromkeys(_begins_or_ends(source, rest.quantized))
    found |= dict.fromkeys(rest.names)
    if rest.nested:  # a reader whose list is not renamed takes them for regexes
        found |= dict.fromkeys(tree.pattern for tree in rest.subtrees if not tree.numbered)
    return list(found)


def substring_entries(model: Model, source: Iterable[str]) -> list[str]:
    """Entries for readers of which one looks for them within names, and others want full names."""
    rest = Unquantized.of(model)
    quantized = with_fused(rest.quantized)
    text = "\n".join(quantized)
    found = dict.fromkeys(entry for entry in _begins_or_ends(source, quantized) if entry not in text)
    found |= dict.fromkeys(with_fused(rest.linears, usual=rest.nested))
    found |= dict.fromkeys(label for tree in rest.subtrees for label in _parts(tree, text))
    if rest.nested:
        found |= dict.fromkeys(tree.pattern for tree in rest.subtrees if not tree.numbered)
    return list(found)


def wildcard_entries(model: Model, source: Iterable[str]) -> list[str]:
    """Entries for readers that take them for shell wildcards, and plain names also for parts of names."""
    rest = Unquantized.of(model)
    text = "\n".join(with_fused(rest.quantized))
    found = dict.fromkeys(kept_wildcards(model, source))
    found |= {f"*{label}*": None for tree in rest.subtrees for label in _parts(tree, text)}
    for item in rest.items:
        if isinstance(item, str):
            found[item] = None
        elif item.numbered:
            found |= dict.fromkeys(item.linears)
    return list(found | dict.fromkeys(rest.heads))


def kept_wildcards(model: Model, source: Iterable[str]) -> list[str]:
    """The source's entries that say of nothing quantized that it is not, to such readers."""
    quantized = with_fused(Unquantized.of(model).quantized)
    text = "\n".join(quantized)
    globs = {entry: translate(entry) for entry in source if entry not in text}
    hits = matches((glob for entry, glob in globs.items() if not PLAIN.fullmatch(entry)), quantized, whole=True)
    return [entry for entry, glob in globs.items() if not hits.of(glob) and glob not in hits.faults]


def _begins_or_ends(entries: Iterable[str], quantized: Iterable[str]) -> list[str]:
    """The entries that say of nothing quantized that it is not, to a reader who takes them for regexes or endings."""
    names, entries = sorted(quantized), list(entries)
    if not entries:
        return []
    backwards = sorted(name[::-1] for name in names)
    hits = matches((entry for entry in entries if not PLAIN.fullmatch(entry)), names)
    return [
        entry
        for entry in entries
        if not _is_start(entry[::-1], backwards)
        and (
            not _is_start(entry, names) if PLAIN.fullmatch(entry) else entry not in hits.faults and not hits.of(entry)
        )
    ]


def _is_start(text: str, names: Sequence[str]) -> bool:
    """Whether one of sorted names starts with a text."""
    place = bisect_left(names, text)
    return place < len(names) and names[place].startswith(text)


def _parts(tree: Subtree, quantized: str) -> list[str]:
    """What names below a subtree hold in memory, and no quantized one does."""
    dotted = (label if label not in quantized else f".{label}." for label in tree.labels)
    return [label for label in dotted if label not in quantized]
