"""Random groups of completions, as ragged as they come."""

import torch

from alignment.types import Completions


def random_completions(
    seed: int,
    *,
    prompts: int = 3,
    completions: int = 3,
    longest_prompt: int = 7,
    longest_completion: int = 5,
    vocabulary: int = 61,
    all_valid: bool = False,
) -> Completions:
    """Prompts of 1 to ``longest_prompt`` tokens; completions of 0 to ``longest_completion``; some left their group."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    width = longest_prompt + longest_completion
    place_T = torch.arange(width) - longest_prompt
    prompt_B1T = (place_T < 0) & (place_T >= -draw(1, longest_prompt, prompts, 1, 1))
    completion_BGT = (place_T >= 0) & (place_T < draw(0, longest_completion, prompts, completions, 1))
    prompt_ids_B1T = draw(0, vocabulary - 1, prompts, 1, width)
    ids_BGT = draw(0, vocabulary - 1, prompts, completions, width)
    return Completions(
        input_ids_BGT=torch.where(place_T < 0, prompt_ids_B1T, ids_BGT),
        attention_mask_BGT=prompt_B1T | completion_BGT,
        completion_mask_BGT=completion_BGT,
        valid_BG=(draw(0, 3, prompts, completions) > 0) | all_valid,
    )
