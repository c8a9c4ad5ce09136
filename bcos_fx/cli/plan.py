"""``bcos-fx plan``: what ``convert`` would do, with nothing written."""

from __future__ import annotations

import dataclasses

from bcos_fx.cli.console import console, echo
from bcos_fx.cli.convert import converted
from bcos_fx.cli.options import takes
from bcos_fx.cli.progress import Stages
from bcos_fx.cli.request import Request
from bcos_fx.errors import UsageError

NAME = "plan"
EPILOG = """Examples:

bcos-fx plan --arch torchvision:densenet121 --nodes

bcos-fx plan last.ckpt --arch my_net.py:build --input-shape 3,32,32 --rules my_rules.toml --json
"""


@takes(Request)
def plan_conversion(request: Request) -> None:
    """Show what convert would do with the same arguments: a dry run, nothing verified and nothing written.

    The report names every rule that applies, every rule that nearly did and why not, and every operation that no rule
    knows. It equals the report of the real run, measured figures apart.
    """
    if request.picture is not None:
        raise UsageError("plan writes nothing, no picture either", hint="draw it with convert --picture")
    with Stages() as stages:
        network, _ = converted(dataclasses.replace(request, verified=False), stages)
    if request.json:
        echo(network.report.to_json())
        return
    from bcos_fx.report.text import show

    show(network.report, console(), nodes=request.nodes)
    echo(f"Dry run: nothing was written. `bcos-fx convert` with the same arguments writes {request.output}.")
