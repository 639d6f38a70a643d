"""Recipes. All that is run as ``python -m examples...`` comes by here before torch is imported."""

from prefopt.environment import prepare

prepare()
