"""What training minimises: an objective maps a denoiser and a batch to one loss per sample.

It owns its time sampler and its weighting, and draws all randomness from the generator it is given, row by row, so that a
loss does not depend on how a batch was split over processes.
"""

from trueward.objectives.dsm import DSM, data_weight, squared_error
from trueward.objectives.objective import Batch, Noisy, Objective, add_noise, row_noise
from trueward.objectives.times import (
    DiscreteTimes,
    ImportanceTimes,
    LogNormalTimes,
    TimeSampler,
    UniformTimes,
    default_times,
    time_sampler,
    times_from_config,
)

__all__ = [
    "DSM",
    "Batch",
    "DiscreteTimes",
    "ImportanceTimes",
    "LogNormalTimes",
    "Noisy",
    "Objective",
    "TimeSampler",
    "UniformTimes",
    "add_noise",
    "data_weight",
    "default_times",
    "row_noise",
    "squared_error",
    "time_sampler",
    "times_from_config",
]
