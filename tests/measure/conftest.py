"""What the tests that need torch share."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `measure` is not installed")
pytest.importorskip("pyarrow", reason="the extra `calibration` is not installed")

# Threads that wait for each other take turns with whatever else the machine does.
torch.set_num_threads(1)
