"""Where the rule files are: inside the wheel, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

from bcos_fx.errors import RuleError

VOCABULARY = ("ops.toml", "refused.toml")
"""Files beside the rules that say what operations there are, and hold no rules."""


def rule_files() -> list[Path]:
    """Return the shipped rule files, sorted by name."""
    return [path for path in sorted(rules_directory().glob("*.toml")) if path.name not in VOCABULARY]


def rules_directory() -> Path:
    """Return the directory of the shipped rule files.

    A wheel carries them as ``bcos_fx/_rules``; a checkout or an editable install has them in ``rules/``
    beside the package.

    Raises:
        RuleError: the installation is broken and has neither.
    """
    package = Path(__file__).resolve().parents[2]
    for candidate in (package / "_rules", package.parent / "rules"):
        if (candidate / "ops.toml").is_file():
            return candidate
    raise RuleError(
        "the shipped rule files are missing from this installation",
        where=str(package),
        hint="reinstall bcos-fx",
    )
