"""An OpenAI-compatible server that hands out energy receipts and holds callers to budgets."""

from negawatt.serve.admission import Caller, Estimate, Gate, OpenGate, Refused, Reservation
from negawatt.serve.receipt import OUTCOMES, Outcome, Receipt

__all__ = [
    "OUTCOMES",
    "Caller",
    "Estimate",
    "Gate",
    "OpenGate",
    "Outcome",
    "Receipt",
    "Refused",
    "Reservation",
]
