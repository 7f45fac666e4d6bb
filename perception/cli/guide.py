"""`perception guide`: the documentation that ships with the package, in a terminal."""

from importlib.resources import files

import click

from perception.cli.standard_streams import show
from perception.errors import PerceptionError

_PAGES = files("perception").joinpath("guide")


def pages() -> dict[str, str]:
    """Return the Markdown of every page by its name."""
    found = (page for page in _PAGES.iterdir() if page.name.endswith(".md"))
    return {
        page.name.removesuffix(".md"): page.read_text("utf-8") for page in sorted(found, key=lambda p: p.name)
    }


@click.command()
@click.argument("page", required=False)
def guide(page: str | None) -> None:
    """Show a page of the documentation, or list the pages."""
    known = pages()
    if page is None:
        for name, text in known.items():
            show(f"{name:<14} {_summary(text)}")
        return
    if page not in known:
        raise PerceptionError(f"no page '{page}' in the guide; there are: {', '.join(known)}")
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if console.is_terminal:
        console.print(Markdown(known[page]))
    else:
        show(*known[page].splitlines())


def _summary(text: str) -> str:
    """Return the first line of a page that is neither its title nor empty."""
    return next(line for line in text.splitlines() if line and not line.startswith("#"))
