"""One file per paper. The file name is the registry: ``build_method({"name": "inpo", ...})`` loads ``inpo.py``."""

from alignment.methods._card import Options, build_method, load_card, method_names, option

__all__ = ["Options", "build_method", "load_card", "method_names", "option"]
