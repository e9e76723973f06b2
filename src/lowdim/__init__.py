"""lowdim: deep learning through low-dimensional representations.

One room per problem (``lowdim.compress``, ...) on one ground floor of shared
mathematics (``lowdim.algebra``). Importing the package loads nothing heavy.
"""

__version__ = "0.1.0.dev0"

from lowdim import plugin as _plugin

_plugin.register()
