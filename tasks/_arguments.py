"""Command lines of the arms' stages."""

from __future__ import annotations

import argparse


def number(text: str) -> int | float:
    """A grid value as DVC writes it: `1` stays an int, so that it names the same arm."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def arm_arguments(description: str | None) -> argparse.Namespace:
    """Parse `--beta`, `--learning-rate` and `--seed`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--beta", type=number, required=True, help="strength of the KL constraint")
    parser.add_argument("--learning-rate", type=number, required=True, help="peak learning rate")
    parser.add_argument("--seed", type=int, required=True, help="order of the data, and draws")
    return parser.parse_args()


def arm_name(description: str | None) -> str:
    """Parse `--arm`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--arm", required=True, help="an arm's name, as in out/arms.json")
    name: str = parser.parse_args().arm
    return name
