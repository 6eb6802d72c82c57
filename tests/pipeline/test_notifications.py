"""Who is told of a failed run, and that telling never stops anything."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dagster as dg
import pytest
from pipeline_project import FakeLauncher, NoTracking, Project

from moge_core.errors import ConfigError
from moge_pipeline.defs.notifications.notifiers import (
    FailureNotice,
    LogNotifier,
    WebhookNotifier,
    notifier_from_environment,
)
from moge_pipeline.defs.notifications.sensors import failure_sensor

NOTICE = FailureNotice("abc", "train_sample_job", ["train_sample"], "no data", "http://127.0.0.1:3000/runs/abc", {})
LOG = logging.getLogger("test")


class Receiver:
    """A web server that remembers what is posted to it and answers with the given codes, the last for ever."""

    def __init__(self) -> None:
        self.codes, self.bodies = [200], list[dict[str, Any]]()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                receiver.bodies.append(json.loads(body))
                self.send_response(receiver.codes[min(len(receiver.bodies), len(receiver.codes)) - 1])
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?token=secret"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()
    thread.join()


def failed_run(project: Project, instance: dg.DagsterInstance) -> tuple[dg.DagsterRun, dg.DagsterEvent]:
    """A training that fails for want of data, through its job."""
    project.train("sample")
    definitions = project.definitions(launcher=FakeLauncher(), mlflow=NoTracking())
    result = definitions.resolve_job_def("train_sample_job").execute_in_process(
        instance=instance, raise_on_error=False, tags={"who": "me"}
    )
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    return run, next(event for event in result.all_events if event.is_run_failure)


def tell(project: Project, notifier: Any) -> dg.DagsterRun:
    """What the sensor does about a failed run."""
    with dg.DagsterInstance.ephemeral() as instance:
        run, event = failed_run(project, instance)
        context = dg.build_run_status_sensor_context(
            "run_failures", event, instance, run, resources={"notifier": notifier}
        ).for_run_failure()
        failure_sensor()(context)
    return run


def test_a_webhook_gets_what_failed_why_and_where_to_look(project: Project, receiver: Receiver) -> None:
    run = tell(project, WebhookNotifier(receiver.url))
    (body,) = receiver.bodies
    assert (body["run_id"], body["job"], body["assets"]) == (run.run_id, "train_sample_job", ["train_sample"])
    assert body["reason"].startswith("train_sample: ") and "moge index" in body["reason"]
    assert body["url"] == f"http://127.0.0.1:3000/runs/{run.run_id}"
    assert body["tags"]["who"] == "me"
    assert body["url"] in body["text"] and "train_sample failed" in body["text"]


def test_a_server_in_trouble_is_tried_again_and_a_refusal_is_final(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = WebhookNotifier(receiver.url, pauses_s=(0.0, 0.0))
    receiver.codes = [503, 429, 200]
    notifier.notify(NOTICE, LOG)
    assert len(receiver.bodies) == 3 and "nobody" not in caplog.text

    receiver.bodies.clear()
    receiver.codes = [500]
    notifier.notify(NOTICE, LOG)
    assert len(receiver.bodies) == 3 and "nobody but this log was told" in caplog.text

    receiver.bodies.clear()
    receiver.codes = [404]
    notifier.notify(NOTICE, LOG)
    assert len(receiver.bodies) == 1 and "HTTP 404" in caplog.text
    assert "secret" not in caplog.text, "the address may hold a secret"


def test_a_server_that_is_gone_fails_no_sensor(project: Project, receiver: Receiver) -> None:
    receiver.server.server_close()
    tell(project, WebhookNotifier(receiver.url, pauses_s=(0.0,)))
    assert receiver.bodies == []


def test_a_notifier_of_ones_own_that_raises_fails_no_sensor(project: Project) -> None:
    class Angry:
        told: FailureNotice | None = None

        def notify(self, notice: FailureNotice, log: Any) -> None:
            self.told = notice
            raise RuntimeError("no")

    angry = Angry()
    run = tell(project, angry)
    assert angry.told is not None and angry.told.run_id == run.run_id


def test_a_run_whose_process_was_lost_is_told_with_the_reason_that_it_was_failed_for(project: Project) -> None:
    from moge_pipeline.defs.notifications.sensors import notice_of

    project.train("sample")
    job = project.definitions().resolve_job_def("train_sample_job")
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        event = instance.report_run_failed(run, "Its process is gone.")
        notice = notice_of(instance, run, event.message)
    assert notice.reason == "Its process is gone."


class OwnNotifier(LogNotifier):
    """What a user of the project could write."""


@pytest.mark.parametrize(
    ("env", "kind"),
    [
        ({}, LogNotifier),
        ({"MOGE_NOTIFIER": "log", "MOGE_NOTIFY_WEBHOOK": "http://a.example"}, LogNotifier),
        ({"MOGE_NOTIFY_WEBHOOK": "https://a.example/x"}, WebhookNotifier),
        ({"MOGE_NOTIFIER": f"{__name__}:OwnNotifier"}, OwnNotifier),
    ],
)
def test_the_environment_chooses_the_notifier(env: dict[str, str], kind: type) -> None:
    assert type(notifier_from_environment(env)).__name__ == kind.__name__


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"MOGE_NOTIFIER": "webhook"}, "MOGE_NOTIFY_WEBHOOK"),
        ({"MOGE_NOTIFY_WEBHOOK": "file:///etc/passwd"}, "http://"),
        ({"MOGE_NOTIFIER": "carrier_pigeon"}, "module:Class"),
        ({"MOGE_NOTIFIER": "nowhere.at.all:Thing"}, "ModuleNotFoundError"),
        ({"MOGE_NOTIFIER": "collections:OrderedDict"}, "notify(notice, log)"),
    ],
)
def test_a_notifier_that_cannot_be_made_says_why(env: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        notifier_from_environment(env)
    assert told in str(caught.value)


def test_a_wrong_choice_still_tells_the_log(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MOGE_NOTIFIER", "nowhere.at.all:Thing")
    from moge_pipeline.defs.notifications.notifiers import notifier_resource

    notifier: Any = notifier_resource(dg.build_init_resource_context())
    notifier.notify(NOTICE, LOG)
    assert "nowhere.at.all" in caplog.text and "train_sample failed: no data" in caplog.text


def test_the_failure_sensor_runs_wherever_a_daemon_does(project: Project) -> None:
    sensor = project.definitions().resolve_sensor_def("run_failures")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
