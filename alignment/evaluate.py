"""``alignment evaluate``: policies answer a set of prompts, an oracle compares the answers, and figures come of it.

Nothing is paid for twice. Answers are written as they are sampled, under a hash of what decides them; verdicts stand in
the ledger when they arrive; and ``manifest.json`` says what all of it was made by, before the first answer.

Shape letters: ``P`` prompts, ``G`` answers to a prompt, ``K`` members of a panel, ``N`` questions.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignment.answering import Player, check_sampler, find_player, written_answers
from alignment.config import DataSource
from alignment.config.evaluation import EvaluationRecipe, LengthControlSpec, annotations_file
from alignment.errors import UserError
from alignment.evaluation import scoring
from alignment.evaluation.alpaca import annotations, read_instructions
from alignment.evaluation.certificates import Exploited
from alignment.evaluation.length_control import read_difficulty, read_regularizer
from alignment.evaluation.manifests import digest, fingerprint, freeze_manifest, read_manifest, versions
from alignment.evaluation.matches import Answers, Array, Cell, Match, PairedComparison, cell, paired_comparisons
from alignment.evaluation.prompt_sets import SETS, PromptSet, make_prompt_set, read_categories, read_outputs
from alignment.exploitation import check_unseen, draw_sides, find_certificate
from alignment.files import write_json
from alignment.folders import oracle_accounts
from alignment.oracles import (
    Accounts,
    CalibratedOracle,
    PanelOracle,
    ask,
    build_oracle,
    check_keys,
    deciding_keys,
    oracle_name,
)
from alignment.preparation import read_source
from alignment.progress import Announce, Progress, chunked
from alignment.report import PAGE, write_page
from alignment.report.evaluation import evaluation_page
from alignment.textgame import is_address
from alignment.trained import find_model, run_data
from alignment.types import Oracle

RESULTS = "results.json"
# Pairs of answers between two movements of the bar.
_ASKED_AT_ONCE = 64
# What is kept of the scorer's figures: the rest is said already.
_LENGTH_CONTROLLED = (
    "length_controlled_winrate",
    "lc_low",
    "lc_high",
    "lc_se_bootstrap",
    "lc_se_upstream",
    "w_len",
    "w_diff",
    "w_bias",
    "c",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        folder: where everything stands.
        manifest: a hash of what made the figures.
        cells: of each policy against each opponent.
        comparisons: of two policies against the same opponent, paired.
        certificates: lower bounds on exploitabilities.
        notes: what a reader of the figures must know.
    """

    folder: Path
    manifest: str
    cells: tuple[Cell, ...]
    comparisons: tuple[PairedComparison, ...]
    certificates: tuple[Exploited, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        return {
            "manifest": self.manifest,
            "cells": [found.to_json() for found in self.cells],
            "comparisons": [found.to_json() for found in self.comparisons],
            "certificates": [found.to_json() for found in self.certificates],
            "notes": list(self.notes),
        }


def evaluate(recipe: EvaluationRecipe, *, announce: Announce, progress: Progress) -> Evaluated:
    """Answer, judge, and write figures, annotations and a page into ``output_dir``.

    Args:
        recipe: a checked one.
        announce: is told in a line what was left out.
        progress: called with what is done, how much of it, and how much there is.

    Raises:
        UserError: if prompts or answers do not fit one another, the folder holds another evaluation, or the judge fails
            for good.
    """
    folder = Path(recipe.output_dir)
    check_sampler(recipe.sampling)
    prompts = _read_prompts(recipe, announce)
    _check_length_control(recipe, prompts)
    players = {
        name: find_player(name, spec, lambda path: [(text,) for text in read_outputs(path, prompts)])
        for name, spec in recipe.policies.items()
    }
    check_keys(recipe.oracle)
    unknown = check_unseen(recipe, players, prompts)
    freeze_manifest(folder, _manifest(recipe, prompts, list(players.values())))
    (folder / "evaluation.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    # Those that nobody meets draw answers for certificates only.
    met = players if recipe.opponents else {}
    answers = {name: _answers(player, recipe, prompts, folder, progress) for name, player in met.items()}
    # Before the judge takes its place in memory.
    sides = [draw_sides(spec, recipe, players, prompts, progress) for spec in recipe.certificates]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with oracle_accounts(folder) as accounts:
        # Kept unless the recipe says otherwise: what a local model said takes time, too.
        oracle = build_oracle({"ledger": True, **recipe.oracle}, device, accounts)
        members = _members(oracle)
        freeze_manifest(folder, {"judges": [entry["identity"] for entry in accounts.summary()]})
        matches = tuple(
            _judge(name, opponent, answers, prompts, members, accounts, progress)
            for opponent in recipe.opponents
            for name in recipe.policies
            if name != opponent
        )
        certificates = tuple(
            find_certificate(spec, drawn, players, prompts, list(members.values()), progress)
            for spec, drawn in zip(recipe.certificates, sides, strict=True)
        )
        freeze_manifest(folder, {"cost": accounts.summary()})
    cells = tuple(_cell(match, recipe, prompts, folder, progress) for match in matches)
    manifest = read_manifest(folder)
    evaluated = Evaluated(
        folder=folder,
        manifest=fingerprint(manifest),
        cells=cells,
        comparisons=paired_comparisons(matches),
        certificates=certificates,
        notes=(*_notes(recipe, prompts, answers, cells), *unknown),
    )
    write_json(folder / RESULTS, evaluated.to_json())
    page = evaluation_page(
        folder.resolve().name,
        cells,
        evaluated.comparisons,
        matches,
        certificates,
        prompts=prompts.texts,
        notes=evaluated.notes,
        manifest=json.dumps(manifest, indent=1, ensure_ascii=False),
    )
    write_page(page, folder / PAGE)
    return evaluated


def _read_prompts(recipe: EvaluationRecipe, announce: Announce) -> PromptSet:
    spec = recipe.prompts
    if spec.path is None:
        return _held_out(recipe, announce)
    # The text game says itself what its prompts are.
    is_role_read = not is_address(spec.path) or "prompt_role" in spec.model_fields_set
    role: dict[str, Any] = {"prompt_role": spec.prompt_role} if is_role_read else {}
    result = read_source(DataSource.model_validate({"path": spec.path, **role}))
    announce(f"prompts: {result.summary()}")
    column = spec.category or (None if spec.set is None else SETS[spec.set].category)
    if column is not None and is_address(spec.path):
        raise UserError(f"prompts.category: expected a file with a column {column!r}, found {spec.path}; leave it out")
    categories = None if column is None else read_categories(Path(spec.path), column)
    prompts = make_prompt_set(result.rows, name=spec.set, categories=categories, limit=spec.limit)
    if prompts.num_repeated:
        announce(f"prompts: {prompts.num_repeated:,} that came before count once")
    return prompts


def _held_out(recipe: EvaluationRecipe, announce: Announce) -> PromptSet:
    run = recipe.prompts.held_out
    assert run is not None
    rows = run_data(find_model(run)).evaluation
    if not rows:
        raise UserError(f"prompts.held_out: expected a run that holds out prompts, found none in {run}")
    prompts = make_prompt_set(rows, limit=recipe.prompts.limit)
    announce(f"prompts: {len(prompts.rows):,} that {run} held out")
    return prompts


def _check_length_control(recipe: EvaluationRecipe, prompts: PromptSet) -> None:
    spec = recipe.length_control
    if spec is None:
        return
    path = recipe.prompts.path
    if path is None or is_address(path):
        raise UserError(
            "length_control: expected a file of instructions in prompts.path, found "
            f"{path or recipe.prompts.held_out}; leave length_control out"
        )
    if spec.c is None and len(prompts.rows) < 5:
        raise UserError(
            f"length_control: expected 5 prompts at least to cross-validate, found {len(prompts.rows)}; give "
            "length_control.c, or leave length_control out"
        )
    # Read before anybody is asked: the scorer would refuse them at the end.
    number = read_instructions(Path(path))
    difficult = set(read_difficulty(Path(spec.difficulty)).ids_I)
    if spec.regularizer is not None:
        read_regularizer(Path(spec.regularizer))
    without = [text for text in prompts.texts if number.get(text) not in difficult]
    if without:
        raise UserError(
            f"length_control.difficulty: expected the difficulty of every prompt, found none of {len(without)}, first "
            f"of {without[0][:60]!r}; give the file of this set"
        )


def _manifest(recipe: EvaluationRecipe, prompts: PromptSet, players: Sequence[Player]) -> dict[str, Any]:
    """What decides the figures, as far as it is known before anybody is asked."""
    files = {} if recipe.length_control is None else _length_control_identity(recipe.length_control)
    return {
        "prompts": {
            **recipe.prompts.model_dump(exclude_none=True),
            "num_prompts": len(prompts.rows),
            "sha256": prompts.digest,
            "categories": digest(prompts.categories),
        },
        "policies": {player.name: player.identity for player in players},
        "opponents": recipe.opponents,
        "certificates": [spec.model_dump() for spec in recipe.certificates],
        "sampling": None if recipe.sampling is None else recipe.sampling.model_dump(),
        "oracle": deciding_keys(recipe.oracle),
        "order": "both, averaged" if recipe.oracle.get("symmetrize", True) else "one, by a hash of the question",
        "length_control": files,
        "seed": recipe.seed,
        "versions": versions(*recipe.engine_packages),
    }


def _length_control_identity(spec: LengthControlSpec) -> dict[str, Any]:
    paths = {"difficulty": spec.difficulty, "regularizer": spec.regularizer}
    hashes = {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in paths.items() if path}
    return {**hashes, "c": spec.c, "bootstrap": spec.bootstrap}


def _answers(player: Player, recipe: EvaluationRecipe, prompts: PromptSet, folder: Path, progress: Progress) -> Answers:
    """G answers to each prompt. A file has one, which meets each of the others."""
    path = folder / "outputs" / f"{player.name}.json"
    groups = written_answers(player, prompts, recipe.sampling, path, seed=recipe.seed, progress=progress)
    return [group * (recipe.num_completions // len(group)) for group in groups]


def _members(oracle: Oracle) -> dict[str, Oracle]:
    """The members of a panel by name; a single oracle has none."""
    if not isinstance(oracle, PanelOracle):
        return {"": oracle}
    members = dict(zip(oracle.names, oracle.members, strict=True))
    scaled = [name for name, member in members.items() if isinstance(member, CalibratedOracle)]
    if scaled:
        raise UserError(
            f"oracle.calibrate: expected false in an evaluation, which has no reference to scale '{scaled[0]}' by; set "
            "oracle.calibrate: false"
        )
    return members


def _judge(
    name: str,
    opponent: str,
    answers: Mapping[str, Answers],
    prompts: PromptSet,
    members: Mapping[str, Oracle],
    accounts: Accounts,
    progress: Progress,
) -> Match:
    """Have every answer compared with the opponent's; nobody is asked about two that are the same."""
    ours, theirs = answers[name], answers[opponent]
    pairs = [(p, g) for p in range(len(ours)) for g in range(len(ours[p])) if ours[p][g] != theirs[p][g]]
    wins_PGK: Array = np.full((len(ours), len(ours[0]), len(members)), 0.5)
    before = accounts.spent.unparsable
    for chunk in chunked(pairs, _ASKED_AT_ONCE, f"{name} vs {opponent}", progress):
        asked = (
            [prompts.texts[p] for p, _ in chunk],
            [ours[p][g] for p, g in chunk],
            [theirs[p][g] for p, g in chunk],
        )
        for k, member in enumerate(members.values()):
            for (p, g), win in zip(chunk, ask(member, *asked).tolist(), strict=True):
                wins_PGK[p, g, k] = win
    return Match(
        policy=name,
        opponent=opponent,
        wins_PGK=wins_PGK,
        ours=ours,
        theirs=theirs,
        members=[member for member in members if member],
        categories=prompts.categories,
        unparsable=accounts.spent.unparsable - before,
    )


def _cell(match: Match, recipe: EvaluationRecipe, prompts: PromptSet, folder: Path, progress: Progress) -> Cell:
    """Write the annotations of a match, and find its figures."""
    path = folder / "annotations" / annotations_file(match.policy, match.opponent)
    count = recipe.num_completions
    rows = annotations(
        [text for g in range(count) for text in prompts.texts],
        [group[g] for g in range(count) for group in match.theirs],
        [group[g] for g in range(count) for group in match.ours],
        match.wins_PG.T.flatten().tolist(),
        generator_1=match.opponent,
        generator_2=match.policy,
        annotator=oracle_name(recipe.oracle),
    )
    write_json(path, rows)
    spec = recipe.length_control
    if spec is None or recipe.prompts.path is None:
        return cell(match)
    options = scoring.Options(
        difficulty=Path(spec.difficulty),
        regularizer=None if spec.regularizer is None else Path(spec.regularizer),
        instructions=Path(recipe.prompts.path),
        c=spec.c,
        bootstrap=spec.bootstrap,
        seed=recipe.seed,
    )
    scored = scoring.score("alpaca_eval2", path, options, progress=progress)
    figures = {key: scored.summary[key] for key in _LENGTH_CONTROLLED if key in scored.summary}
    return cell(match, {"variant": scored.variant, **figures, "notes": list(scored.notes)})


def _notes(
    recipe: EvaluationRecipe, prompts: PromptSet, answers: Mapping[str, Answers], cells: Sequence[Cell]
) -> Iterator[str]:
    if recipe.length_control is None and cells:
        yield (
            "no length-controlled win rate: it needs the difficulties of the instructions (length_control.difficulty); "
            "average lengths stand beside the rates"
        )
    if len(prompts.rows) == 1:
        yield "one prompt says nothing about others: its interval is the whole range"
    if len(prompts.rows) < len(prompts.known):
        yield f"the first {len(prompts.rows):,} of {len(prompts.known):,} prompts, not the whole set"
    for name, groups in answers.items():
        empty = sum(not text.strip() for group in groups for text in group)
        if empty:
            yield f"{name}: {empty:,} of {sum(map(len, groups)):,} answers have no text"
    for found in cells:
        said = f"{found.policy} vs {found.opponent}"
        if found.n_unparsable:
            yield f"{said}: {found.n_unparsable:,} replies of the judge had no verdict and count as ties"
        if found.n_identical == found.n_wins + found.n_wins_base + found.n_draws:
            yield f"{said}: all answers are the same, so the rate is 50 and nobody was asked"
