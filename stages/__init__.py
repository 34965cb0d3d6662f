"""One script a stage, run as `python -m stages.NAME`; this file runs before any of them, and so before NumPy."""

import os
import platform

# OpenBLAS takes its kernels, and with them the last bits, from the CPU's kind, once, when NumPy loads it. These run on
# every x86 CPU with AVX2, and cost the pipeline nothing.
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
