"""Dagster's user interface in a real browser, used as a person uses it: by looking, clicking and typing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import chromium
import dagster as dg
import pytest
from chromium import CTRL
from shop import alive, instance_of, open_shop, succeed
from user_interface import UserInterface, open_user_interface

from moge_core.training import Workspace

pytestmark = [
    pytest.mark.services,
    pytest.mark.timeout(900),
    pytest.mark.skipif(chromium.EXECUTABLE is None, reason="needs Chromium (Debian: apt install chromium)"),
    # MLflow's store uses what SQLAlchemy has deprecated.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]

DIALOG = "[role=dialog]"
CHANGED_CONFIG = """\
ops:
  train_sample:
    config:
      num_iterations: 100000
      save_every: 1000
      log_every: 1
      terminate_grace_s: 5
"""


@pytest.fixture
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserInterface]:
    # A short path: pages show it.
    shop = open_shop(tmp_path_factory.mktemp("moge"))
    with open_user_interface(shop, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def test_a_dataset_is_followed_from_the_lineage_graph_to_its_thumbnail_and_its_checks(ui: UserInterface) -> None:
    page = ui.page
    open_lineage_graph(ui)
    stages = {"raw": "sample", "index": "sample", "quality": "sample", "training": "train_sample"}
    for group, node in stages.items():
        page.wait_until(f"({NODES_BY_GROUP})[{group!r}]?.includes({node!r})", f"node {node} in group {group}")

    page.click(".CodeMirror")
    page.type_text('key:"index/sample" or key:"quality/sample"')
    page.press("Enter")
    page.wait_until(f"Object.keys({NODES_BY_GROUP}).join() === 'index,quality'", "a graph of index and quality")
    page.click("button", re.compile("^Materialize all"))
    first_run = open_launched_run(ui)
    assert ending_of_run(ui, first_run) == "Success"
    open_lineage_graph(ui)
    page.wait_until(f"{page.find('*', re.compile('^Materialized'))}.length >= 2", "index and quality as materialized")
    ui.picture("lineage")

    ui.open("/assets/quality/sample")
    page.click("button", "Materialize")
    second_run = open_launched_run(ui)
    assert ending_of_run(ui, second_run) == "Success"
    page.wait_for("*", re.compile("^Materialized value quality sample"))
    ui.picture("quality-run")

    ui.open("/assets/quality/sample")
    page.click("tr:has(*) *", "[Show Markdown]")
    page.wait_for(DIALOG, re.compile("contact_sheet"))
    shown = page.wait_until(f"{PICTURE}?.naturalWidth > 100 && {PICTURE}.src", "the picture of sampled instances")
    ui.picture("thumbnail")
    run_id, metadata = latest_materialization(ui, "quality", "sample")
    assert run_id == second_run
    assert shown in metadata["contact_sheet"]

    evaluations = check_evaluations(ui, first_run, dg.AssetKey(["index", "sample"]))
    assert len(evaluations) >= 7 and all(evaluations.values())
    ui.open("/assets/index/sample")
    page.click("a", "Checks")
    # A name that may be cut short is in the page twice.
    entries = {name: re.compile(f"^{name}( {name})? Succeeded$") for name in evaluations}
    for entry in entries.values():
        page.wait_for("*", entry)
    page.click("*", entries["depth_decodable"])
    page.wait_for("*", re.compile("can be decoded"))
    page.wait_for("*", "Passed")
    ui.picture("checks")
    assert complaints(ui.log()) == []


def test_a_training_is_launched_with_changed_flags_watched_and_terminated(ui: UserInterface) -> None:
    page = ui.page
    # The command line and the user interface have one history.
    succeed(ui.project, "index/sample")
    ui.open("/assets/train_sample")
    page.click("button", "Hide navigation")
    page.click("button:has([aria-label=arrow_drop_down])", "")
    page.click("*", "Open launchpad")
    page.click(f"{DIALOG} .CodeMirror", re.compile("terminate_grace_s"))
    page.press("a", CTRL)
    page.type_text(CHANGED_CONFIG)
    page.wait_for(f"{DIALOG} *", "No errors")
    ui.picture("launchpad")
    page.click(f"{DIALOG} button", "Materialize")
    run_id = id_of_shown_run(ui)

    # Lines go on arriving while one looks.
    for number in (1, 2, 3):
        page.wait_until(f"{page.find('*', re.compile('^Step [0-9]+: loss'))}.length >= {number}", f"{number} steps")
    ui.picture("training-run")
    assert len(training_processes(ui)) >= 1
    assert complaints(ui.log()) == []

    page.click("button", "Terminate")
    page.click(f"{DIALOG} button", "Terminate 1 run")
    page.wait_for(f"{DIALOG} *", re.compile("^Successfully requested termination"))
    page.click(f"{DIALOG} button", "Done")
    assert ending_of_run(ui, run_id) == "Canceled"
    page.click("input[placeholder^=Filter]")
    page.type_text("Training")
    page.wait_for("*", re.compile("^Training interrupted after step [0-9]+: asked to stop"))
    ui.picture("canceled-run")

    assert training_processes(ui) == []
    with instance_of(ui.project) as instance:
        run = instance.get_run_by_id(run_id)
    assert run is not None and run.status == dg.DagsterRunStatus.CANCELED
    assert run.run_config["ops"]["train_sample"]["config"]["num_iterations"] == 100000
    workspace = Workspace(ui.project.root / "workspace" / "train_sample" / "1")
    status, checkpoint = workspace.status(), workspace.latest_checkpoint()
    assert status is not None and (status.state, status.resumable) == ("interrupted", True)
    assert checkpoint is not None and checkpoint.step == status.step > 0
    assert mlflow_statuses(ui) == ["KILLED"]

    ui.open("/runs")
    page.wait_for("tr, [role=row], div", re.compile(f"{run_id[:8]}.*train_sample.*Canceled"))
    ui.picture("runs")


# What the graph shows: names of nodes by the group that they are drawn in.
NODES_BY_GROUP = """(() => {
  const boxes = [...document.querySelectorAll('foreignObject')];
  const box = (e) => e.getBoundingClientRect();
  const middle = (r) => [(r.left + r.right) / 2, (r.top + r.bottom) / 2];
  const inside = ([x, y], r) => x > r.left && x < r.right && y > r.top && y < r.bottom;
  const name = (e) => e.firstElementChild.innerText.trim().split('\\n')[0];
  const groups = boxes.filter((e) => e.matches('.group'));
  const nodes = boxes.filter((e) => !e.matches('.group') && name(e));
  return Object.fromEntries(groups.map((group) =>
    [name(group), nodes.filter((node) => inside(middle(box(node)), box(group))).map(name)]));
})()"""
PICTURE = f"document.querySelector('{DIALOG} img[src^=\"data:image/png\"]')"


def open_lineage_graph(ui: UserInterface) -> None:
    """The graph of all assets, every group open, on a screen wide enough to show the details of nodes."""
    ui.open("/", 2000, 900)
    ui.page.click("a[href='/asset-groups']")
    ui.page.wait_for("foreignObject", re.compile("^quality"))
    # The browser remembers both: they are needed the first time only.
    if ui.page.shows("button", "Hide navigation"):
        # Without the text, which that of the navigation has.
        ui.page.click("button:has([aria-label=settings])", "")
        ui.page.click("*", re.compile("^Expand all groups"))
        ui.page.press("Escape")
        ui.page.click("button", "Hide navigation")


def open_launched_run(ui: UserInterface) -> str:
    """Follow the note that tells of a launched run; the run's id."""
    ui.page.wait_for("*", re.compile("^Launched run"))
    ui.page.click("a, button", "View")
    return id_of_shown_run(ui)


def id_of_shown_run(ui: UserInterface) -> str:
    ui.page.wait_until("location.pathname.startsWith('/runs/')", "the page of a run")
    return ui.path.removeprefix("/runs/")


def ending_of_run(ui: UserInterface, run_id: str) -> str:
    """The status that the page of a run shows when the run has ended."""
    assert ui.path == f"/runs/{run_id}"
    ended = ui.page.find("*", re.compile("^(Success|Failure|Canceled)$"))
    status: str = ui.page.wait_until(f"{ended}[0]?.innerText", "the end of the run", patience_s=180)
    # The note lies over the page and goes by itself, unless the mouse is on it.
    ui.page.hover("a", "Runs")
    ui.page.wait_until(f"{ui.page.find('*', re.compile('^Launched run'))}.length === 0", "the note to be gone")
    return status


def latest_materialization(ui: UserInterface, *key: str) -> tuple[str, dict[str, Any]]:
    with instance_of(ui.project) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(key))
    assert event is not None and event.asset_materialization is not None
    return event.run_id, {name: value.value for name, value in event.asset_materialization.metadata.items()}


def check_evaluations(ui: UserInterface, run_id: str, key: dg.AssetKey) -> dict[str, bool]:
    with instance_of(ui.project) as instance:
        records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    events = [record.event_log_entry.dagster_event for record in records]
    evaluations = [event.asset_check_evaluation_data for event in events if event is not None]
    return {evaluation.check_name: evaluation.passed for evaluation in evaluations if evaluation.asset_key == key}


def training_processes(ui: UserInterface) -> list[str]:
    return [command for command in alive(ui.mark) if "moge_pipeline.training_process" in command]


def mlflow_statuses(ui: UserInterface) -> list[str]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{ui.project.root}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


def complaints(log: str) -> list[str]:
    """Lines by which `dagster dev` tells of an error, or of something used that goes away."""
    told = re.compile(r"Traceback|\bERROR\b|[A-Z][a-z]+Warning\b")
    theirs = "Function `dev_command` is superseded"
    return [line for line in log.splitlines() if told.search(line) and theirs not in line]
