"""The Format protocol: what a module of one on-disk layout offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from qbridge.findings.finding import Findings
from qbridge.formats.rules import Rule
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.slots import Slot
from qbridge.source.reader import Source


@dataclass(frozen=True, slots=True)
class Match:
    """Evidence that a checkpoint has a format: 2 when its config says so, 1 when only its tensors do."""

    score: int
    because: str


class Format(Protocol):
    """One on-disk layout.

    Seven things a module may leave out: `metadata(model, source, findings)`, the metadata of files of GGUF, which the
    format is then written in; `computed(model)`, float32 tensors by name that follow from the config alone;
    `CONFIG_FILES`, the names of the files beside config.json in which its tools say again how the model is quantized;
    `side_files(block)`, those of them that are written, by name, from the block that `config` gives;
    `KEEPS_INPUT_DETAILS`, whether its config can say a limit of inputs, or how scales are rounded;
    `TAKES_COMPUTED_WEIGHTS`, whether it writes weights that are no code times one scale; and `BLOCK_KEYS`, the keys
    of config.json under which the block stands, `quantization_config` alone where there are none.
    """

    @property
    def NAME(self) -> str:
        """The id, as after --from and --to."""

    @property
    def SUMMARY(self) -> str:
        """One line for `qbridge formats`."""

    @property
    def ALIASES(self) -> tuple[str, ...]:
        """Other names after --from and --to."""

    @property
    def RULES(self) -> tuple[Rule, ...]:
        """What the layout can hold."""

    def sniff(self, source: Source) -> Match | str:
        """Evidence that the checkpoint is of this format, or the reason why not."""

    def read(self, source: Source, findings: Findings) -> Model:
        """The checkpoint's model from config and headers; every fault becomes a finding."""

    def settle(self, model: Model) -> Model:
        """A legal model with what must be the same for all its layers put into their dialects."""

    def layout(self, spec: Spec) -> dict[str, Slot]:
        """The slot of every part of a spec that the rules let through."""

    def config(self, model: Model) -> dict[str, Any]:
        """The quantization block of config.json."""
