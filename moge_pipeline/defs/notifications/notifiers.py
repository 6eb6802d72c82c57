"""Ways to tell of a failed run: into the log, to a web address, or by a class of one's own."""

from __future__ import annotations

import importlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from logging import Logger
from typing import Any, Protocol
from urllib.parse import urlsplit

import dagster as dg

from moge_core.errors import ConfigError

NOTIFIER_VARIABLE, WEBHOOK_VARIABLE = "MOGE_NOTIFIER", "MOGE_NOTIFY_WEBHOOK"
WEBHOOK_TIMEOUT_S = 5.0
WEBHOOK_PAUSES_S = (1.0, 3.0)
"""Seconds between the attempts to reach a web address; there is one attempt more than pauses."""

_TOO_MANY_REQUESTS, _SERVER_ERRORS = 429, 500


@dataclass(frozen=True)
class FailureNotice:
    """What is told of a failed run.

    Attributes:
        run_id: of the Dagster run.
        job: its job; `__ASSET_JOB` when assets were materialized without one.
        assets: keys of the assets that it was to make, as people write them.
        reason: what its failed steps said, one a line, or why the run itself was failed.
        url: the run's page in the user interface.
        tags: of the run.
    """

    run_id: str
    job: str
    assets: list[str]
    reason: str
    url: str
    tags: Mapping[str, str]

    def __str__(self) -> str:
        """One line and the reason."""
        about = ", ".join(self.assets) or self.job
        return f"{about} failed: {self.reason} ({self.url})"


class Notifier(Protocol):
    """Tells somebody of a failed run. What it raises is logged and stops nothing."""

    def notify(self, notice: FailureNotice, log: Logger) -> None:
        """Tell of one failed run. `log` writes into the sensor's own log."""
        ...


class LogNotifier:
    """Writes the notice into the log of the sensor and of the daemon."""

    def notify(self, notice: FailureNotice, log: Logger) -> None:
        """See `Notifier.notify`."""
        log.error(str(notice))


class WebhookNotifier:
    """POSTs the notice to a web address as JSON: its fields, and `text`, which chat services show.

    Args:
        url: the address, http or https. It may hold a secret, so only its host is ever logged.
        pauses_s: seconds before each further attempt, made when the server does not answer, is overloaded (429) or
            in trouble (5xx). Any other refusal is final.

    Raises:
        ConfigError: the address is not one of the web.
    """

    def __init__(self, url: str, pauses_s: tuple[float, ...] = WEBHOOK_PAUSES_S) -> None:
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError(WEBHOOK_VARIABLE, "must be an address that begins with http:// or https://")
        self.url, self.host, self.pauses_s = url, address.hostname, pauses_s

    def notify(self, notice: FailureNotice, log: Logger) -> None:
        """See `Notifier.notify`."""
        body = json.dumps({**asdict(notice), "text": str(notice)}).encode()
        for pause_s in (*self.pauses_s, None):
            problem, may_pass = self._post(body)
            if problem is None:
                log.info(f"Told {self.host} of the failure of run {notice.run_id}.")
                return
            log.warning(f"{self.host} did not take the notice of run {notice.run_id}: {problem}")
            if pause_s is None or not may_pass:
                break
            time.sleep(pause_s)
        log.error(f"{notice}; nobody but this log was told.")

    def _post(self, body: bytes) -> tuple[str | None, bool]:
        """What went wrong, if anything, and whether another attempt may help."""
        request = urllib.request.Request(  # noqa: S310  # the scheme was checked
            self.url, body, {"Content-Type": "application/json", "User-Agent": "moge-pipeline"}
        )
        try:
            with urllib.request.urlopen(request, timeout=WEBHOOK_TIMEOUT_S):  # noqa: S310
                return None, False
        except urllib.error.HTTPError as error:
            return f"HTTP {error.code}", error.code == _TOO_MANY_REQUESTS or error.code >= _SERVER_ERRORS
        except OSError as error:  # no connection, no answer in time, a certificate that does not hold
            return str(error), True


def notifier_from_environment(env: Mapping[str, str] | None = None) -> Notifier:
    """The notifier that `MOGE_NOTIFIER` asks for: `log`, `webhook`, or `module:Class` made without arguments.

    Left out it is `webhook` where `MOGE_NOTIFY_WEBHOOK` holds an address, else `log`.

    Raises:
        ConfigError: none of these, no address for `webhook`, or a class that cannot be made.
    """
    env = os.environ if env is None else env
    url = env.get(WEBHOOK_VARIABLE, "").strip()
    wanted = env.get(NOTIFIER_VARIABLE, "").strip() or ("webhook" if url else "log")
    if wanted == "log":
        return LogNotifier()
    if wanted == "webhook":
        return WebhookNotifier(url)
    return _own(wanted)


def _own(path: str) -> Notifier:
    module, _, name = path.partition(":")
    try:
        notifier: Any = getattr(importlib.import_module(module), name)()
    except Exception as error:  # importing and making it runs code of the user's own
        raise ConfigError(
            f"{NOTIFIER_VARIABLE}={path}",
            "must be `log`, `webhook` or the path `module:Class` of a class that can be made without arguments",
            found=f"{type(error).__name__}: {error}",
        ) from error
    if not callable(getattr(notifier, "notify", None)):
        raise ConfigError(
            f"{NOTIFIER_VARIABLE}={path}", "must have a method notify(notice, log)", found=type(notifier).__name__
        )
    made: Notifier = notifier
    return made


@dg.resource(description="Tells of failed runs: MOGE_NOTIFIER is `log`, `webhook` or `module:Class`.")
def notifier_resource(_context: dg.InitResourceContext) -> Notifier:
    """The resource `notifier`. A choice that cannot be used falls back to the log, which then says why, too."""
    try:
        return notifier_from_environment()
    except ConfigError as error:
        return _FallbackNotifier(error)


class _FallbackNotifier(LogNotifier):
    """The log, where the choice that was made cannot be used."""

    def __init__(self, error: ConfigError) -> None:
        self.error = error

    def notify(self, notice: FailureNotice, log: Logger) -> None:
        """See `Notifier.notify`."""
        log.error(f"The notifier cannot be used, so only this log is told. {self.error}")
        super().notify(notice, log)
