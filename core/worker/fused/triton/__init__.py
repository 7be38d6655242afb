"""Triton kernels of the fused layers; imported only where the package triton is, which comes with torch's CUDA wheels.

Values are computed in fp32 and rounded where torch's operations round them.
"""

from __future__ import annotations

from typing import Any

#: Options of every launch. A product and a sum are one operation, rounded once: Triton's default differs between
#: versions.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}
