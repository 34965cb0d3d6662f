"""What people run beside the pipeline, on its kernels of linear algebra: `stages` sets them, before NumPy loads."""

import stages  # noqa: F401
