"""Imported by the process that workers are forked from: all that a worker imports, and the environment that it sets."""

from core.worker.libraries import import_libraries
from core.worker.process import environment

environment.prepare()
import_libraries()
