"""Download process that is killed in the middle of a line: ``python -m tests.core.hub.dying``."""

import os

os.write(1, b'{"done": {"ent')
os.kill(os.getpid(), 9)
