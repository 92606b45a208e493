"""Reasons not to measure, in plain words."""


class Unavailable(ValueError):
    """Something that the measurement needs is missing: a device, a library or a right."""


class Disturbed(RuntimeError):
    """Something else on the machine changed the result, which is therefore not reported."""
