"""The commands, put together."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hauberk.cli import (
    account,
    assess,
    attack,
    audit,
    diagnose,
    diff,
    encrypt,
    fuzz,
    gate,
    init,
    inspect,
    inventory,
    invert,
    membership,
    methods,
    obfuscate,
    scan,
    sign,
    study,
)


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # what pydantic puts before a reason
            raise


app = typer.Typer(
    name="hauberk", cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Assess, harden, protect and watch machine-learning models. Exit codes: 0 pass, 1 findings at the gate, "
    "2 usage or plan error, 3 a check failed to run.",
    epilog="Begin with: hauberk init MODEL DATA, then: hauberk assess",
)
app.command("assess")(assess.assess)
app.command("init")(init.init)
app.command("schema")(init.schema)
app.command("list")(methods.list_methods)
app.command("explain")(methods.explain)
app.command("attack")(attack.attack)
app.command("diagnose")(diagnose.diagnose)
app.command("audit")(audit.audit)
app.command("invert")(invert.invert)
app.command("fuzz")(fuzz.fuzz)
app.command("membership")(membership.membership)
app.command("scan")(scan.scan)
app.command("convert")(scan.convert)
app.command("account")(account.account)
app.command("calibrate")(account.calibrate)
app.command("diff")(diff.diff)
app.command("gate")(gate.gate)
app.command("study")(study.study)
app.command("obfuscate")(obfuscate.obfuscate)
app.command("unlock")(obfuscate.unlock)
app.command("encrypt")(encrypt.encrypt)
app.command("decrypt")(encrypt.decrypt)
app.command("rewrap")(encrypt.rewrap)
app.command("recipient")(encrypt.recipient)
app.command("keygen")(sign.keygen)
app.command("sign")(sign.sign)
app.command("verify")(sign.verify)
app.command("bom")(inventory.bom)
app.command("inspect")(inspect.inspect)


def _version(wanted: bool) -> None:
    if wanted:
        import hauberk

        typer.echo(f"hauberk {hauberk.__version__}")
        raise typer.Exit


@app.callback()
def _hauberk(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    app()
