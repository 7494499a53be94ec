"""One error family: every mistake of a user ends in one line that names the field and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable


class TrivetError(ValueError):
    """A clear refusal.

    Args:
        message: what is wrong, in one line.
        field: the field, flag or column at fault, where there is one.
        allowed: what would have been accepted.
    """

    def __init__(self, message: str, *, field: str | None = None, allowed: str | Iterable[str] | None = None):
        if allowed is not None and not isinstance(allowed, str):
            allowed = ", ".join(allowed)
        self.field = field
        self.allowed = allowed
        text = f"{field}: {message}" if field else message
        super().__init__(f"{text} (allowed: {allowed})" if allowed else text)


class UnknownName(TrivetError):
    """A chip, model, server, policy or engine that the catalogue does not hold."""


class Unsupported(TrivetError):
    """Understood, but outside what Trivet can compute; never answered with a number."""


class DoesNotFit(TrivetError):
    """A deployment or job whose memory or layout is impossible."""
