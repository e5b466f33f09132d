"""Engines: compiled modules on disk, to be run without the model's source.

An engine is a folder: ``manifest.json``, one copy of the weights
(``weights.safetensors``) and the compiled programs in the files of its format.
"""

from graphcache.engine.exporting import export
from graphcache.engine.loading import load
from graphcache.engine.module import EngineModule

__all__ = ["EngineModule", "export", "load"]
