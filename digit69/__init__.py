__version__ = "0.1.0"

from digit69.shortcuts import SHORTCUTS
from digit69.shortcuts import find_shortcut as __getattr__


def __dir__():
    return sorted([*globals(), *SHORTCUTS])
