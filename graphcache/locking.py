"""Locking: one capture or compilation at a time in the whole process.

torch traces with state of the process: it patches `torch.nn.Module`, and modes and
tables of a trace have one place each. Dynamo serves one thread after the other for the
same reason. A second lock beside Dynamo's could wait for it while it is waited for, so
both doors take Dynamo's.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from importlib import import_module

_OWN = threading.RLock()


def compiling() -> AbstractContextManager[object]:
    """The lock to hold while a module is captured or a program is compiled.

    It may be taken again by the thread that holds it.
    """
    # Dynamo is imported when something is compiled, which takes it anyway.
    frames = import_module("torch._dynamo.convert_frame")
    lock: AbstractContextManager[object] = getattr(frames, "compile_lock", _OWN)
    return lock
