"""The sandbox: processes with limits of the operating system that read what comes from outside.

Templates, tokenizers, registries, the files of other tools and the headers of models are somebody else's. They are read
by a helper process (:mod:`core.sandbox.__main__`) that is bounded in memory and time and ends with the process that
started it. :func:`core.sandbox.pool.sandboxed` is how a function is called there.
"""
