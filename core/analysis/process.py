"""Analysis process: ``python -m core.analysis.process``; see :mod:`core.jobs.process`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from core.analysis.result import AnalysisRequest
from core.analysis.row_facts import BATCH_SECONDS
from core.analysis.row_samples import rights_for
from core.analysis.survey import ForkedProcessError, survey
from core.errors import UserError
from core.jobs.process import Answers, run_job
from core.sandbox.limits import TimeLimitError, enclose, limit_process, machine_memory

#: Memory limit in bytes. The process keeps a few dozen bytes per row.
_MEMORY = 4 << 30


def analyze(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Analyze a dataset.

    Args:
        job: ``analysis``: the :class:`~core.analysis.result.AnalysisRequest`.
        answers: Receives the progress.

    Returns:
        The :class:`~core.analysis.result.Analysis`.
    """
    limit_process(min(_MEMORY, machine_memory() // 2))
    # Parallelism comes from processes; threads of the tokenizers library would not survive a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    request = AnalysisRequest.from_dict(job["analysis"])
    try:
        # Registries, which name the files, are read in a sandbox of their own.
        enclose(rights_for(request))
        return survey(request, answers.progress).to_dict()
    except TimeLimitError:
        raise _too_slow() from None
    except ForkedProcessError as error:
        if error.status == -signal.SIGXCPU:
            raise _too_slow() from None
        raise MemoryError from error


def _too_slow() -> UserError:
    return UserError(
        f"The chat template or the tokenizer takes more than {BATCH_SECONDS} s for a few rows.",
        "Take another template (template.file), or get the model again.",
    )


if __name__ == "__main__":
    sys.exit(run_job(analyze))
