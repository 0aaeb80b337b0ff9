"""The typed recipe of a training run, and the library of recipes that come with ray-sr (library/*.yaml)."""

from ray_sr.recipes.reader import load_recipe, parse_recipe, recipe_names
from ray_sr.recipes.recipe import Recipe

__all__ = ["Recipe", "load_recipe", "parse_recipe", "recipe_names"]
