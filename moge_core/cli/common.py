"""What the commands of `moge` share: errors in one line, options, progress."""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from moge_core.errors import MoGeError

if TYPE_CHECKING:
    import torch

    from moge_core.datasets.layout import Finding

EXIT_FINDINGS = 1
EXIT_ERROR = 2

_EXAMPLES_PER_RULE = 3


class Commands(click.Group):
    """A group that turns errors which a person can mend into one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `moge ... | head`: click ends quietly
        except (MoGeError, OSError, ImportError) as error:
            if ctx.find_root().meta.get("verbose"):
                traceback.print_exc()
            click.echo(f"Error: {one_line(error)}", err=True)
            ctx.exit(EXIT_ERROR)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of `640x480`."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise click.BadParameter(f"{text!r} is not a size such as 640x480")
    return int(width), int(height)


def _remember_verbose(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta["verbose"] = True


verbose = click.option(
    "-v", "--verbose", is_flag=True, expose_value=False, callback=_remember_verbose, help="Show tracebacks of errors."
)


def _check_depth_name(_ctx: click.Context, _param: click.Parameter, name: str) -> str:
    if not name.lower().endswith(".png"):
        raise click.BadParameter(
            f"{name!r} is no name of depth maps in this format, such as depth.png; `moge import` makes them of arrays."
        )
    return name


depth_option = click.option(
    "--depth",
    "depth_name",
    default="depth.png",
    show_default=True,
    callback=_check_depth_name,
    help="Name of depth files.",
)
index_option = click.option(
    "--index", "index_name", default=".index.txt", show_default=True, help="The list, for example .train.txt."
)
device_option = click.option(
    "--device",
    "device_name",
    metavar="NAME",
    help="cpu, cuda, cuda:1, ... Default: a GPU that is visible (long work waits for a free one), else the CPU.",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of the network's encoder; all that follows it is float32.",
)


def start_on(device_name: str | None, precision: str = "fp32", free_for: str | None = None) -> torch.device:
    """The device that a command's model runs on, told on stderr in one line with its precision.

    Args:
        device_name: what the user named.
        precision: to be told.
        free_for: what long work is called for which a GPU is waited for that nothing else works on, where the user
            named none; it is held until the command ends.
    """
    from moge_core.device_leases import leased_device
    from moge_core.devices import choose_device, describe_device

    if device_name is None and free_for is not None:
        tell = functools.partial(click.echo, err=True)
        device_name = click.get_current_context().with_resource(leased_device(free_for, tell))
    device = choose_device(device_name)
    click.echo(f"device {describe_device(device)}, precision {precision}", err=True)
    return device


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal."""
    from tqdm import tqdm

    with tqdm(desc=label, unit="", disable=None, leave=False) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def print_findings(findings: Sequence[Finding], of: str = "instance") -> None:
    """Findings rule by rule: how many there are, and the first few with their evidence and remedy."""
    counts = Counter((finding.severity, finding.rule) for finding in findings)
    for (severity, rule), count in sorted(counts.items()):
        click.echo(f"  {severity} {rule}: {count} {of}{'s' if count > 1 else ''}")
        shown = [finding for finding in findings if (finding.severity, finding.rule) == (severity, rule)]
        for finding in shown[:_EXAMPLES_PER_RULE]:
            click.echo(f"    {finding.instance}: {finding.evidence}. {finding.fix}".rstrip())
        if count > _EXAMPLES_PER_RULE:
            click.echo(f"    and {count - _EXAMPLES_PER_RULE} more")


def one_line(error: Exception) -> str:
    """An error as a person reads it on the command line."""
    text = str(error) if isinstance(error, MoGeError) else f"{type(error).__name__}: {error}"
    if isinstance(error, ImportError):
        text += ". Run `moge doctor` to see what is missing."
    return " ".join(text.split())
