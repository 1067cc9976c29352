"""The order of the rooms and the nevers of the house, as functions of a module's path and text.

Each gives the violations that it sees, so that a test can plant one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache

from support import ROOT

# Who may import whom: a room imports from its own row or the rows above.
ORDER = (
    {"findings", "ir"},
    {"source"},
    {"codecs"},
    {"passes"},
    {"architecture"},
    {"formats"},
    {"targets"},
    {"plan"},
    {"write"},
    {"commands"},
    {"loaders", "render", "progress", "testing", "page"},
    {"display"},
    {"cli"},
    {"__main__"},
)
ROWS = {room: row for row, rooms in enumerate(ORDER) for room in rooms}
FOR_FORMATS = ORDER[:6]  # what the formats themselves may use
FACES = {"findings", "ir", "formats", "targets", "testing"}  # their __init__ says again what modules below it have

# (file, what it may name), each with the reason.
NAMES_ALLOWED = {
    # the public options --dtype and dtype= go with one target, which is the format dense
    ("bridge/qbridge/cli/converting.py", "dense"),
    ("bridge/qbridge/plan/options.py", "dense"),
    # mlp_layer_types of transformers: a layer is "dense" or "sparse"; leaf names of Falcon's and Phi's attention
    ("bridge/qbridge/architecture/classes.py", "dense"),
    ("bridge/qbridge/architecture/families.py", "dense"),
    ("bridge/qbridge/architecture/from_config.py", "dense"),
    ("bridge/qbridge/architecture/parallel.py", "dense"),
    # ggml calls one of its tensor types so
    ("bridge/qbridge/source/ggml_types.py", "MXFP4"),
    ("bridge/qbridge/codecs/ggml_blocks.py", "MXFP4"),
    # a number format that the public option --cast names, of which a format has the name
    ("bridge/qbridge/plan/casting.py", "fp8"),
    # a value of expert_dtype in config.json
    ("bridge/qbridge/architecture/expert_dtype.py", "fp8"),
    # until every format judges a config.json alone: the keys of GPTQ's, AWQ's and compressed-tensors' blocks
    ("bridge/qbridge/architecture/from_config.py", "auto-round"),
    ("bridge/qbridge/architecture/from_config.py", "compressed-tensors"),
}
CLASSES_ALLOWED = (
    "bridge/qbridge/architecture/",
    # an engine's own list of the classes that it has, or treats in a way of its own
    "bridge/qbridge/targets/",
    "bridge/qbridge/loaders/",
    # examples in the words of the catalogue, and of the checkpoint that the laws write
    "bridge/qbridge/findings/catalogue/",
    "bridge/qbridge/testing/laws.py",
    # gpt-oss is the one class that has MXFP4 experts in fused tensors
    "formats/qbridge_formats/_shared/fused_experts.py",
    # Qwen3-MoE is the one class whose lists LMDeploy consults for experts
    "formats/qbridge_formats/smooth_quant.py",
)
FILES_ALLOWED = (
    "bridge/qbridge/source/",
    "bridge/qbridge/write/",
    # runs in an engine's own Python, which has no qbridge
    "bridge/qbridge/targets/proving.py",
    "bridge/qbridge/targets/llamacpp/prover.py",
    # the user's config file, which is no file of a checkpoint
    "bridge/qbridge/commands/settings.py",
    # its own style sheet and script; a page that is there already
    "bridge/qbridge/page/document.py",
    "bridge/qbridge/commands/reporting.py",
    # until a storage reads them: the manifest and side files beside config.json, the laws' own output
    "bridge/qbridge/plan/manifest.py",
    "bridge/qbridge/architecture/from_config.py",
    "bridge/qbridge/testing/laws.py",
    "formats/qbridge_formats/_shared/config_block.py",
    "formats/qbridge_formats/modelopt/config.py",
)
# Modules of architecture/, and functions, that nobody asks but `Architecture`.
BEHIND_ARCHITECTURE = frozenset(
    [
        "classes",
        "decoder",
        "families",
        "text_config",
        "_text_config",
        "family",
        "rank",
        "head_faults",
        "intermediate_key",
        "intermediate_copies",
    ]
)
_READING = {"open", "fdopen", "read_bytes", "read_text", "load_json", "preadv", "memmap"}
_CLASS = re.compile(r"\b[A-Z]\w+(?:ForCausalLM|ForConditionalGeneration|LMHeadModel)\b")


@cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def room_of(path: str) -> str:
    """The room of a module of bridge/qbridge, its own name at the top."""
    return path.removeprefix("bridge/qbridge/").split("/")[0].removesuffix(".py")


def imports(text: str) -> Iterator[str]:
    """The modules that a module imports, wherever in it."""
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if is_module(name) else node.module for name in whole)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def is_module(name: str) -> bool:
    """Whether a dotted name is a module or a package of the house."""
    path = ROOT / ("bridge" if name.startswith("qbridge.") else "formats") / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def against_the_order(path: str, text: str) -> list[str]:
    """Imports of a room further down, of a format, or through the face of a room."""
    room, wrong = room_of(path), []
    for module in imports(text):
        package, _, rest = module.partition(".")
        if package == "qbridge_formats":
            wrong.append(f"{path} imports a format: {module}")
        if package != "qbridge" or not rest or room == "__init__":
            continue
        other, _, inner = rest.partition(".")
        if other not in ROWS:
            wrong.append(f"{path} imports {module}, which is in no room")
        elif ROWS[other] > ROWS[room] or (room == "ir" and other != "ir"):  # ir imports only ir
            wrong.append(f"{path} imports {module} against the order")
        elif other in FACES and not inner and ROWS[room] < ROWS["render"]:
            wrong.append(f"{path} imports the face of {other}, not the module")
    return wrong


def formats_against_the_order(path: str, text: str) -> list[str]:
    """Imports of a format from a room that is not for it, or from another format."""
    own, wrong = path.removeprefix("formats/qbridge_formats/").split("/")[0].removesuffix(".py"), []
    allowed = set().union(*FOR_FORMATS)
    for module in imports(text):
        package, _, rest = module.partition(".")
        other = rest.split(".")[0]
        if package == "qbridge" and other not in allowed:
            wrong.append(f"{path} imports {module}")
        if package == "qbridge_formats" and other not in (own, "_shared"):
            wrong.append(f"{path} imports another format: {module}")
    return wrong


def constants(text: str) -> Iterator[str]:
    """The string constants of a module that are no docstrings."""
    tree = parsed(text)
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield node.value


def foreign_names(path: str, text: str, names: set[str]) -> list[str]:
    """Constants that are the name of a format or an engine, outside targets/ and the registry and detection."""
    at_home = (
        "bridge/qbridge/targets/",
        "bridge/qbridge/loaders/",
        "bridge/qbridge/formats/registry.py",
        "bridge/qbridge/formats/detection.py",
    )
    if path.startswith((*at_home, "bridge/qbridge/findings/catalogue/", "formats/")):
        return []
    return [
        f"{path} names {text_}"
        for text_ in constants(text)
        if text_.lower().replace("_", "-") in names and (path, text_) not in NAMES_ALLOWED
    ]


def foreign_classes(path: str, text: str) -> list[str]:
    """Constants that hold the name of a model class, outside architecture/ and what is allowed."""
    if path.startswith(CLASSES_ALLOWED):
        return []
    return [f"{path} names {match[0]}" for text_ in constants(text) for match in _CLASS.finditer(text_)]


def opened_files(path: str, text: str) -> list[str]:
    """Calls that open a file, outside source/ and write/ and what is allowed."""
    if path.startswith(FILES_ALLOWED):
        return []
    calls = (node.func for node in ast.walk(parsed(text)) if isinstance(node, ast.Call))
    names = (call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls)
    return [f"{path} calls {name}" for name in names if name in _READING]


def bare_architectures(path: str, text: str) -> list[str]:
    """Imports of what `Architecture` is made of, outside architecture/ and the laws of its rows."""
    if path.startswith(("bridge/qbridge/architecture/", "bridge/qbridge/testing/architectures.py")):
        return []
    wrong = []
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = {alias.name.rpartition(".")[2] for alias in node.names}
            module = getattr(node, "module", None) or node.names[0].name
            inside = {part.rpartition(".")[2] for part in (module, *names)} & BEHIND_ARCHITECTURE
            if f"{module}.".startswith("qbridge.architecture."):
                wrong += [f"{path} imports {name} of architecture" for name in sorted(inside)]
    return wrong


def kind_tests(path: str, text: str, room: str, kinds: set[str]) -> list[str]:
    """isinstance on a class of a room (a codec, a pass) outside it."""
    if path.startswith(f"bridge/qbridge/{room}/"):
        return []
    wrong = []
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            asked = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
            wrong += [f"{path} asks isinstance of {name}" for name in sorted(asked & kinds)]
    return wrong


_RE = {"match", "fullmatch", "search", "findall", "split"}
_PARSING = {
    *("split", "rsplit", "splitlines", "partition", "rpartition", "startswith", "endswith", "find", "index"),
    *("removeprefix", "removesuffix", "replace", "strip", "lstrip", "rstrip", *_RE),
}
_HELP = {"help", "advice"}


def parsed_help(path: str, text: str) -> list[str]:
    """Calls that take the text of help or of an option apart: a way out is data (`findings.way.Way`)."""
    tree, tainted = parsed(text), set(_HELP)

    def has_help(node: ast.AST) -> bool:
        nodes = list(ast.walk(node))
        names = {own.id for own in nodes if isinstance(own, ast.Name)}
        return bool(names & tainted) or any(isinstance(own, ast.Attribute) and own.attr in _HELP for own in nodes)

    bound = [(node.target, node.iter) for node in ast.walk(tree) if isinstance(node, ast.For | ast.comprehension)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            bound += [(target, node.value) for target in node.targets]
    for _ in range(3):  # a line of help, a part of the line
        for target, value in bound:
            if has_help(value):
                tainted |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _PARSING:
            literals = [
                own.value for own in node.args if isinstance(own, ast.Constant) and isinstance(own.value, str)
            ]
            options = any(literal.lstrip("^ ").startswith(("--", "#")) for literal in literals)
            if options or has_help(node.func.value) or (node.func.attr in _RE and any(map(has_help, node.args))):
                wrong.append(f"{path}:{node.lineno} takes help text apart: {node.func.attr}")
    return wrong


def circle(modules: Mapping[str, str]) -> list[str]:
    """The modules (dotted name to text) of one circle of imports, the first one again at its end; empty if none."""
    graph = {name: set(top_imports(text, modules)) - {name} for name, text in modules.items()}
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if round_trip := walk(other, [*way, name]):
                return round_trip
        done.add(name)
        return []

    return next((found for name in graph if (found := walk(name, []))), [])


def top_imports(text: str, modules: Collection[str]) -> Iterator[str]:
    """Which of `modules` are imported when the module is: not those within a function, or for types alone."""
    for node in parsed(text).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from {whole if whole in modules else node.module}.intersection(modules)
