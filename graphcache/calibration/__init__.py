"""Calibration: measures on the graph what some methods need to know of a model."""

from graphcache.calibration.api import Calibration, calibrate
from graphcache.calibration.magcache import MagCacheCalibration, MagCacheRatios
from graphcache.calibration.smoothcache import (
    SmoothCacheCalibration,
    SmoothCacheErrors,
)
from graphcache.calibration.teacache import TeaCacheCalibration, TeaCacheFit
from graphcache.calibration.trajectory import Trajectory

__all__ = [
    "Calibration",
    "MagCacheCalibration",
    "MagCacheRatios",
    "SmoothCacheCalibration",
    "SmoothCacheErrors",
    "TeaCacheCalibration",
    "TeaCacheFit",
    "Trajectory",
    "calibrate",
]
