"""One script a stage, run as `python -m stages.NAME`; this file runs before any of them, and so before NumPy."""

import pipeline.run  # noqa: F401
