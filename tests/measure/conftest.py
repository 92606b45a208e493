"""What the tests that need torch share."""

import pytest

pytest.importorskip("torch", reason="the extra `measure` is not installed")
pytest.importorskip("pyarrow", reason="the extra `calibration` is not installed")
