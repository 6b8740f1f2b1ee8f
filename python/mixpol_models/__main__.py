"""The program `mixpol`: signals first, so that one that comes during the imports ends it in words too."""

from __future__ import annotations

from mixpol_models.stopping import in_words


def main() -> None:
    """Entry point of the `mixpol` command."""
    with in_words():
        from mixpol_models import cli

        cli.main()


if __name__ == "__main__":
    main()
