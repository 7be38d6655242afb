"""Triton kernels of the fused layers; imported only where the package triton is, which comes with torch's CUDA wheels.

Values are computed in fp32 and rounded where torch's operations round them.
"""
