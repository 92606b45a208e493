"""One thing to measure: a kind of operation and its sizes, with a name that never changes."""

from collections.abc import Mapping
from dataclasses import dataclass

Value = float | int | str


@dataclass(frozen=True, kw_only=True)
class Case:
    """A point of a suite. Its sizes are columns of the table of its kind."""

    kind: str
    sizes: tuple[tuple[str, Value], ...]
    weight: float = 1.0  # cases of the full suite that this one stands for

    @property
    def name(self) -> str:
        """What identifies the case in a record: kind and sizes, in order."""
        shown = ",".join(f"{name}={value}" for name, value in self.sizes)
        return f"{self.kind}/{shown}"

    def __getitem__(self, name: str) -> Value:
        return dict(self.sizes)[name]

    def number(self, name: str) -> int:
        """Returns a size as a whole number."""
        return int(dict(self.sizes)[name])

    def text(self, name: str) -> str:
        """Returns a word among the sizes."""
        return str(dict(self.sizes)[name])


def case(kind: str, sizes: Mapping[str, Value]) -> Case:
    """Returns the case of `kind` with `sizes`.

    >>> case("gemm", {"m": 8, "n": 64, "k": 32, "dtype": "bfloat16"}).name
    'gemm/m=8,n=64,k=32,dtype=bfloat16'
    """
    return Case(kind=kind, sizes=tuple(sizes.items()))
