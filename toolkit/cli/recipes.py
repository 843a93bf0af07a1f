"""recipes."""

from __future__ import annotations

import click

from toolkit.cli import options


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List and show the ways to quantize."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@recipes.command("list")
@options.as_json
def list_(as_json: bool) -> None:
    """List the recipes: the shipped ones, and those in ./recipes or in the config folder."""
    from toolkit.catalog.recipe import list_recipes
    from toolkit.cli import render

    found = list_recipes()
    if as_json:
        render.print_json([recipe.table() | {"description": recipe.description} for recipe in found])
    else:
        render.table(["recipe", "what it does"], [[recipe.name, recipe.description] for recipe in found])


@recipes.command()
@click.argument("name")
@options.as_json
def show(name: str, as_json: bool) -> None:
    """Show a recipe's settings. NAME may be the path of a TOML file."""
    from toolkit.catalog import load_recipe
    from toolkit.cli import render

    recipe = load_recipe(name)
    table = recipe.table() | {"description": recipe.description}
    if as_json:
        render.print_json(table)
    else:
        render.table(["key", "value"], [[key, str(value)] for key, value in table.items()], title=name)
