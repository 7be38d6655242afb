"""Decoding of quantized weights to 16 bit, tensor by tensor."""
