"""Former spellings of options: they work for one release, with a note on stderr, and no help shows them."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from bcos_fx.cli.console import echo

FORMER: dict[str, dict[str, list[str]]] = {
    "calibrate": {"--images": ["--data"]},
    "finetune": {"--reference": ["--original"], "--new-head": ["--head", "new"]},
}
"""Command -> former option -> what is written now."""


class Command(TyperCommand):
    """A command that takes the former spellings of its options too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command's words, each former option as what it is now."""
        former = FORMER.get(self.name or "", {})
        current: list[str] = []
        for place, word in enumerate(args):
            if word == "--":
                current += args[place:]
                break
            option, joined, value = word.partition("=")
            if option not in former:
                current.append(word)
                continue
            now = former[option]
            echo(f"note: {option} is now {' '.join(now)}", err=True)
            current += [f"{now[0]}={value}"] if joined else now
        return super().parse_args(ctx, current)
