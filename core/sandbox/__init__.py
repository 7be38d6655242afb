"""The sandbox: processes with operating system limits that read untrusted input.

Templates, tokenizers, registries, files of other tools and headers of models are untrusted. A helper process
(:mod:`core.sandbox.__main__`) with limited memory, time and access reads them; it ends with the process that started
it. :func:`core.sandbox.pool.sandboxed` calls a function there.
"""
