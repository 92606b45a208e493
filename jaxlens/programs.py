"""A program: the kernels that einsums fuse into, and the collectives that sharding implies.

Nobody writes a collective by hand. An axis that is contracted while it is split over ranks
leaves partial sums, which have to be reduced (the GSPMD rule: Y. Xu et al., "GSPMD", 2021,
https://arxiv.org/abs/2105.04663); rows that pick an expert on another rank have to travel
there and back.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from jaxlens import einsums
from jaxlens.einsums import MESH, Einsum, Monomial

CollectiveKind = Literal["all-reduce", "reduce-scatter", "all-gather", "all-to-all"]


@dataclass(frozen=True)
class Kernel:
    """Einsums that run as one launch; what stays inside never reaches HBM.

    Activations of one kernel that have the same axes are the same tensor: it is read
    once, and not at all if an earlier einsum of the kernel made it.
    """

    name: str
    einsums: tuple[Einsum, ...]
    weights: tuple[tuple[str, Monomial], ...]  # (number format, elements) read
    stored: tuple[tuple[str, Monomial], ...]  # the same, as far as it takes memory
    activations: tuple[Monomial, ...]  # elements read or written
    kv: tuple[Monomial, ...]
    cached: tuple[Monomial, ...]  # of `kv`, what is written and stays
    state: tuple[Monomial, ...]
    phase: str

    @property
    def role(self) -> str:
        """The class of kernel whose efficiency applies."""
        products = [e for e in self.einsums if e.multiplies]
        if any("state" in e.operands for e in products):
            return "scan"
        if any("weight" not in e.operands for e in products):
            return "attention"
        if any(_on_experts(e) for e in products):
            return "experts"
        return "gemm" if any(not e.select for e in products) else "elementwise"

    @property
    def per_phase(self) -> bool:
        """Whether decode and prefill run it apart, on sequences instead of tokens."""
        return "n" in self.einsums[0].inputs[0]


@dataclass(frozen=True)
class Collective:
    """Communication that sharding implies. `payload` counts elements of the whole tensor."""

    name: str
    kind: CollectiveKind
    mesh: str
    payload: Monomial
    overlap: bool


Program = tuple[Kernel | Collective, ...]


@cache
def program(
    operations: tuple[Einsum, ...], sequence_parallel: bool, fused: bool
) -> Program:
    """Returns kernels and collectives of `operations`, in order.

    With `sequence_parallel`, element-wise passes work on the tokens of their own rank and
    each all-reduce becomes a reduce-scatter and an all-gather (V. Korthikanti et al.,
    2022, https://arxiv.org/abs/2205.05198). Without `fused`, each einsum is a kernel of
    its own and its result goes through HBM, as in eager execution.
    """
    steps: list[Kernel | Collective] = []
    dispatched = False
    for group in _groups(operations, fused):
        if sequence_parallel:
            group = tuple(_split_tokens(einsum) for einsum in group)
        if not dispatched and _on_experts(group[0]):
            steps.append(_dispatch(group[0]))
            dispatched = True
        steps.append(_kernel(group))
        for einsum in group:
            steps.extend(_implied(einsum, sequence_parallel))
    return tuple(steps)


def _groups(operations: Iterable[Einsum], fused: bool) -> list[tuple[Einsum, ...]]:
    groups: list[list[Einsum]] = []
    for einsum in operations:
        last = groups[-1][-1] if groups else None
        if fused and last is not None and einsum.fuse and einsum.fuse == last.fuse:
            groups[-1].append(einsum)
        else:
            groups.append([einsum])
    return [tuple(group) for group in groups]


def _kernel(group: tuple[Einsum, ...]) -> Kernel:
    weights, stored, activations, kv, cached, state = [], [], [], [], [], []
    on_chip: set[frozenset[str]] = set()
    for position, einsum in enumerate(group):
        for kind, axes in zip(einsum.operands, einsum.inputs, strict=True):
            size = einsums.elements(einsum, axes)
            if kind == "weight":
                weights.append((einsum.weights, size))
                if einsum.stored:
                    stored.append((einsum.weights, size))
            elif kind == "activation" and frozenset(axes) not in on_chip:
                activations.append(einsums.elements(replace(einsum, times=()), axes))
                on_chip.add(frozenset(axes))
            elif kind == "kv":
                kv.append(size)
            elif kind == "state":
                state.append(size)
        result = einsums.elements(einsum, einsum.output)
        later = [axes for e in group[position + 1 :] for axes in e.inputs]
        inside = frozenset(einsum.output) in map(frozenset, later)
        if einsum.result == "kv":
            kv.append(result)
            cached.append(result)
        elif einsum.result == "state":
            state.append(result)
        elif not inside:
            activations.append(result)
        on_chip.add(frozenset(einsum.output))
    head, *rest = group
    return Kernel(
        name=head.fuse if rest else head.name,
        einsums=group,
        weights=tuple(weights),
        stored=tuple(stored),
        activations=tuple(activations),
        kv=tuple(kv),
        cached=tuple(cached),
        state=tuple(state),
        phase=head.phase,
    )


def _on_experts(einsum: Einsum) -> bool:
    return "ep" in dict(einsum.shard).values()


def _whole(einsum: Einsum, axes: tuple[str, ...]) -> Monomial:
    """Elements of the tensor before it is split."""
    return einsums.elements(replace(einsum, shard=(), times=()), axes)


def _dispatch(einsum: Einsum) -> Collective:
    payload = _whole(einsum, einsum.inputs[0])
    return Collective("dispatch", "all-to-all", "ep", payload, einsum.overlap)


def _implied(einsum: Einsum, sequence_parallel: bool) -> list[Collective]:
    mesh = dict(einsum.shard)
    local = {mesh[axis] for axis in einsum.output if axis in mesh}
    split = {
        MESH[mesh[axis]]
        for axis in einsum.contracted
        if axis in mesh and not (axis == einsum.select and mesh[axis] in local)
    }
    payload = _whole(einsum, einsum.output)
    name, overlap = einsum.name, einsum.overlap
    implied: list[Collective] = []
    if einsum.partial:
        split.clear()
    if "ep" in split:
        sent = _whole(einsum, einsum.inputs[0])
        implied.append(Collective("combine", "all-to-all", "ep", sent, overlap))
    if split:
        kinds: tuple[CollectiveKind, ...] = ("all-reduce",)
        if sequence_parallel:
            kinds = ("reduce-scatter", "all-gather")
        implied += [Collective(name, kind, "tp", payload, overlap) for kind in kinds]
    if any(axis in mesh for axis in einsum.gather):
        implied.append(Collective(name, "all-gather", "tp", payload, False))
    return implied


def _split_tokens(einsum: Einsum) -> Einsum:
    element_wise = einsum.inputs == (("t", "d"),) and einsum.output == ("t", "d")
    return replace(einsum, shard={"t": "tp"}) if element_wise else einsum


def kernels(steps: Program) -> list[Kernel]:
    """Returns the kernels of a program."""
    return [step for step in steps if isinstance(step, Kernel)]


def collectives(steps: Program) -> list[Collective]:
    """Returns the collectives of a program."""
    return [step for step in steps if isinstance(step, Collective)]


def op_table(steps: Program) -> list[dict[str, str]]:
    """Returns the program as text: FLOPs, bytes and payloads as products of extents."""
    table = []
    for step in steps:
        if isinstance(step, Kernel):
            row = {
                "op": step.name,
                "kind": step.role,
                "flop": " + ".join(
                    _text(einsums.flop(e), 2 if e.multiplies else 1)
                    for e in step.einsums
                ),
                "weights": " + ".join(_text(size) for _, size in step.weights),
                "kv": " + ".join(map(_text, step.kv)),
                "activations": " + ".join(map(_text, step.activations)),
            }
        else:
            row = {"op": step.name, "kind": step.kind, "payload": _text(step.payload)}
        table.append(row)
    return table


def _text(powers: Monomial, factor: int = 1) -> str:
    above = [n if p == 1 else f"{n}^{p}" for n, p in powers if p > 0]
    below = [n if p == -1 else f"{n}^{-p}" for n, p in powers if p < 0]
    lead = [str(factor)] if factor != 1 or not above else []
    return "·".join(lead + above) + ("/" + "/".join(below) if below else "")
