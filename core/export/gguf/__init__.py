"""GGUF files for llama.cpp and its derivatives, written by llama.cpp's own converter and quantizer."""
