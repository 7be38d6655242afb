"""GGUF: files that llama.cpp and what is built on it read, written by llama.cpp's own converter and quantizer."""
