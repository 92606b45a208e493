"""Quantities as people write them on a command line."""

from jaxlens.quantities import quantity as quantity
