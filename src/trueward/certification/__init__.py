"""Certificates for samplers: measured on closed-form truth, with a verdict.

`certify(sampler)` examines any sampler (one of trueward's by instance, class or name, a foreign one through an adapter, or a
function of your own): order of convergence to the exact solution, network evaluations, NaN over the option space,
independence of batch, earlier calls and threads, seeds. An adapter for another library is a subclass of `Subject`.
"""

from trueward.certification.certificate import Cell, Certificate, Distance, Finding
from trueward.certification.examine import SCHEDULES, certify
from trueward.certification.subject import FunctionSubject, Outcome, SamplerSubject, Setting, Subject, subject

__all__ = [
    "SCHEDULES",
    "Cell",
    "Certificate",
    "Distance",
    "Finding",
    "FunctionSubject",
    "Outcome",
    "SamplerSubject",
    "Setting",
    "Subject",
    "certify",
    "subject",
]
