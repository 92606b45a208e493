"""Einsums: what an operation multiplies, what it moves and how it is split.

`"t d, d f -> t f"` is parsed into axes once. Structure is static and hashable; sizes come
later, as floats. FLOPs and bytes are monomials in the extents of the axes, so an einsum is
summed up by small tables of integer exponents.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Array, Float

Scalar = Float[Array, ""] | float
Extents = Mapping[str, Scalar]
Kind = Literal["activation", "weight", "kv", "state", "reused"]
KINDS: tuple[Kind, ...] = ("activation", "weight", "kv", "state", "reused")

# Mesh axes that are parts of another one: heads are split over KV heads first and over the
# queries of a group next; an expert over the ranks that expert parallelism leaves.
MESH = {"tp": "tp", "kv": "tp", "group": "tp", "etp": "tp", "ep": "ep"}
PHASES = ("", "decode", "prefill")
# Axes whose extents belong to a layout or a step; all others are sizes of a model.
STEP_AXES = ("t", "o", "n", "q", "s", "k", "x", "u", "seen", "per_chunk")
VARYING = frozenset((*MESH, *STEP_AXES))

# A product of powers of extents: (("d", 1), ("f", 1), ("tp", -1)).
Monomial = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Einsum:
    """One operation in einsum notation, with labels for everything the text cannot say.

    Attributes:
        equation: operands and result, axes apart by spaces: `"t d, d f -> t f"`.
        name: what a breakdown calls it.
        operands: kind of each operand. By default the first is an activation and the
            others are weights. A `kv` operand is the KV cache, `state` the recurrent
            state; a `reused` one is on the chip already and costs no traffic.
        result: kind of the result.
        weights: which of the model's number formats the weight operands use.
        times: extents that repeat the operation, such as the two matrices of a gated
            feed-forward layer.
        shard: mesh axis over which an axis is split. An axis that is contracted while it
            is split leaves partial sums, hence a collective; so does one that is
            `gathered`.
        gather: split axes that the consumer of the result needs whole.
        select: axis from which each row picks one entry (an expert, a word): it counts
            for the weights that are read and not for the FLOPs.
        density: extent that scales the FLOPs only, such as the visible part of a mask.
        repeat: stack coefficient that says how many passes (launches) this one takes
            where it is not fused.
        rate: stack coefficient in seconds per element that is visited, for operations
            that are neither a matrix product nor a plain pass over memory.
        fuse: operations that share this label run as one kernel, next to each other.
        phase: `decode` or `prefill` if the operation exists in one of them only.
        partial: True if partial sums are left to a later operation that adds them up.
        stored: False if its weights are counted in another operation already.
        overlap: whether the collective that it implies may run beside it.
    """

    equation: str
    name: str = ""
    operands: tuple[Kind, ...] = ()
    result: Kind = "activation"
    weights: str = "feed_forward"
    times: tuple[str, ...] = ()
    shard: tuple[tuple[str, str], ...] | Mapping[str, str] = ()
    gather: tuple[str, ...] = ()
    select: str = ""
    density: str = ""
    repeat: str = ""
    rate: str = ""
    fuse: str = ""
    phase: str = ""
    partial: bool = False
    stored: bool = True
    overlap: bool = True

    def __post_init__(self) -> None:
        inputs, output = parse(self.equation)
        object.__setattr__(self, "shard", tuple(sorted(dict(self.shard).items())))
        for name in ("operands", "times", "gather"):  # lists do, but are not hashable
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.operands:
            kinds = ("activation",) + ("weight",) * (len(inputs) - 1)
            object.__setattr__(self, "operands", kinds)
        self._check(inputs, output)

    def _check(
        self, inputs: tuple[tuple[str, ...], ...], output: tuple[str, ...]
    ) -> None:
        where = f"einsum {self.name or self.equation!r}"
        if len(self.operands) != len(inputs):
            raise ValueError(
                f"{where}: expected {len(inputs)} operand kinds, got {self.operands}."
            )
        for kind in (*self.operands, self.result):
            if kind not in KINDS:
                raise ValueError(f"{where}: expected a kind in {KINDS}, got {kind!r}.")
        axes = set(output).union(*inputs)
        for axis in (*dict(self.shard), *self.gather, *filter(None, [self.select])):
            if axis not in axes:
                raise ValueError(
                    f"{where}: expected an axis of {sorted(axes)}, got {axis!r}."
                )
        for mesh in dict(self.shard).values():
            if mesh not in MESH:
                raise ValueError(
                    f"{where}: expected a mesh axis of {sorted(MESH)}, got {mesh!r}."
                )
        if self.phase not in PHASES:
            raise ValueError(
                f"{where}: expected a phase of {PHASES}, got {self.phase!r}."
            )

    @property
    def inputs(self) -> tuple[tuple[str, ...], ...]:
        """Axes of each operand."""
        return parse(self.equation)[0]

    @property
    def output(self) -> tuple[str, ...]:
        """Axes of the result."""
        return parse(self.equation)[1]

    @property
    def contracted(self) -> tuple[str, ...]:
        """Axes that are summed over: in an operand, not in the result, not selected."""
        seen = dict.fromkeys(axis for operand in self.inputs for axis in operand)
        return tuple(axis for axis in seen if axis not in self.output)

    @property
    def multiplies(self) -> bool:
        """Whether it is a product of two tensors (matrix unit) or passes over one."""
        return len(self.inputs) > 1


def parse(equation: str) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Returns the axes of the operands and of the result of `"a b, b c -> a c"`.

    Raises:
        ValueError: with a caret under the first character that is wrong.
    """
    for position, character in enumerate(equation):
        if not (character.isalnum() or character in "_ ,->"):
            raise _parse_error(equation, position, "a letter, digit, ',' or '->'")
    arrow = equation.find("->")
    if arrow < 0:
        strays = [at for at, mark in enumerate(equation) if mark in "->"]
        stray = strays[0] if strays else len(equation)
        raise _parse_error(equation, stray, "'->' before the result")
    tail = equation[arrow + 2 :]
    for mark in ("-", ">", ","):
        for text, start in ((equation[:arrow], 0), (tail, arrow + 2)):
            if mark in text and not (mark == "," and start == 0):
                at = start + text.index(mark)
                raise _parse_error(equation, at, "one '->' and axes")
    inputs, position = [], 0
    for text in equation[:arrow].split(","):
        if not text.split():
            raise _parse_error(equation, position + len(text), "an axis")
        inputs.append(tuple(text.split()))
        _reject_repeats(equation, position, text)
        position += len(text) + 1
    _reject_repeats(equation, arrow + 2, tail)
    output = tuple(tail.split())
    known = {axis for operand in inputs for axis in operand}
    for axis in output:
        if axis not in known:
            at = arrow + 2 + _find_word(tail, axis)
            raise _parse_error(equation, at, f"an axis of the operands, got {axis!r}")
    return tuple(inputs), output


def _find_word(text: str, word: str, start: int = 0) -> int:
    padded = " " + text.replace(",", " ") + " "
    return padded.index(f" {word} ", start)


def _reject_repeats(equation: str, offset: int, text: str) -> None:
    words = text.split()
    for axis in words:
        if words.count(axis) > 1:
            again = _find_word(text, axis, _find_word(text, axis) + 1)
            raise _parse_error(equation, offset + again, f"{axis!r} once per tensor")


def _parse_error(equation: str, position: int, expected: str) -> ValueError:
    return ValueError(
        f"einsum: expected {expected} at character {position + 1}:\n"
        f"  {equation}\n  {' ' * position}^"
    )


def monomial(powers: Iterable[tuple[str, int]]) -> Monomial:
    """Returns the product of powers with each extent once, without those that cancel."""
    total: dict[str, int] = {}
    for name, power in powers:
        total[name] = total.get(name, 0) + power
    return tuple(sorted((name, power) for name, power in total.items() if power))


def evaluate(powers: Monomial, extents: Extents) -> Scalar:
    """Returns the product of `extents` to their powers.

    Sizes of the model come first, in a product of their own, and what a step carries comes
    with the layout in another: each of them is shared by many monomials, and sizes are one
    number for all configurations of a sweep. A start of 1.0 keeps products in floating
    point: integer extents would overflow.
    """
    sizes: Scalar = 1.0
    varying: Scalar = 1.0
    for name, power in powers:
        value = extents[name]
        value = float(value) if isinstance(value, int) else value
        factor = value if power > 0 else 1.0 / value
        for _ in range(abs(power)):
            if name in VARYING:
                varying = varying * factor
            else:
                sizes = sizes * factor
    return sizes * varying


def _split(einsum: Einsum, axes: Iterable[str]) -> list[tuple[str, int]]:
    """Axes, and the mesh axes that divide them."""
    mesh = dict(einsum.shard)
    powers = [(axis, 1) for axis in axes]
    return powers + [(mesh[axis], -1) for axis, _ in powers if axis in mesh]


def flop(einsum: Einsum) -> Monomial:
    """Returns multiply-add pairs (or visits, for one operand) per rank: FLOPs are twice.

    One multiply and one add for each point of the iteration space on this rank.
    """
    axes = dict.fromkeys(
        a for operand in (*einsum.inputs, einsum.output) for a in operand
    )
    points = [axis for axis in axes if axis != einsum.select]
    extra = [(name, 1) for name in einsum.times]
    if einsum.density:
        extra.append((einsum.density, 1))
    return monomial(_split(einsum, points) + extra)


def elements(einsum: Einsum, axes: tuple[str, ...]) -> Monomial:
    """Returns the elements of one operand or result per rank, all repeats together."""
    return monomial(_split(einsum, axes) + [(name, 1) for name in einsum.times])


def rows(einsum: Einsum) -> Monomial:
    """Returns m of the matrix product: result axes that only the first operand has.

    Rows that pick one of several weights (`select`) are spread over what is picked.
    """
    first, others = einsum.inputs[0], _others(einsum)
    own = [axis for axis in einsum.output if axis in first and axis not in others]
    picked = [(name, -power) for name, power in _split(einsum, [einsum.select])]
    return monomial(_split(einsum, own) + (picked if einsum.select else []))


def columns(einsum: Einsum) -> Monomial:
    """Returns n of the matrix product: result axes that only later operands have.

    Repeats are merged into one wide product, as engines do for gate and up.
    """
    first, others = einsum.inputs[0], _others(einsum)
    own = [axis for axis in einsum.output if axis in others and axis not in first]
    return monomial(_split(einsum, own) + [(name, 1) for name in einsum.times])


def depth(einsum: Einsum) -> Monomial:
    """Returns k of the matrix product: contracted axes that both operands have."""
    first, others = einsum.inputs[0], _others(einsum)
    own = [a for a in einsum.contracted if a in first and a in others]
    return monomial(_split(einsum, own))


def _others(einsum: Einsum) -> set[str]:
    return {axis for operand in einsum.inputs[1:] for axis in operand}
