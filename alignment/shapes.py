"""The naming convention of tensors, made executable.

A tensor's name ends in one capital letter per axis:
``B`` prompts, ``G`` completions of a prompt, ``T`` tokens, ``K`` oracles, ``X`` contexts, ``A`` actions, ``I``
iterations.
"""

from torch import Tensor


def check_shapes(**tensors: Tensor | None) -> dict[str, int]:
    """Check that tensors agree on every axis that their names share.

    Args:
        tensors: keyword arguments such as ``logps_BG=...``. ``None`` is passed over, so that optional tensors need no
            branch at the call.

    Returns:
        The size of each axis letter.

    Raises:
        ValueError: if a tensor has another number of axes than its name, or two tensors disagree on an axis.

    Example:
        >>> import torch
        >>> check_shapes(logps_BG=torch.zeros(2, 3), prefs_BGG=torch.zeros(2, 3, 3))
        {'B': 2, 'G': 3}
    """
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        letters = name.rpartition("_")[2]
        expected = [sizes.get(letter) for letter in letters]
        found = list(tensor.shape)
        if len(letters) == len(found):
            for letter, size in zip(letters, found, strict=True):
                sizes.setdefault(letter, size)
        if len(letters) != len(found) or any(sizes[k] != n for k, n in zip(letters, found, strict=True)):
            wanted = ", ".join(
                letter if size is None else f"{letter}={size}" for letter, size in zip(letters, expected, strict=True)
            )
            raise ValueError(f"{name}: expected shape [{wanted}], got {found}")
    return sizes
