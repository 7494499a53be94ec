"""Trivet: the open, calibrated twin of a full-stack AI cloud."""

__version__ = "0.1.0"
