"""What is a secret: by the names of options and headers, and in URLs."""

from __future__ import annotations

import re

from rsd_integrations.errors import ConfigError

_SECRET = re.compile(
    r"("
    # Not "eos_token" and its like, which are text.
    r"(.*(hf|hub|huggingface|auth|access|api|bearer|private|refresh|session)[-_]?|.*-)?token"
    r"|.*(key|secret|passw(or)?d|passphrase|credentials?|authorization|auth|bearer|cookies?)"
    r"|.*api[-_]?keys"
    r"|(.*[-_])?(prox(y|ies)|headers)"  # Whose values may hold a password.
    r")[-_]*",
    re.IGNORECASE,
)

_URL = re.compile(r"\s*([a-z][a-z0-9+.-]*://[^/?#]*@|https?://[^?#]*[?#])", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether an option or header of this name is not to be shown. Names with dots are a model's layers."""
    return "." not in name and _SECRET.fullmatch(name) is not None


def may_tell(text: str) -> bool:
    """Whether it is a URL that may hold a secret: in a user, a password, a query or a fragment."""
    return _URL.match(text) is not None


def check_url(role: str, text: str, hint: str) -> None:
    """Refuse a URL that may hold a secret, without quoting it.

    Raises:
        ConfigError: it has a user, a password, a query or a fragment.
    """
    if may_tell(text):
        raise ConfigError(
            f"{role}: a URL names a user, a password, a query or a fragment, which errors would show.",
            hint=hint,
        )
