__version__ = "0.1.0"

from digit69.shortcuts import SHORTCUTS, find_shortcut


def __getattr__(name: str) -> object:
    return find_shortcut(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *SHORTCUTS])
