r"""Noise schedules: the forward process x_t = alpha(t) x_0 + sigma(t) eps, as immutable values.

:mod:`~trueward.schedules.forward_process` says what a schedule is and what it promises; the others are the families.
"""

from trueward.schedules.discrete import DiscreteSchedule
from trueward.schedules.flow_matching import FlowMatching
from trueward.schedules.forward_process import Schedule, Time, as_time
from trueward.schedules.names import schedule, schedule_names
from trueward.schedules.variance_exploding import EDM, VE, VarianceExploding
from trueward.schedules.variance_preserving import VariancePreserving, VPCosine, VPLinear, log_alpha_of_log_snr

__all__ = [
    "EDM",
    "VE",
    "DiscreteSchedule",
    "FlowMatching",
    "Schedule",
    "Time",
    "VPCosine",
    "VPLinear",
    "VarianceExploding",
    "VariancePreserving",
    "as_time",
    "log_alpha_of_log_snr",
    "schedule",
    "schedule_names",
]
