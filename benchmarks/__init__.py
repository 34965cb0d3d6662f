"""Measurements beside the pipeline, on its kernels of linear algebra: set before NumPy loads."""

import pipeline.run  # noqa: F401
