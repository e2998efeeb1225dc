"""An iterative run: rounds of rollout, judge and train, each a finished artefact before the next begins.

``round-N/answers.jsonl``, ``round-N/preferences.jsonl`` and ``round-N/model`` each have a manifest. Running the recipe
again skips what is finished, resumes the training that was interrupted, and refuses what another recipe made. Several
players have a folder each, with rounds of its own.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase, set_seed

from alignment.config import AlignmentArguments, Recipe, build_arguments
from alignment.data import EncodedRow, Row, encode_rows
from alignment.errors import UserError
from alignment.folders import RunResult, check_same_recipe, write_header, write_summary
from alignment.generation import build_engine, check_engine
from alignment.launch import check_launch
from alignment.models import load_tokenizer
from alignment.optimizer_options import check_optimizer
from alignment.oracles import Accounts, build_oracle
from alignment.players import Player
from alignment.preparation import PreparedData, prepare_data, write_report
from alignment.progress import Announce, run_console

Stage = Literal["rollout", "judge", "annotate", "train"]
# Training annotates by itself.
_STAGES: tuple[Stage, ...] = ("rollout", "judge", "train")


def run(recipe: Recipe, accounts: Accounts) -> RunResult:
    """Train by an iterative recipe, one round after the other.

    Args:
        recipe: what is trained.
        accounts: where the oracles' verdicts and costs are kept.

    Returns:
        The last round's model, with its win rate against the reference where prompts are held out.

    Raises:
        UserError: for anything in data or recipe that cannot be trained on, and for a run folder of another recipe.
    """
    setup = _set_up(recipe, accounts)
    rounds = range(1, recipe.schedule.rounds + 1)
    setup.equip({stage for number in rounds for stage in _left(setup.players, number, _STAGES)})
    setup.claim()
    for number in rounds:
        _play(setup.players, number, _STAGES)
    return _finish(recipe, setup.players, setup.announce)


def run_stage(recipe: Recipe, stage: Stage, accounts: Accounts) -> None:
    """Take the first round that is not finished as far as one stage, and stop there.

    So that the stages may run as processes of their own, with other launchers and on other machines.

    Args:
        recipe: an iterative recipe.
        stage: ``rollout``: sample its answers; ``judge``: compare them; ``annotate``: store the log-probs of frozen
            policies on them; ``train``: whatever the round still lacks.
        accounts: as for :func:`run`.

    Raises:
        UserError: as :func:`run`; if the recipe has no rounds; if an earlier stage is missing.
    """
    if not recipe.samples_in_rounds:
        raise UserError(
            f"expected a recipe whose rounds sample (schedule.kind: iterative), found schedule.kind = "
            f"'{recipe.schedule.kind}'; `alignment train` runs it"
        )
    setup = _set_up(recipe, accounts)
    players, announce = setup.players, setup.announce
    rounds = range(1, recipe.schedule.rounds + 1)
    number = next((n for n in rounds if not all(player.has_finished(n) for player in players)), None)
    if number is None:
        announce(f"all {recipe.schedule.rounds} rounds are finished; raise schedule.rounds to go on")
        return
    for player in players:
        player.check_before(number, stage)
    stages = _STAGES if stage == "train" else (stage,)
    setup.equip(_left(players, number, stages))
    setup.claim()
    _play(players, number, stages)
    if stage == "train" and number == recipe.schedule.rounds:
        _finish(recipe, players, announce)
    else:
        _part(players)


def _left(players: Sequence[Player], number: int, stages: Sequence[Stage]) -> set[Stage]:
    """Stages of a round that any player has still to do."""
    return {stage for stage in stages if not all(player.has_done(number, stage) for player in players)}


def _play(players: Sequence[Player], number: int, stages: Sequence[Stage]) -> None:
    """A round. All players move at once: each reads the others as they were when it began."""
    for stage in stages:
        for player in players:
            player.advance(number, stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setup:
    """A run that is about to begin.

    Attributes:
        recipe: of all players.
        args: what it says to a trainer.
        accounts: of the oracles.
        data: the rows.
        players: without an engine and oracles yet.
        announce: is told what was done.
    """

    recipe: Recipe
    args: AlignmentArguments
    accounts: Accounts
    data: PreparedData
    players: list[Player]
    announce: Announce

    def equip(self, stages: Collection[Stage]) -> None:
        """Give players what some stages use: each may run where the others' engine, judge or key is not."""
        if "train" in stages:
            steps = self.args.iteration_steps(self.recipe.build_method().needs)
            check_optimizer(self.args, iteration_steps=steps)
        evaluates = "train" in stages and bool(self.players[0].held_out)
        if "rollout" in stages or evaluates:
            self._build_engine(evaluates)
        spec = self.recipe.evaluation.oracle if evaluates and self.recipe.evaluation is not None else None
        judge = None if spec is None else build_oracle(spec, self.args.device, self.accounts)
        for player in self.players:
            assert player.recipe.oracle is not None
            if "judge" in stages or (evaluates and judge is None):
                player.oracle = build_oracle(player.recipe.oracle, self.args.device, self.accounts)
            if evaluates:
                player.judge = player.oracle if judge is None else judge

    def _build_engine(self, evaluates: bool) -> None:
        args, lora = self.args, self.recipe.policy.lora
        check_engine(args.engine, args.engine_options)
        engine = build_engine(
            args.engine,
            args.engine_options,
            self.players[0].tokenizer,
            lora_rank=None if lora is None else lora.rank,
            num_processes=args.world_size,
        )
        if evaluates and not engine.takes_weights:
            self.announce(
                f"note: the engine '{args.engine}' keeps its weights; held-out answers are drawn by transformers"
            )
        for player in self.players:
            player.engine = engine

    def claim(self) -> None:
        """Write whose folder it is; a command that could not begin leaves no recipe."""
        ranks, folder = self.args.ranks, Path(self.recipe.output_dir)
        ranks.wait()
        if ranks.is_first:
            if not (folder / "recipe.yaml").exists():
                write_header(folder, self.recipe.to_yaml(), None)
            write_report(self.data, folder)


def _set_up(recipe: Recipe, accounts: Accounts) -> _Setup:
    args = build_arguments(recipe)
    if args.resume_from_checkpoint not in (None, "last"):
        raise UserError(
            "training.resume_from_checkpoint: expected last or nothing where rounds continue by themselves, got "
            f"'{args.resume_from_checkpoint}'"
        )
    check_launch(args)
    ranks = args.ranks
    folder = Path(recipe.output_dir)
    check_same_recipe(folder, recipe.to_yaml(), batches_are_compared=True)
    announce = run_console(quiet=not ranks.is_first).print
    set_seed(recipe.seed)
    data = prepare_data(recipe.data, seed=recipe.seed, announce=announce)
    tokenizer = load_tokenizer(recipe.policy, data.train)
    prompts = _encode("training prompts", data.train, tokenizer, recipe, announce)
    held_out = _encode("held-out prompts", data.evaluation, tokenizer, recipe, announce)
    if recipe.schedule.prompts == "split" and len(prompts) < recipe.schedule.rounds:
        raise UserError(
            f"schedule.prompts: expected a prompt for each of {recipe.schedule.rounds} rounds to divide among them, "
            f"found {len(prompts)}; give more prompts, ask for fewer rounds, or let every round have all"
        )
    players = [
        Player(
            name=name,
            recipe=own,
            folder=folder / name,
            tokenizer=tokenizer,
            prompts=prompts,
            held_out=held_out,
            device=args.device,
            ranks=ranks,
            batch_size=args.eval_batch_size,
            effective_batch=args.effective_batch,
            announce=announce,
        )
        for name, own in recipe.by_player().items()
    ]
    for player in players:
        player.meet({other.name: other for other in players if other is not player})
    return _Setup(recipe=recipe, args=args, accounts=accounts, data=data, players=players, announce=announce)


def _finish(recipe: Recipe, players: Sequence[Player], announce: Announce) -> RunResult:
    """The models of the last round, and what they reach."""
    ends = [player.finish(recipe.schedule.rounds) for player in players]
    before = {name: value for end in ends for name, value in end.before.items()}
    after = {name: value for end in ends for name, value in end.after.items()}
    folder = Path(recipe.output_dir)
    if players[0].ranks.is_first:
        write_summary(
            folder,
            before=before,
            after=after,
            average={name: value for end in ends for name, value in end.average.items()},
            seconds=sum(end.seconds for end in ends),
            oracle_calls=sum(end.oracle_calls for end in ends),
        )
    model_folder = players[0].folder / "final"
    for player in players:
        announce(f"model{player.label}: {player.folder / 'final'}")
    _part(players)
    return RunResult(folder=folder, model_folder=model_folder, before=before, after=after)


def _part(players: Sequence[Player]) -> None:
    """The end of a process: what all players share is closed."""
    if players[0].engine is not None:
        players[0].engine.close()
    players[0].ranks.part()


def _encode(
    name: str, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, recipe: Recipe, announce: Announce
) -> tuple[EncodedRow, ...]:
    if not rows:
        return ()
    bare = [Row(prompt=row.prompt, weight=row.weight, source=row.source) for row in rows]
    result = encode_rows(
        bare,
        tokenizer,
        max_prompt_length=recipe.data.max_prompt_length,
        max_completion_length=recipe.sampling.max_new_tokens,
    )
    announce(f"{name}: {result.summary()}")
    return result.rows
