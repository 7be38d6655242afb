"""An independent reader of GGUF files: llama.cpp's own library, in a separate process."""
