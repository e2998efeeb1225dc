"""What a method needs against what a recipe offers, decided before any model is loaded."""

from collections.abc import Collection

from alignment.config.schema import Recipe
from alignment.generation import engine_refusal
from alignment.methods import build_method, load_card
from alignment.methods._card import example_options
from alignment.types import Behaviour, Method, Needs, Player, Solution

_ORDER = ("offline", "iterative", "online")


def text_gap(needs: Needs) -> str | None:
    """What a method needs, first of all, that language models cannot be given yet, or ``None``.

    Example:
        >>> text_gap(Needs(feedback="wins", sampler="target", schedule="online"))
        "the sampler 'target'"
    """
    return next(iter(needs.text_gaps), None)


def card_needs(name: str) -> Needs:
    """What the method ``name`` needs; where that depends on its options, with the examples of its card."""
    needs = load_card(name).needs
    return needs if isinstance(needs, Needs) else _example_method(name).needs


def card_solution(name: str) -> Solution:
    """Which exact answer the method ``name`` reaches; where options decide, with the examples of its card."""
    solution = load_card(name).solution
    return solution if isinstance(solution, str) else _example_method(name).solution


def _example_method(name: str) -> Method:
    return build_method({"name": name, **example_options(load_card(name))})


def unmet_needs(needs: Needs, recipe: Recipe, rivals: Collection[str] = ()) -> list[str]:
    """What the rest of a recipe does not give its method, one line each.

    Args:
        needs: of the method.
        recipe: of one player.
        rivals: names of the other players.
    """
    name = recipe.method["name"]
    gap = text_gap(needs)
    if gap is not None:
        return [
            f"method '{name}' runs on exact games (`alignment game`) but not yet on language models: it needs {gap}"
        ]
    return [
        *_player_problems(name, needs, recipe, rivals),
        *_source_problems(name, needs, recipe),
        *_unread(name, needs, recipe),
        *_store_problems(name, needs, recipe),
        *_scoring_problems(name, needs, recipe),
        *_engine_problems(needs, recipe),
        *_evaluation_problems(name, recipe),
    ]


def _player_problems(name: str, needs: Needs, recipe: Recipe, rivals: Collection[str]) -> list[str]:
    """Several players are for rounds, and a method reads players that there are."""
    if rivals and not recipe.samples_in_rounds_of(needs):
        return [f"players: method '{name}' knows no rounds here; several players need schedule.kind: iterative"]
    read = [spec.name for spec in needs.anchors if isinstance(spec, Player)]
    found = ", ".join(rivals) or "none"
    return [
        f"method '{name}' reads the player '{player}', found besides its own: {found}; name it under players"
        for player in read
        if player not in rivals
    ]


def _source_problems(name: str, needs: Needs, recipe: Recipe) -> list[str]:
    """Schedule and oracle in one line, then the data."""
    samples = needs.samples_in_batches or recipe.samples_in_rounds_of(needs)
    wanted, found = [], []
    if _ORDER.index(recipe.schedule.kind) < _ORDER.index(needs.schedule):
        wanted.append(f"schedule '{needs.schedule}'")
        found.append(f"says schedule.kind = '{recipe.schedule.kind}'")
    if samples and (wanted or recipe.oracle is None):
        wanted.append("an oracle that answers on fresh samples")
    if samples and recipe.oracle is None:
        found.append("has no oracle")
    problems = [f"method '{name}' needs {' and '.join(wanted)}; the recipe {' and '.join(found)}"] if wanted else []
    if (
        samples
        and recipe.oracle is not None
        and (recipe.oracle.get("kind") == "panel") != (needs.num_oracles == "many")
    ):
        expected = (
            "a panel (oracle.kind: panel)" if needs.num_oracles == "many" else "one oracle, such as kind: mixture"
        )
        problems.append(f"method '{name}' reads {needs.num_oracles} oracle(s): expected {expected}")
    if samples and recipe.data.prompts is None:
        problems.append(
            f"method '{name}' samples its responses: it needs data.prompts; the recipe has data.preferences"
        )
    if not samples and recipe.data.preferences is None:
        problems.append(f"method '{name}' reads its responses: it needs data.preferences; the recipe has data.prompts")
    problems += _round_problems(name, needs, recipe)
    # All of the responses that are enumerated count.
    if needs.samples_in_batches and needs.compares_responses and recipe.sampling.engine != "enumerate":
        problems += _answer_problems(recipe)
    if recipe.sampling.steps_per_rollout > 1 and not needs.allows_reuse:
        problems.append(
            f"sampling.steps_per_rollout: method '{name}' takes one step on a rollout, got "
            f"{recipe.sampling.steps_per_rollout}; more need a loss that reads the log-probs of the policy that sampled"
        )
    if needs.sampler == "dataset" and recipe.schedule.kind != "offline":
        problems.append(
            f"method '{name}' learns from a fixed data set: expected schedule.kind = 'offline', "
            f"got '{recipe.schedule.kind}'"
        )
    return problems


def _round_problems(name: str, needs: Needs, recipe: Recipe) -> list[str]:
    """Rounds: only an iterative method has some; a round from a data set is the only one."""
    schedule, sampling = recipe.schedule, recipe.sampling
    if needs.schedule != "iterative":
        given = sorted({"rounds", "first", "pairs", "prompts"} & schedule.model_fields_set)
        return [
            f"method '{name}' knows no rounds and reads no 'schedule.{key}'; remove it (schedule.{key}=null)"
            for key in given
        ]
    if schedule.kind != "iterative":
        return []
    if schedule.first == "dataset":
        problems = [
            f"schedule.{key}: a round from a data set samples nothing; remove it (schedule.{key}=null)"
            for key in sorted({"pairs", "prompts"} & schedule.model_fields_set)
        ]
        if needs.fits > 1:
            problems.append(
                f"schedule.first: method '{name}' fits {needs.fits} times a round, a round from a data set once; "
                "expected 'rollout', got 'dataset'"
            )
        if schedule.rounds != 1:
            problems.append(
                f"schedule.rounds: expected 1 with schedule.first = 'dataset', got {schedule.rounds}; sample the later "
                "rounds by a recipe with schedule.first = 'rollout' that starts from this one's model"
            )
        return problems
    problems = []
    if sampling.engine == "enumerate":
        problems.append("sampling.engine: rounds sample their answers, got 'enumerate'; use 'transformers' or 'vllm'")
    problems += _answer_problems(recipe)
    is_power = sampling.num_completions & (sampling.num_completions - 1) == 0
    if schedule.pairs == "knockout" and not (sampling.num_completions >= 2 and is_power):
        problems.append(
            f"sampling.num_completions: expected a power of two for schedule.pairs = 'knockout', got "
            f"{sampling.num_completions}"
        )
    return problems


def _answer_problems(recipe: Recipe) -> list[str]:
    """One answer to a prompt is met by none: a run would ask nobody, and train nothing."""
    num_completions = recipe.sampling.num_completions
    if num_completions >= 2:
        return []
    return [f"sampling.num_completions: expected at least 2 answers to compare, got {num_completions}"]


def _store_problems(name: str, needs: Needs, recipe: Recipe) -> list[str]:
    if not recipe.anchors.store:
        return []
    if not needs.anchors:
        return [f"method '{name}' reads no frozen policy: nothing to store (anchors.store=false)"]
    if needs.samples_in_batches or needs.per_token:
        return [f"method '{name}' reads log-probs that are not known before training: anchors.store must be false"]
    return []


def _scoring_problems(name: str, needs: Needs, recipe: Recipe) -> list[str]:
    if recipe.scoring.behaviour == "auto" or any(isinstance(spec, Behaviour) for spec in needs.anchors):
        return []
    return [
        f"method '{name}' reads no log-probs of the policy that sampled: expected scoring.behaviour = auto, got "
        f"'{recipe.scoring.behaviour}'"
    ]


def _evaluation_problems(name: str, recipe: Recipe) -> list[str]:
    """A win rate needs a judge, held-out prompts, and answers that can be sampled; any evaluation needs prompts."""
    if recipe.evaluation is None:
        if recipe.data.holds_out or recipe.training.get("eval_strategy", "no") == "no":
            return []
        return [
            "training.eval_strategy: expected held-out prompts (data.evaluation or data.eval_fraction), got none; name "
            "some, or write training.eval_strategy=no"
        ]
    problems = []
    if recipe.judge is None:
        problems.append(
            f"evaluation.oracle: method '{name}' trains without an oracle: expected one that judges, got none"
        )
    if not recipe.data.holds_out:
        problems.append("evaluation: expected held-out prompts (data.evaluation or data.eval_fraction), got none")
    if recipe.evaluation.temperature == 0 and recipe.sampling.engine == "enumerate":
        problems.append("evaluation.temperature: expected a number above 0 for enumerated responses, got 0")
    return problems


def _engine_problems(needs: Needs, recipe: Recipe) -> list[str]:
    """What the engine cannot sample, or would sample from another policy than the one that is trained."""
    sampling = recipe.sampling
    if not (needs.samples_in_batches or recipe.samples_in_rounds_of(needs)):
        return []
    refusal = engine_refusal(sampling.engine, needs)
    if refusal is not None:
        return [f"sampling.engine: {refusal}"]
    if sampling.engine == "vllm" and recipe.policy.load_in_4bit:
        return [
            "sampling.engine: 'vllm' serves weights of full precision, and with policy.load_in_4bit the policy has "
            "others: its samples would be another model's; use 'transformers'"
        ]
    server = sampling.server
    if server is not None and (not server.serves_policy or recipe.schedule.rounds > 1):
        return [
            "sampling.engine: the server of 'openai' keeps its weights: expected schedule.rounds = 1 and "
            "sampling.server.serves_policy = true, your word that it serves the policy that the round starts from"
        ]
    return []


def _unread(name: str, needs: Needs, recipe: Recipe) -> list[str]:
    """Blocks that nothing would read."""
    if needs.samples_in_batches or recipe.samples_in_rounds_of(needs):
        return []
    given = {"oracle": recipe.oracle is not None, "sampling": "sampling" in recipe.model_fields_set}
    return [
        f"method '{name}' learns from the responses in its data and reads no '{block}'; remove the block ({block}=null)"
        for block, is_given in given.items()
        if is_given
    ]
