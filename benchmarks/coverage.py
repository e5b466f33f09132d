"""Which transformers of diffusers can be compiled, and which methods apply to each.

    python -m benchmarks.coverage                 # every class; writes docs/models.md
    python -m benchmarks.coverage --only Flux     # those whose names hold "Flux"

    python -m benchmarks.coverage --axes          # sizes alone; keeps the other columns

Every class of the catalogue is built tiny with random weights, called once eager, and
compiled with a policy that never reuses: the outputs must be equal bit for bit. So must
those of a second size, batch and text length, as far as the class takes one. Then
each method's policies are planned and lowered on its graph. diffusers' first-block
hooks are put on the same module, to see how many classes they serve.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_first_block_cache
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import graphcache
from benchmarks.catalogue import entries
from benchmarks.catalogue.entry import Entry, build
from benchmarks.machine import describe_machine, summary
from benchmarks.variants import AXES, variants
from graphcache.analysis.view import Analysis
from graphcache.capture import capture
from graphcache.errors import GraphCacheError, PolicyError
from graphcache.lowering import lower
from graphcache.passes.manager import run_passes
from graphcache.passes.pipeline import clean_pipeline, rewrite_pipeline
from graphcache.policy import configuration
from graphcache.program import Program
from graphcache.rewriting import policies_of
from graphcache.signature import CallSignature

ROOT = Path(__file__).resolve().parents[1]
EQUAL = "equal"
TABLE, RESULTS = ROOT / "docs" / "models.md", ROOT / "benchmarks" / "results"
SAVED = RESULTS / "coverage_cpu.json"

METHODS: dict[str, Callable[[], object]] = {
    "PAB": lambda: graphcache.pyramid_attention_broadcast(spatial=2),
    "FasterCache": graphcache.fastercache,
    "FBC": lambda: graphcache.first_block_cache(0.1),
    "DBCache": lambda: graphcache.dbcache(1, 0),
    "TeaCache": lambda: graphcache.teacache(0.1),
    "MagCache": lambda: graphcache.magcache([1.0] * 28),
    "TaylorSeer": graphcache.taylorseer,
    "lite": lambda: graphcache.taylorseer(lite=True),
    "FORA": lambda: graphcache.fora(2),
    "T-GATE": graphcache.tgate,
}


@dataclass
class Row:
    """What was found of one class.

    Attributes:
        name: The class.
        captured: Whether its graph was captured.
        equal: Whether a policy that never reuses gives the module's own bits.
        regions: Regions by kind.
        blocks: Blocks in the chain.
        methods: Names of the methods that apply.
        axes: By axis, ``"equal"``, or why no second extent is equal.
        hooks: Whether diffusers' first-block hooks can be put on it and run.
        seconds: Capture and analysis.
        reason: Why not, where something failed.
    """

    name: str
    captured: bool = False
    equal: bool = False
    regions: dict[str, int] = field(default_factory=dict)
    blocks: int = 0
    methods: list[str] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    hooks: bool = False
    seconds: float = 0.0
    reason: str = ""


def examine(entry: Entry) -> Row:
    """Everything that is asked of one class."""
    row = Row(entry.name)
    inputs = entry.inputs(torch.Generator().manual_seed(1))
    try:
        program = _capture(row, build(entry), inputs)
        row.methods = [name for name in METHODS if _applies(name, program)]
        row.equal = _is_equal(entry, inputs)
        row.axes = examine_axes(entry)
    except GraphCacheError as error:
        row.reason = str(error).splitlines()[0]
    row.hooks = _hooks_run(entry, inputs)
    return row


def _capture(row: Row, module: nn.Module, inputs: dict[str, Any]) -> Program:
    started = time.perf_counter()
    call = CallSignature(module.forward).bind((), inputs)
    source = capture(module, call).program
    row.captured = True
    analysis = Analysis(run_passes(source, clean_pipeline()))
    row.seconds = time.perf_counter() - started
    counts = Counter(region.flow or region.kind for region in analysis.regions)
    row.regions = dict(sorted(counts.items()))
    row.blocks = len(analysis.chain)
    return source


def _applies(name: str, source: Program) -> bool:
    """Whether a method can be planned and lowered on a graph."""
    wanted = configuration(METHODS[name]())
    try:
        program = run_passes(source, rewrite_pipeline(wanted.policies))
    except PolicyError:
        return False
    lower(program, policies_of(program, wanted))
    return True


def _outputs(module: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    has_context = hasattr(module, "cache_context")
    with torch.no_grad(), module.cache_context("c") if has_context else nullcontext():
        output = module(**inputs)
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _is_equal(entry: Entry, inputs: dict[str, Any]) -> bool:
    subject = graphcache.compile(
        build(entry), graphcache.never_reuse(), backend="eager"
    )
    pairs = zip(_outputs(build(entry), inputs), _outputs(subject, inputs), strict=True)
    return all(torch.equal(want, got) for want, got in pairs)


def examine_axes(entry: Entry) -> dict[str, str]:
    """What becomes of a second size, batch and text length on one compiled module."""
    inputs = entry.inputs(torch.Generator().manual_seed(1))
    reference = build(entry)
    never = graphcache.never_reuse()
    subject = graphcache.compile(build(entry), never, backend="eager")
    _outputs(subject, inputs)
    found = {}
    for variant in variants(build(entry), inputs):
        if variant.inputs is None:
            found[variant.axis] = f"refused by the module: {variant.reason}"
            continue
        try:
            got = _outputs(subject, variant.inputs)
            want = _outputs(reference, variant.inputs)
            same = all(map(torch.equal, want, got))
            found[variant.axis] = EQUAL if same else "the outputs differ"
        except Exception as error:
            # One call that breaks the compiler must not hide the others.
            found[variant.axis] = f"{type(error).__name__}: {error}".splitlines()[0]
    # The first call is good for what it was.
    pairs = zip(_outputs(reference, inputs), _outputs(subject, inputs), strict=True)
    if not all(torch.equal(want, got) for want, got in pairs):
        found = dict.fromkeys(found, "the first call's outputs differ afterwards")
    return found


def _hooks_run(entry: Entry, inputs: dict[str, Any]) -> bool:
    """Whether two steps of diffusers' first-block hooks run; any failure is a no."""
    module = build(entry)
    if not hasattr(module, "cache_context"):
        return False
    try:
        apply_first_block_cache(module, FirstBlockCacheConfig(threshold=1e9))
        for _ in range(2):
            _outputs(module, inputs)
    except Exception:  # What hooks raise on a model that they do not know is their own.
        return False
    return True


def examine_all(chosen: Sequence[Entry]) -> Iterator[Row]:
    """The rows, with a line on each."""
    for entry in chosen:
        try:
            row = examine(entry)
        except Exception:
            # One class that breaks the compiler must not hide the others.
            row = Row(entry.name, reason=traceback.format_exc().splitlines()[-1])
        mark = "equal" if row.equal else row.reason or "not equal"
        print(f"{row.name:40s} {row.seconds:5.1f} s  {mark[:110]}", flush=True)
        yield row


def examine_again(chosen: Sequence[Entry]) -> Iterator[Row]:
    """The rows of the last run with their axes examined anew."""
    known = {row["name"]: Row(**row) for row in json.loads(SAVED.read_text())["rows"]}
    for entry in chosen:
        row = known[entry.name]
        row.axes = examine_axes(entry)
        print(f"{row.name:40s} {row.axes}", flush=True)
        yield row


def format_table(rows: Sequence[Row], machine: dict[str, Any]) -> str:
    """The page."""
    equal = [row for row in rows if row.equal]
    hooks = [row for row in rows if row.hooks]
    lines = [
        "# Models",
        "",
        f"Of the {len(rows)} transformer classes of diffusers "
        f"{machine['packages']['diffusers']}, {len(equal)} are captured and give the "
        "module's own bits under a policy that never reuses. diffusers' first-block "
        f"hooks run on {len(hooks)} of them.",
        "",
        "`python -m benchmarks.coverage` builds every class tiny with random weights, "
        "calls it as its pipeline does, compiles it, and plans and lowers every method "
        "on its graph. Regions are found by dataflow; no class is known by name.",
        "",
        _axes_said(rows),
        "",
        "| class | attention | feed-forward | blocks | methods that apply | also equal "
        "| hooks | s |",
        "|---|---:|---:|---:|---|---|---|---:|",
    ]
    for row in rows:
        if row.equal:
            lines.append(_table_row(row))
    lines += ["", "`s`: seconds to capture and analyse the tiny model.", ""]
    lines += _axes_lines(rows)
    failed = [row for row in rows if not row.equal]
    if failed:
        lines += ["## Not compiled", "", "| class | reason |", "|---|---|"]
        lines += [f"| {row.name} | {_reason(row)} |" for row in failed]
        lines.append("")
    lines.append(f"Measured on {summary(machine)}.")
    return "\n".join(lines) + "\n"


def _axes_said(rows: Sequence[Row]) -> str:
    counts = [sum(row.axes.get(axis) == EQUAL for row in rows) for axis in AXES]
    tried = sum(bool(row.axes) for row in rows)
    return (
        "`also equal`: a second size, batch or text length on the same compiled module "
        f"gives the module's own bits too. Of the {tried} classes on which that was "
        f"tried, {counts[0]} for the size, {counts[1]} for the batch and {counts[2]} "
        "for the text. The second call is half "
        "of the first along that axis (a batch of one is doubled), where the eager "
        "module accepts it; the reasons of the others are below."
    )


def _axes_lines(rows: Sequence[Row]) -> list[str]:
    """A line for everything that has no second extent."""
    lines = ["## One size, batch or text length only", "", "| class | axis | why |"]
    lines.append("|---|---|---|")
    for row in rows:
        for axis, said in row.axes.items():
            if said != EQUAL:
                lines.append(f"| {row.name} | {axis} | {_shown(said)} |")
    return [*lines, ""]


def _table_row(row: Row) -> str:
    flows = ("self", "joint", "cross")
    attention = ", ".join(f"{row.regions[f]} {f}" for f in flows if f in row.regions)
    feed_forward = row.regions.get("feed-forward", 0)
    methods = (
        "all"
        if len(row.methods) == len(METHODS)
        else "all but " + ", ".join(name for name in METHODS if name not in row.methods)
        if len(row.methods) > len(METHODS) // 2
        else ", ".join(row.methods) or "none"
    )
    hooks = "yes" if row.hooks else "no"
    axes = ", ".join(axis for axis in AXES if row.axes.get(axis) == EQUAL)
    return (
        f"| {row.name} | {attention} | {feed_forward} | {row.blocks} | {methods} "
        f"| {axes} | {hooks} | {row.seconds:.1f} |"
    )


def _reason(row: Row) -> str:
    return _shown(row.reason or "the outputs differ")


def _shown(reason: str) -> str:
    """Without the place of the installation."""
    return re.sub(r"\(/\S*site-packages/", "(", reason).replace("|", "\\|")


def main() -> None:
    """Examine the classes and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the class names")
    parser.add_argument("--axes", action="store_true", help="examine the axes alone")
    options = parser.parse_args()
    chosen = [entry for entry in entries() if options.only in entry.name]
    rows = list((examine_again if options.axes else examine_all)(chosen))
    equal = sum(row.equal for row in rows)
    print(f"{equal} of {len(rows)} equal; hooks run on {sum(r.hooks for r in rows)}")
    if options.only:
        return
    machine = describe_machine(torch.device("cpu"))
    TABLE.write_text(format_table(rows, machine), encoding="utf-8")
    data = {"machine": machine, "rows": [asdict(row) for row in rows]}
    text = json.dumps(data, indent=1)
    SAVED.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
