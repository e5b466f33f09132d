"""The manifest: what an engine is, as JSON, and nothing that has to be trusted.

Records are plain data. What they stand for is made of them by the other files of this
package, by names from fixed tables: nothing in a manifest is ever imported or run.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from graphcache.policy.data import Number

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all records: unknown fields and wrong types are refused."""


class Plain(Record, frozen=True):
    """A value that is no tensor.

    Attributes:
        type: ``bool``, ``int``, ``float``, ``str``, ``NoneType``, ``dtype``,
            ``device``, or the qualified name of an enum.
        text: The value as text.
    """

    type: str
    text: str


class TensorRecord(Record, frozen=True):
    """Shape, dtype and strides of a tensor, and the type of the device that it is on.

    There is no shape where it depends on data.
    """

    dtype: str
    shape: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    device: str


class Parameter(Record, frozen=True):
    """One parameter of the module's forward; no default if it is required."""

    name: str
    kind: str
    default: Plain | None = None


class TensorLeaf(Record, frozen=True, tag_field="is", tag="tensor"):
    """A tensor of the call, and what it has to be like."""

    path: str
    type: TensorRecord


class PlainLeaf(Record, frozen=True, tag_field="is", tag="plain"):
    """A value of the call that is no tensor."""

    path: str
    value: Plain


class Container(Record, frozen=True, tag_field="is", tag="container"):
    """A tuple, list, dict or object of the call; what it holds comes next."""

    path: str
    type: str
    names: tuple[str, ...]


CallEntry = TensorLeaf | PlainLeaf | Container


class DecisionRecord(Record, frozen=True):
    """A static decision: which kind, and its fields."""

    kind: str
    fields: dict[str, Any]


class ScalarRecord(Record, frozen=True):
    """A number that the host works out for each step: which kind, and its fields."""

    name: str
    kind: str
    fields: dict[str, Any]


class InputRecord(Record, frozen=True):
    """One input of a program."""

    name: str
    kind: str
    target: str
    type: TensorRecord


class BufferRecord(Record, frozen=True):
    """A cache buffer."""

    name: str
    type: TensorRecord


class ProgramRecord(Record, frozen=True):
    """What a compiled program takes and gives."""

    inputs: tuple[InputRecord, ...]
    outputs: tuple[TensorRecord, ...]
    results: int
    stores: tuple[str, ...]
    scores: tuple[str, ...]
    lives: tuple[str, ...]
    buffers: tuple[BufferRecord, ...]
    scalars: tuple[ScalarRecord, ...]


class Straight(Record, frozen=True, tag_field="is", tag="straight"):
    """A step that is one program."""

    program: str


class Branch(Record, frozen=True, tag_field="is", tag="branch"):
    """A step that is cut at a decision of the graph."""

    predicate: str
    head: str
    compute: Straight | Branch
    reuse: Straight | Branch


RouteRecord = Straight | Branch


class SignatureRoute(Record, frozen=True):
    """What to run under one combination of the host's decisions."""

    signature: tuple[bool, ...]
    route: RouteRecord


class HoistedRecord(Record, frozen=True):
    """A decision that the timestep determines."""

    route: RouteRecord
    forced: DecisionRecord


class ReadRecord(Record, frozen=True):
    """An argument whose value was compiled in; the value is in the weights file."""

    index: int
    key: str


class WriteRecord(Record, frozen=True):
    """What the module writes to a container that it is given; no value: it is gone."""

    keys: tuple[str | int, ...]
    value: Plain | None


class TreeRecord(Record, frozen=True):
    """What the module returns.

    Attributes:
        kind: ``tensor``, ``plain``, ``tuple``, ``list``, ``dict`` or ``output``.
        type: The tensor's type.
        value: The plain value.
        names: Keys of a dict, names of an output's fields.
        items: What a container holds.
    """

    kind: str
    type: TensorRecord | None = None
    value: Plain | None = None
    names: tuple[str, ...] = ()
    items: tuple[TreeRecord, ...] = ()


class CaptureRecord(Record, frozen=True):
    """One loop: the calls that it is good for, and what their steps run."""

    call: tuple[CallEntry, ...]
    predicates: tuple[str, ...]
    host: tuple[str, ...]
    routes: tuple[SignatureRoute, ...]
    decisions: dict[str, DecisionRecord]
    hoisted: dict[str, HoistedRecord]
    forced: dict[str, DecisionRecord]
    inclusive: dict[str, bool]
    regions: dict[str, tuple[str, ...]]
    enclosing: dict[str, tuple[tuple[str, ...], ...]]
    scale: float
    output: TreeRecord
    named: TreeRecord
    read: tuple[ReadRecord, ...]
    writes: tuple[WriteRecord, ...]
    lowering: str
    planned_bytes: int


class StoredRecord(Record, frozen=True):
    """A weight or constant: its key in the weights file, and how it lies in memory."""

    kind: str
    target: str
    key: str
    type: TensorRecord


class FileRecord(Record, frozen=True):
    """Size in bytes and SHA-256 of one file."""

    bytes: int
    sha256: str


class Target(Record, frozen=True):
    """What an engine was built for.

    Attributes:
        torch: Version of torch.
        graphcache: Version of graphcache.
        device: Type of the device.
        machine: The architecture: of the CPU, with its vector instructions; of a GPU,
            its compute capability.
    """

    torch: str
    graphcache: str
    device: str
    machine: str


class ModuleRecord(Record, frozen=True):
    """The module that was compiled.

    Attributes:
        name: Its class.
        config: Its configuration, as JSON text.
        dtype: Of its weights.
        parameters: Of its forward.
        open: Whether its forward takes further keyword arguments.
    """

    name: str
    config: str
    dtype: str
    parameters: tuple[Parameter, ...]
    open: bool


class Manifest(Record, frozen=True):
    """Everything about an engine that is not in its other files."""

    current: ClassVar[int] = FORMAT_VERSION

    format: int
    backend: str
    target: Target
    module: ModuleRecord
    policies: tuple[str, ...]
    thresholds: dict[str, Number]
    captures: tuple[CaptureRecord, ...]
    programs: dict[str, ProgramRecord]
    stored: tuple[StoredRecord, ...]
    details: dict[str, Any]
    files: dict[str, FileRecord]
