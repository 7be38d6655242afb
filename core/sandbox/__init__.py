"""The sandbox: processes with operating system limits that read untrusted input.

Templates, tokenizers, registries, the files of other tools and the headers of models are untrusted. They are read by a
helper process (:mod:`core.sandbox.__main__`) that is limited in memory and time and ends with the process that started
it. :func:`core.sandbox.pool.sandboxed` calls a function there.
"""
